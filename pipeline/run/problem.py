"""The training problem of a configuration: data and network on a device, conventions, threads."""

# n samples, B minibatch rows, P parameters

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline import __version__
from pipeline.config import RunConfig
from pipeline.data import Dataset, load
from pipeline.data.augment import augment, check_augmentation
from pipeline.data.input_files import IN_MEMORY, InputFiles
from pipeline.data.lazy_inputs import in_parts
from pipeline.errors import ConfigError, DataError
from pipeline.hessian.chunking import tangents_per_chunk
from pipeline.hessian.hvp import Network
from pipeline.models.activations import curve_relus, has_relu
from pipeline.models.loss_registry import check_own_loss, loss_of
from pipeline.models.losses import OwnLoss
from pipeline.models.minibatch import Minibatch
from pipeline.models.train_mode import sample_keys
from pipeline.run.checkpoints import INPUTS, checkpoint_path, read_checkpoint
from pipeline.run.class_masses import refuse_class_terms
from pipeline.run.coefficients import Coefficients
from pipeline.run.settings import recorded_data_digest
from pipeline.run.trained_part import TRIED, TrainedPart, trained_part
from pipeline.sizes import (
    MOST_ROWS,
    MOST_TANGENTS,
    check_schedule,
    chunk_and_block,
    explicit_pays,
)
from storage.summation import MAX_WEIGHT

# What a sample of average weight counts as in the mass correction.
MASS_UNITS = 1 << 20


