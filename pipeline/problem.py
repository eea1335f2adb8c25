"""A configuration brought to life: data and network on a device, conventions, thread count."""

# n samples, B minibatch rows, P parameters

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.chunking import tangents_per_chunk
from pipeline.config import RunConfig
from pipeline.data import Dataset, load
from pipeline.errors import ConfigError, ModelError
from pipeline.hvp import Network
from pipeline.models.activations import curve_relus, has_relu
from pipeline.models.registry import Shape, build
from pipeline.objective import CrossEntropy, check_against
from pipeline.parameters import flat_parameters
from pipeline.recursion import Conventions


@dataclass(frozen=True)
class Problem:
    """Everything a worker needs to train, replay and propagate.

    Attributes:
        config: With every "auto" that changes bits replaced by what was chosen.
        data: On `device`, inputs in the run's dtype.
        network: The model as a function of flat parameters.
        initial_P: w_0.
        device: Where the arithmetic happens.
    """

    config: RunConfig
    data: Dataset
    network: Network
    initial_P: Tensor
    device: torch.device

    @staticmethod
    def of(config: RunConfig, device: torch.device | None = None) -> "Problem":
        """Load the data, build the model, and settle what the configuration leaves open.

        Raises:
            ConfigError, DataError, ModelError: If they do not fit together.
        """
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float64 if config.recursion.dtype == "float64" else torch.float32
        data = load(config.data, config.seed).to(device, dtype)
        check_against(config.training, data.num_samples)
        shape = Shape(tuple(data.inputs.shape[1:]), data.num_classes)
        module = build(config.model, shape, config.seed).to(device, dtype)
        curvature = _relu_curvature(config, module)
        if curvature == "softplus":
            module = curve_relus(module, config.recursion.relu_beta)
        network = Network.of(module, CrossEntropy(), config.recursion.hvp)
        if config.recursion.dtype == "bfloat16" and network.form == "reverse":
            raise ConfigError(
                "recursion.dtype bfloat16 needs recursion.hvp r-operator or forward-over-reverse: "
                "the reverse form fixes its precision when it builds its graph"
            )
        _check_outputs(module, data)
        chunk = _chunk(config, network, data)
        recursion = config.recursion.model_copy(
            update={"hvp": network.form, "chunk": chunk, "relu_curvature": curvature}
        )
        settled = config.model_copy(update={"recursion": recursion})
        return Problem(settled, data, network, flat_parameters(module), device)

    @property
    def num_parameters(self) -> int:
        """P."""
        return self.network.layout.num_parameters

    @property
    def chunk(self) -> int:
        """Units computed together, K."""
        return cast(int, self.config.recursion.chunk)

    @property
    def num_threads(self) -> int:
        """Threads of every computation of this run."""
        return self.config.cluster.cpus_per_worker

    @cached_property
    def conventions(self) -> Conventions:
        """Which recursion this run computes."""
        return Conventions(self.config.training, self.config.retraining, self.config.recursion)

    def minibatch(self, sample_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the given training samples."""
        return self.data.inputs[sample_ids], self.data.targets[sample_ids]

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Run a block with this run's thread count and precision, deterministically."""
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.set_num_threads(self.num_threads)
        tf32 = self.config.recursion.dtype == "tf32"
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.use_deterministic_algorithms(True)
        try:
            with torch.no_grad():
                yield
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            torch.use_deterministic_algorithms(deterministic)


def _relu_curvature(config: RunConfig, module: nn.Module) -> str:
    wanted = config.recursion.relu_curvature
    if wanted == "auto":
        return "softplus" if has_relu(module) else "none"
    return wanted


def _check_outputs(module: nn.Module, data: Dataset) -> None:
    with torch.no_grad():
        outputs = module(data.inputs[:2])
    expected = (min(2, data.num_samples), data.num_classes)
    if tuple(outputs.shape) != expected:
        raise ModelError(
            f"the model maps two samples to shape {tuple(outputs.shape)}; expected {expected}, one "
            "score per class"
        )


def _chunk(config: RunConfig, network: Network, data: Dataset) -> int:
    """Return K: as many tangents as keep the widest activation in cache, a power of two."""
    wanted = config.recursion.chunk
    limit = max(2, min(config.storage.block, len(data.units)))
    if wanted != "auto":
        return min(wanted, limit)
    # At least four chunks, so that a few workers can share even a few units.
    limit = max(2, min(limit, -(-len(data.units) // 4)))
    return tangents_per_chunk(network, data.inputs[:1], config.training.batch_size, limit)
