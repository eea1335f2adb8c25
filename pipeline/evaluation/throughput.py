"""Rates of a machine: large matrix products, and Hessian products of the recursion beside them.

What `benchmarks/gpu.py` and `unlearn bench` measure with. Inputs are made up, networks freshly drawn;
neither changes the time of a product. Needs torch and numpy alone: configurations are stand-ins with
the few attributes that a step reads.
"""

# B minibatch rows, K tangents, P parameters

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from pipeline.approximators.recursion import ChunkState, Conventions, advance, low_precision
from pipeline.hessian.hvp import Network
from pipeline.hessian.linearization import Linearization
from pipeline.hessian.roperator import Pairs
from pipeline.hessian.roperator.convolution import used_taps
from pipeline.models.losses import CrossEntropy
from pipeline.models.minibatch import Minibatch
from pipeline.models.networks import cnn, logistic, mlp
from pipeline.models.parameters import flat_parameters
from pipeline.models.resnet import calibrate_statistics, resnet18
from pipeline.run.coefficients import Coefficients
from pipeline.training.step import OptimizerState, buffer_names, descend, step_context

if TYPE_CHECKING:
    from pipeline.config import Form

NUM_CLASSES = 10
L2 = 0.01
LEARNING_RATE = 1e-3
# A square product of this side comes near a machine's best rate.
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
_TURNS = 5
# Scale of the last normalisation of a residual block; at zero, where training starts it, the block's
# convolutions would have no gradient, and an accuracy measured there would say nothing.
_BRANCH_SCALE = 0.5

PRECISIONS = ("float32", "tf32", "bfloat16")
"""Of the tangents' products; parameters and approximators are float32 in all of them."""


@dataclass(frozen=True)
class Case:
    """A network, the shape of its inputs and |B|."""

    name: str
    build: Callable[[tuple[int, ...]], nn.Module]
    inputs: tuple[int, ...]
    batch: int


def _resnet(stem: Any) -> Callable[[tuple[int, ...]], nn.Module]:
    def build(shape: tuple[int, ...]) -> nn.Module:
        module = resnet18(shape, NUM_CLASSES, "relu", "frozen-batch", stem)
        for name, parameter in module.named_parameters():
            if name.endswith("bn2.weight"):
                nn.init.constant_(parameter, _BRANCH_SCALE)
        return module

    return build


_DIGIT, _PHOTO = (1, 28, 28), (3, 32, 32)
CASES = (
    Case("logistic", lambda shape: logistic(shape, NUM_CLASSES), _DIGIT, 256),
    Case("perceptron", lambda shape: mlp(shape, NUM_CLASSES, (128, 64), "tanh"), _DIGIT, 256),
    Case("cnn", lambda shape: cnn(shape, NUM_CLASSES, "tanh"), _DIGIT, 256),
    Case("resnet18, ImageNet stem", _resnet("imagenet"), _PHOTO, 256),
    Case("resnet18, small stem", _resnet("small"), _PHOTO, 128),
)


@dataclass(frozen=True)
class Subject:
    """A network at some parameters, and a minibatch, both on a device.

    Attributes:
        module: The network.
        w_P: Its parameters.
        batch: Made-up inputs and targets.
    """

    module: nn.Module
    w_P: Tensor
    batch: Minibatch

    @staticmethod
    def of(case: Case, device: torch.device, dtype: torch.dtype = torch.float32) -> Subject:
        """Return the same network and minibatch on every device and in every dtype."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = case.build(case.inputs)
            inputs = torch.randn(case.batch, *case.inputs)
            targets = torch.randint(0, NUM_CLASSES, (case.batch,))
            calibrate_statistics(module, inputs)
            for parameter in module.parameters():
                # Softmax regression starts at zero, where probabilities are all alike.
                if parameter.dim() > 1 and not bool(parameter.any()):
                    nn.init.normal_(parameter, std=0.1)
        module = module.to(device, dtype).eval()
        batch = Minibatch(inputs.to(device, dtype), targets.to(device))
        return Subject(module, flat_parameters(module), batch)

    def network(self, form: Form = "r-operator") -> Network:
        """Return the network with a form of HVPs."""
        return Network.of(self.module, CrossEntropy(), form)

    def tangents(self, num: int) -> Tensor:
        """Return K directions (K, P), the same on every device."""
        generator = torch.Generator().manual_seed(1)
        rows_KP = torch.randn(num, len(self.w_P), generator=generator)
        return rows_KP.to(self.w_P)

    @property
    def flops_per_product(self) -> float:
        """Operations of one tangent's product, see `product_flops`."""
        with torch.no_grad():
            return product_flops(self.module, self.batch.inputs)