@dataclass(frozen=True)
class Problem:
    """Everything a worker needs to train, replay and propagate.

    Attributes:
        config: With every "auto" that changes bits replaced by what was chosen.
        data: On `device`, inputs in the run's dtype; features where a frozen backbone makes them.
        network: The trained part of the model as a function of flat parameters.
        initial_P: w_0.
        device: Where the arithmetic happens.
        part: Where `network` comes from; None for problems that were put together by hand.
        data_digest: Of inputs, targets and owners as loaded; empty where put together by hand.
    """

    config: RunConfig
    data: Dataset
    network: Network
    initial_P: Tensor
    device: torch.device
    part: TrainedPart | None = None
    data_digest: str = ""

    @staticmethod
    def of(
        config: RunConfig, device: torch.device | None = None, recorded: Path | None = None
    ) -> "Problem":
        """Load the data, build the model, and settle what the configuration leaves open.

        Args:
            config: The run.
            device: A GPU if there is one, unless given.
            recorded: The folder of the run's trajectory, if it was begun: the start, frozen tensors
                and features that it holds are taken instead of making them.

        Raises:
            ConfigError, DataError, ModelError: If they do not fit together.
        """
        _refuse_open_engine(config)
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float64 if config.recursion.dtype == "float64" else torch.float32
        loaded = load(config.data, config.seed, config.training.loss, _input_files(recorded))
        data_digest = digest_of(loaded)
        _refuse_other_data(recorded, data_digest)
        # A model by name takes numbers; a user's own may embed whole ones.
        data = loaded.to(device, dtype, keep_integers=":" in config.model.name)
        check_schedule(config.training, data.num_samples)
        check_augmentation(config.data.augment, data.inputs)
        loss = loss_of(config.training, data.num_classes)
        part = trained_part(config, data, recorded, dtype)
        module = part.module
        curvature = _relu_curvature(config, module)
        if curvature == "softplus":
            module = curve_relus(module, config.recursion.relu_beta)
        network = Network.of(module, loss, config.recursion.hvp, part.active)
        _try_loss(network, part.data)
        _refuse_coupled_conventions(config, network)
        if config.recursion.dtype == "bfloat16" and network.form == "reverse":
            raise ConfigError(
                "recursion.dtype bfloat16 needs recursion.hvp r-operator or forward-over-reverse: "
                "the reverse form fixes its precision when it builds its graph"
            )
        chunk, block = _chunk_and_block(config, network, part.data)
        sizes = config.training.batch_size, block, len(part.data.units)
        width = network.layout.num_parameters
        if explicit_pays(config, width, sizes) and not network.couples:
            network = replace(network, form="explicit")
            chunk, block = _chunk_and_block(config, network, part.data)
        settled_keys = {
            "hvp": network.form,
            "chunk": chunk,
            "relu_curvature": curvature,
            "leave_one_out": _carried(config, network, recorded),
        }
        recursion = config.recursion.model_copy(update=settled_keys)
        storage = config.storage.model_copy(update={"block": block})
        settled = config.model_copy(update={"recursion": recursion, "storage": storage})
        initial_P = _start(recorded, network.layout.read(network.training))
        problem = Problem(settled, part.data, network, initial_P, device, part, data_digest)
        if config.recursion.class_terms:
            refuse_class_terms(config, part.data, problem.sample_masses())
        return problem

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

    def environment(self) -> dict[str, Any]:
        """Return versions, machine and shapes, as `config.yaml` records them."""
        versions = {
            name: version(name) for name in ("torch", "numpy", "zarr", "numcodecs", "pyarrow")
        }
        on_gpu = self.device.type == "cuda"
        return {
            "python": platform.python_version(),
            "versions": versions | {"hessian-free-unlearning": __version__},
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "threads": self.num_threads,
            "input_shape": list(self.part.input_shape if self.part else ()),
            "num_classes": self.data.num_classes,
            "hvp_form": self.network.form,
            "chunk": self.chunk,
        }

    def minibatch(self, sample_ids: Tensor, step: int | None = None) -> Minibatch:
        """Return training samples, by position: as step `step` sees them, or (None) as they are."""
        inputs, augmentation = self.data.inputs[sample_ids], self.config.data.augment
        if step is not None and augmentation is not None:
            ids = self.data.sample_ids[sample_ids.cpu()]
            inputs = augment(inputs, ids, step, self.config.seed, augmentation)
        weights = None if self.data.weights is None else self.data.weights[sample_ids]
        return Minibatch(
            inputs,
            self.data.targets[sample_ids],
            None if weights is None else weights.to(self.initial_P.dtype),
            self._masses(sample_ids),
            self._keys(sample_ids, step),
        )

    def _keys(self, sample_ids: Tensor, step: int | None) -> Tensor | None:
        """Return what the samples' dropout is drawn from in a step; None without dropout."""
        if step is None or not self.network.drops:
            return None
        ids = self.data.sample_ids[sample_ids.cpu()].to(self.device)
        return sample_keys(self.config.seed, step, ids)

    def _masses(self, sample_ids: Tensor) -> Tensor | None:
        """Return what samples add to the divisor of a mean (B,); None: 1 each."""
        masses = self.network.loss.masses(self.data.targets[sample_ids])
        if self.data.weights is not None:
            weights = self.data.weights[sample_ids]
            masses = weights if masses is None else weights * masses
        return None if masses is None else masses.to(self.initial_P.dtype)

    def mass(self, sample_ids: Tensor) -> float:
        """Return what the given samples add to the divisor of a mean: their number, if unweighted."""
        masses = self._masses(sample_ids)
        return len(sample_ids) if masses is None else float(masses.sum())

    def sample_masses(self) -> NDArray[np.int64] | None:
        """Return what each training sample weighs (n,), in fractions of their average; None: all 1.

        Whole numbers, so that sums of them are exact in every order: an average sample is 2^20 of
        them, or fewer where all together would pass the largest weight that the store takes.
        """
        masses = self._masses(torch.arange(self.data.num_samples, device=self.device))
        if masses is None:
            return None
        shares = masses.double().cpu().numpy()
        # One less, since rounding may add up.
        average = min(MASS_UNITS, MAX_WEIGHT // len(shares) - 1)
        masses_n: NDArray[np.int64] = np.rint(shares / shares.mean() * average).astype(np.int64)
        return masses_n

    def unit_masses(self, sample_ids: Tensor | None = None) -> tuple[int, ...]:
        """Return the samples of each unit, or what they weigh (`sample_masses`), in unit order.

        Args:
            sample_ids: Positions of the samples that count; None: all.
        """
        masses, owners = self.sample_masses(), self.data.unit_of_sample.cpu().numpy()
        counted = slice(None) if sample_ids is None else sample_ids.cpu().numpy()
        if masses is None:
            masses = np.ones(self.data.num_samples, np.int64)
        sums = np.zeros(len(self.data.units), np.int64)
        np.add.at(sums, owners[counted], masses[counted])
        return tuple(sums.tolist())

    @cached_property
    def coefficients(self) -> Coefficients:
        """L2, decay and learning rate of each parameter."""
        return Coefficients.of(self.config.training, self.network.layout, self.initial_P)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Run a block with this run's thread count and precision, deterministically."""
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.set_num_threads(self.num_threads)
        tf32 = self.config.recursion.dtype == "tf32"
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.use_deterministic_algorithms(True)
        # Otherwise every new buffer is filled with NaN first: a pass over memory, for nothing.
        settings: Any = torch.utils.deterministic
        filling, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, False
        # Fused attention has no derivative of its derivative.
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
                yield
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            torch.use_deterministic_algorithms(deterministic)
            settings.fill_uninitialized_memory = filling
            torch.backends.mha.set_fastpath_enabled(fused)


def digest_of(data: Dataset) -> str:
    """Return the digest of a data set's training samples: inputs, targets, owners, weights, in order.

    Whole numbers count as float32, which runs on them were recorded with.
    """
    hasher = blake3()
    for name in data.units:
        hasher.update(len(name.encode()).to_bytes(4, "little") + name.encode())
    dtype = data.inputs.dtype if data.inputs.is_floating_point() else torch.float32
    hasher.update(f"{dtype}{tuple(data.inputs.shape)}".encode())
    for part in in_parts(data.inputs):
        hasher.update(_bytes_of(part.to(dtype)))
    weights = () if data.weights is None else (data.weights,)
    for tensor in (data.targets, data.unit_of_sample, *weights):
        hasher.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        hasher.update(_bytes_of(tensor))
    return hasher.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    array = tensor.cpu().contiguous()
    return memoryview(array.flatten().view(torch.uint8).numpy().data)


def _input_files(recorded: Path | None) -> InputFiles:
    """Return where a run keeps large inputs: in its folder, until it is pruned."""
    if recorded is None or (recorded.parent / "pruned").exists():
        return IN_MEMORY
    return InputFiles(recorded.parent / INPUTS)


def _try_loss(network: Network, data: Dataset) -> None:
    """Try a user's own loss on the outputs of a few samples; the others are known."""
    if not isinstance(network.loss, OwnLoss):
        return
    with torch.no_grad():
        outputs = network.module(data.inputs[:TRIED])
    check_own_loss(network.loss, outputs, data.targets[:TRIED])


def _refuse_other_data(recorded: Path | None, found: str) -> None:
    """Refuse to replay a run on other data than it was trained on.

    Raises:
        DataError: The digest differs from the recorded one.
    """
    expected = None if recorded is None else recorded_data_digest(recorded)
    if expected and expected != found:
        raise DataError(
            f"the data are not those that {recorded} was trained on (digest {found[:16]}, expected "
            f"{expected[:16]}): inputs, labels, owners or their order have changed; restore them, or "
            "train again"
        )


def _refuse_coupled_conventions(config: RunConfig, network: Network) -> None:
    """Refuse conventions that have no meaning where samples share the minibatch's statistics."""
    if not network.couples:
        return
    if config.retraining.denominator != "remaining" or config.recursion.own_rows != "left-out":
        raise ConfigError(
            "batch normalisation in train mode takes its statistics over what remains of a minibatch: "
            "it needs retraining.denominator remaining and recursion.own_rows left-out, found "
            f"{config.retraining.denominator} and {config.recursion.own_rows}"
        )


def _carried(
    config: RunConfig, network: Network, recorded: Path | None
) -> Literal["weights", "differences"] | None:
    """Return what the leave-one-out engine carries; null in runs begun before there was a choice."""
    wanted = config.recursion.leave_one_out
    begun = recorded is not None and (recorded.parent / "config.yaml").is_file()
    if wanted == "weights" and network.couples:
        raise ConfigError(
            "recursion.leave_one_out weights does not follow batch normalisation by the minibatch; "
            "choose differences"
        )
    if config.recursion.engine == "weighing" and network.couples:
        raise ConfigError(
            "recursion.engine weighing does not follow batch normalisation by the minibatch; choose "
            "hvp or leave-one-out"
        )
    if config.recursion.engine != "leave-one-out" or wanted is not None or begun:
        return wanted
    return "differences" if network.couples else "weights"


def _refuse_open_engine(config: RunConfig) -> None:
    """Refuse to compute before the engine is chosen: it decides what approximators are."""
    if config.recursion.engine == "auto":
        raise ConfigError(
            "recursion.engine: auto is settled by `unlearn train` and `unlearn run`, which carry out a "
            "pilot; from Python or with a training loop of your own, give hvp or leave-one-out"
        )


def _relu_curvature(config: RunConfig, module: nn.Module) -> str:
    wanted = config.recursion.relu_curvature
    if wanted == "auto":
        # Measured (docs/results.md): it helps small ReLU networks, and misleads a ReLU ResNet more
        # than leaving it out.
        convolutional = any(isinstance(child, nn.Conv2d) for child in module.modules())
        return "softplus" if has_relu(module) and not convolutional else "none"
    return wanted


def _start(recorded: Path | None, drawn_P: Tensor) -> Tensor:
    """Return w_0 as recorded, or as drawn if nothing is."""
    if recorded is None or not checkpoint_path(recorded, 0).is_file():
        return drawn_P
    return torch.from_numpy(read_checkpoint(recorded, 0).parameters_P).to(drawn_P)


def _chunk_and_block(config: RunConfig, network: Network, data: Dataset) -> tuple[int, int]:
    """Return K, the units computed together, and the units of a block."""
    batch_size, num_units = config.training.batch_size, len(data.units)
    # As many tangents as keep the widest activation in cache, a power of two.
    most = MOST_ROWS if network.form == "explicit" else MOST_TANGENTS
    fitting = tangents_per_chunk(network, data.inputs[:1], batch_size, most)
    return chunk_and_block(config, num_units, network.layout.num_parameters, fitting)