def product_flops(module: nn.Module, inputs: Tensor) -> float:
    """Return the floating-point operations of one Hessian-vector product on a minibatch.

    Two for each multiply-add of linear layers and convolutions; everything else is left out. A layer
    with parameters below it takes six products as large as its forward pass, the first layer takes two
    (docs/method.md, section 3). Taps of a kernel that meet only padding are not counted.

    Args:
        module: Its layers run once each, in order.
        inputs: (B, ...); one sample of them is passed.
    """
    forward: list[int] = []

    def linear(layer: nn.Module, passed: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        forward.append(2 * output.numel() * layer.in_features)

    def convolution(layer: nn.Module, passed: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        taps = 1
        for axis, size in enumerate(passed[0].shape[2:]):
            used = used_taps(
                size,
                layer.kernel_size[axis],
                layer.stride[axis],
                cast(tuple[int, ...], layer.padding)[axis],
                layer.dilation[axis],
            )
            taps *= used.stop - used.start
        forward.append(2 * output.numel() * layer.in_channels * taps)

    hooks = {nn.Linear: linear, nn.Conv2d: convolution}
    handles = [
        child.register_forward_hook(hooks[type(child)])
        for child in module.modules()
        if type(child) in hooks
    ]
    module(inputs[:1])
    for handle in handles:
        handle.remove()
    return float(len(inputs) * (2 * forward[0] + 6 * sum(forward[1:])))


@contextmanager
def precision(name: str, *, deterministic: bool = True) -> Iterator[None]:
    """Compute in float32, TF32 or bfloat16 as a run does, convolutions included.

    bfloat16 is left to `low_precision`, which turns it on for products of tangents alone.

    Args:
        name: One of `PRECISIONS`, or float64.
        deterministic: As every run; False shows what that costs.
    """
    cudnn: Any = torch.backends.cudnn
    settings: Any = torch.utils.deterministic
    before = (
        torch.get_float32_matmul_precision(),
        cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        settings.fill_uninitialized_memory,
    )
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    cudnn.allow_tf32 = name == "tf32"
    torch.use_deterministic_algorithms(deterministic)
    settings.fill_uninitialized_memory = False
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]
        torch.use_deterministic_algorithms(before[2])
        settings.fill_uninitialized_memory = before[3]


def synchronise(device: torch.device) -> None:
    """Wait for what was queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], device: torch.device, budget: float) -> float:
    """Return the median seconds of a call, after one that warms up.

    Turns repeat the call, so that on a GPU calls are queued as those of a recursion are.

    Args:
        run: What is timed.
        device: Where it computes.
        budget: Seconds that all turns together should take; a turn is at least one call.
    """

    def turn(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            run()
        synchronise(device)
        return (time.perf_counter() - began) / times

    turn(1)
    first = turn(1)
    if first * _TURNS > budget:
        return min(first, turn(1)) if 2 * first < budget else first
    times = max(1, int(budget / _TURNS / first))
    return median(turn(times) for _ in range(_TURNS))


def matmul_rate(
    device: torch.device, name: str, side: int | None = None, budget: float = 0.5
) -> float:
    """Return the operations per second of a large square matrix product.

    Args:
        device: Where.
        name: One of `PRECISIONS`, or float64.
        side: Of the matrices; None: large enough for the machine's best.
        budget: Seconds to take.
    """
    side = side or MATRIX_SIDE[device.type]
    dtype = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(name, torch.float32)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    with precision(name):
        return 2 * side**3 / seconds_of(lambda: left @ right, device, budget)


def products(
    subject: Subject, linearization: Linearization, num: int, name: str
) -> Callable[[], Tensor]:
    """Return a call that makes K Hessian products at one linearisation, as the recursion does."""
    rows_KP, device = subject.tangents(num), subject.w_P.device.type

    def run() -> Tensor:
        with low_precision(device, name):
            return linearization.hessian_products(rows_KP, None)

    return run


def conventions(
    optimizer: str = "sgd",
    engine: str = "hvp",
    dtype: str = "float32",
    clip_norm: float | None = None,
    momentum: float = 0.0,
) -> Conventions:
    """Return the conventions of a run with these settings, the others at their defaults."""
    training = SimpleNamespace(
        optimizer=optimizer,
        momentum=momentum,
        nesterov=False,
        betas=(0.9, 0.999),
        eps=1e-8,
        clip_norm=clip_norm,
    )
    retraining = SimpleNamespace(denominator="remaining", l2_share="step")
    recursion = SimpleNamespace(
        engine=engine,
        leave_one_out="weights",
        own_rows="left-out",
        dtype=dtype,
        expected_fraction=0.0,
    )
    return Conventions(*(cast(Any, section) for section in (training, retraining, recursion)))


@dataclass
class Walk:
    """The recursion of one chunk, step by step, as a worker takes it.

    Attributes:
        network: With its form of HVPs.
        rules: Optimizer and engine.
        state: The run's own.
        chunk: The units'.
        learning_rate: Of every step.
    """

    network: Network
    rules: Conventions
    state: OptimizerState
    chunk: ChunkState
    learning_rate: float = LEARNING_RATE
    coefficients: Coefficients = field(default_factory=lambda: Coefficients.alike(l2=L2))

    @staticmethod
    def of(
        network: Network,
        w_P: Tensor,
        rules: Conventions,
        num_units: int,
        learning_rate: float = LEARNING_RATE,
    ) -> Walk:
        """Start before step 0 with so many units."""
        buffers = len(buffer_names(rules.training))
        state = OptimizerState.start(w_P, rules.training)
        decoupled = rules.training.optimizer == "adamw"
        coefficients = Coefficients.alike(0.0, L2) if decoupled else Coefficients.alike(L2)
        chunk = ChunkState.start(num_units, w_P, buffers)
        return Walk(network, rules, state, chunk, learning_rate, coefficients)

    def step(self, batch: Minibatch, owned: Pairs) -> None:
        """Take one step of the run and of every unit."""
        training = self.rules.training
        context = step_context(
            self.network,
            self.state.parameters_P,
            batch,
            self.learning_rate,
            self.coefficients,
            fused=training.optimizer != "sgd",
        )
        after, _ = descend(
            self.state,
            context.gradient_P,
            self.learning_rate,
            training,
            self.coefficients,
            "the benchmark",
        )
        context = replace(context, before=self.state, after=after)
        self.chunk = advance(self.chunk, context, owned, self.rules)
        self.state = after

    def rows(self) -> Tensor:
        """Return the approximators (K, P)."""
        if self.rules.carries_weights:
            return self.chunk.rows_KP - self.state.parameters_P
        return self.chunk.rows_KP


def pairs(tangents: list[int], rows: list[int], device: torch.device) -> Pairs:
    """Return pairs of units and minibatch rows on a device."""
    as_tensor = partial(torch.tensor, dtype=torch.int64, device=device)
    return Pairs(as_tensor(tangents), as_tensor(rows))


def moving_walk(
    subject: Subject, network: Network, rules: Conventions, num: int
) -> Callable[[], None]:
    """Return a call that takes a step with all K units under way, one of them in the minibatch."""
    walk = Walk.of(network, subject.w_P, rules, num)
    rows_KP = subject.tangents(num).mul_(1e-3)
    if rules.carries_weights:
        rows_KP += subject.w_P
    start = replace(walk.chunk, rows_KP=rows_KP, num_visited=num)
    walk.chunk, state = start, walk.state
    owned = pairs([num // 2], [0], subject.w_P.device)

    def run() -> None:
        # At the same place each time: a walk that goes on could diverge while it is timed.
        walk.state = state
        walk.step(subject.batch, owned)

    return run
