"""Tiny problems for the tests: a network, random data, a configuration, and the same for the oracle."""

# n samples, P parameters, N units

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.approximators.block import BlockRecursion
from pipeline.config import RunConfig
from pipeline.data import Dataset
from pipeline.hessian.hvp import Network
from pipeline.models.losses import CrossEntropy, Loss, SquaredError
from pipeline.models.train_mode import active_parts
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory
from pipeline.training.train import record
from tests.oracles import (
    Convention,
    LossFunction,
    Run,
    cross_entropy,
    smoothed_cross_entropy,
    squared_error,
)

FEATURES, CLASSES = 4, 3
IMAGE = (1, 6, 6)


def _mlp(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 5), activation(), nn.Linear(5, CLASSES))


def _cnn(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.MaxPool2d(2),
        activation(),
        nn.Conv2d(2, 3, 2),
        activation(),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )


def _normalised_mlp() -> nn.Module:
    # Without a bias in front, whose gradient would be zero.
    first = nn.Linear(FEATURES, 5, bias=False)
    return nn.Sequential(nn.Flatten(), first, nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES))


def _normalised_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False),
        nn.BatchNorm2d(2, momentum=0.3),
        nn.Tanh(),
        nn.Dropout2d(0.4),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def _dropping_mlp() -> nn.Module:
    layers = nn.Linear(FEATURES, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, CLASSES)
    return nn.Sequential(nn.Dropout(0.2), nn.Flatten(), *layers)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ridge": lambda: nn.Linear(FEATURES, CLASSES),
    "logistic": lambda: nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, CLASSES)),
    "mlp-tanh": lambda: _mlp(nn.Tanh),
    "mlp-silu": lambda: _mlp(nn.SiLU),
    "mlp-relu": lambda: _mlp(nn.ReLU),
    "cnn-tanh": lambda: _cnn(nn.Tanh),
    "cnn-silu": lambda: _cnn(nn.SiLU),
    "cnn-relu": lambda: _cnn(nn.ReLU),
    "mlp-norm": _normalised_mlp,
    "cnn-norm": _normalised_cnn,
    "mlp-dropout": _dropping_mlp,
}

# Users own 4, 3, 1, 2 and 1 samples: unequal, neither sorted nor contiguous.
USERS = (0, 1, 4, 0, 3, 1, 0, 2, 1, 3, 0)

CLIP_NORMS = {"none": None, "inactive": 1e3, "active": 0.0}
"""`active` is set by each case to the middle gradient norm of the unclipped run: about half fire."""


GROUPS = [
    {"parameters": "*bias", "weight_decay": 0.0, "learning_rate": 0.5},
    {"parameters": "*weight", "weight_decay": 0.2},
]


@dataclass(frozen=True)
class Case:
    """One combination of network and conventions on 11 random samples, three epochs of 4, 4, 3."""

    network: str = "logistic"
    denominator: str = "remaining"
    own_rows: str = "left-out"
    l2_share: str = "step"
    clip: str = "none"
    momentum: float = 0.0
    nesterov: bool = False
    unit: str = "sample"
    hvp: str = "r-operator"
    engine: str = "hvp"
    dtype: str = "float64"
    chunk: int = 4
    batch_size: int = 4
    epochs: int = 3
    num_samples: int = 11
    expected_fraction: float = 0.0
    checkpoint_every: int = 100
    optimizer: str = "sgd"
    learning_rate: float = 0.3
    l2: float = 0.05
    weight_decay: float | None = None
    eps: float = 1e-8
    label_smoothing: float = 0.0
    weighted: bool = False
    grouped: bool = False
    leave_one_out: str | None = None

    def __str__(self) -> str:
        parts = [self.network, self.denominator, self.own_rows, self.l2_share, f"clip-{self.clip}"]
        parts += ["nesterov" if self.nesterov else f"mu{self.momentum}", self.unit]
        parts += [] if self.optimizer == "sgd" else [self.optimizer]
        parts += [self.leave_one_out] if self.leave_one_out else []
        parts += ["weighted"] * self.weighted + ["grouped"] * self.grouped
        return "/".join(parts)

    def but(self, **changes: Any) -> "Case":
        """The same case with some fields changed."""
        return replace(self, **changes)

    @cached_property
    def owners_n(self) -> Tensor:
        """Which unit owns each sample."""
        users = torch.tensor(USERS[: self.num_samples])
        return users if self.unit == "user" else torch.arange(self.num_samples)

    @property
    def num_units(self) -> int:
        return int(self.owners_n.max()) + 1

    @property
    def owned_Nn(self) -> Tensor:
        """Indicator of ownership, (N, n) bool."""
        return self.owners_n[None] == torch.arange(self.num_units)[:, None]

    @property
    def convention(self) -> Convention:
        return Convention(self.denominator, self.l2_share)

    @cached_property
    def clip_norm(self) -> float | None:
        if self.clip != "active":
            return CLIP_NORMS[self.clip]
        from tests.oracles import gradient_norms

        norms = sorted(gradient_norms(run_of(self.but(clip="none"))))
        return norms[len(norms) // 2]

    @property
    def config(self) -> RunConfig:
        return RunConfig.from_values(
            {
                "seed": 7,
                "training": {
                    "epochs": self.epochs,
                    "batch_size": self.batch_size,
                    "learning_rate": self.learning_rate,
                    "learning_rate_decay": 0.97,
                    "l2": self.l2,
                    "optimizer": self.optimizer,
                    "weight_decay": self.weight_decay,
                    "eps": self.eps,
                    "label_smoothing": self.label_smoothing,
                    "groups": GROUPS if self.grouped else [],
                    "clip_norm": self.clip_norm,
                    "momentum": self.momentum,
                    "nesterov": self.nesterov,
                },
                "retraining": {"denominator": self.denominator, "l2_share": self.l2_share},
                "recursion": {
                    "engine": self.engine,
                    "own_rows": self.own_rows,
                    "leave_one_out": self.leave_one_out,
                    "hvp": self.hvp,
                    "chunk": self.chunk,
                    "dtype": self.dtype,
                    "relu_curvature": "none",
                    "expected_fraction": self.expected_fraction,
                    "checkpoint_every": self.checkpoint_every,
                },
            }
        )


def module_of(case: Case) -> nn.Module:
    """The network, its weights the same for every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return NETWORKS[case.network]().double()


def data_of(case: Case) -> tuple[Tensor, Tensor]:
    """Inputs and targets in float64."""
    generator = torch.Generator().manual_seed(5)
    shape = IMAGE if case.network.startswith("cnn") else (FEATURES,)
    inputs = torch.randn(case.num_samples, *shape, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, CLASSES, (case.num_samples,), generator=generator)
    values = torch.randn(case.num_samples, CLASSES, generator=generator, dtype=torch.float64)
    return inputs, values if case.network == "ridge" else classes


def weights_of(case: Case) -> Tensor | None:
    """What the samples weigh: unequal numbers, one of them 0."""
    if not case.weighted:
        return None
    generator = torch.Generator().manual_seed(11)
    weights_n = 0.2 + 2 * torch.rand(case.num_samples, generator=generator, dtype=torch.float64)
    weights_n[4] = 0.0
    return weights_n


def _by_parameter(case: Case, module: nn.Module) -> tuple[Any, Any, Any]:
    """L2, decoupled decay and factor of the learning rate, as vectors (P,) where groups differ."""
    decay = case.weight_decay or 0.0
    if not case.grouped:
        return case.l2, decay, 1.0
    decays, scales = [], []
    for name, parameter in module.named_parameters():
        ones = torch.ones(parameter.numel(), dtype=torch.float64)
        decays.append((0.0 if name.endswith("bias") else 0.2) * ones)
        scales.append((0.5 / case.learning_rate if name.endswith("bias") else 1.0) * ones)
    decays_P, scales_P = torch.cat(decays), torch.cat(scales)
    return (0.0, decays_P, scales_P) if case.optimizer == "adamw" else (decays_P, decay, scales_P)


def problem_of(case: Case) -> Problem:
    """The case as the pipeline sees it."""
    dtype = torch.float64 if case.dtype == "float64" else torch.float32
    inputs, targets = data_of(case)
    inputs = inputs.to(dtype)
    ridge = case.network == "ridge"
    targets = targets.to(dtype) if ridge else targets
    units = tuple(f"unit-{u}" for u in range(case.num_units))
    data = Dataset(
        inputs, targets, inputs, targets, CLASSES, units, case.owners_n, weights=weights_of(case)
    )
    module = module_of(case).to(dtype)
    loss: Loss = SquaredError() if ridge else CrossEntropy(case.label_smoothing)
    active = active_parts(module)
    network = Network.of(module.eval(), loss, case.config.recursion.hvp, active)
    initial_P = network.layout.read(network.training)
    return Problem(case.config, data, network, initial_P, torch.device("cpu"))


def run_of(case: Case) -> Run:
    """The case as the oracle sees it, with the minibatches that the pipeline drew."""
    from pipeline.run.schedule import Schedule

    inputs, targets = data_of(case)
    module = module_of(case)
    initial_P = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    loss: LossFunction = squared_error if case.network == "ridge" else cross_entropy
    if case.label_smoothing:
        loss = smoothed_cross_entropy(case.label_smoothing)
    clip_norm = case.clip_norm
    training = case.config.training
    schedule = Schedule.draw(training, case.num_samples, case.config.seed)
    rates = tuple(case.learning_rate * 0.97**t for t in range(schedule.num_steps))
    l2, decay, scales = _by_parameter(case, module)
    return Run(
        module, loss, inputs, targets, schedule.sample_ids, rates, initial_P,
        l2, clip_norm, case.momentum, case.nesterov,
        case.optimizer, decay, (0.9, 0.999), case.eps, weights_of(case), scales,
    )  # fmt: skip


@dataclass(frozen=True)
class Computed:
    """What the pipeline made of a case."""

    problem: Problem
    trajectory: Trajectory
    rows_NP: Tensor


def in_unit_order(block: BlockRecursion) -> Tensor:
    """The rows of a block in the dtype they were computed in; `rows()` gives float32."""
    first = block.chunks[0].state.rows_KP
    out = first.new_full((len(block.units), first.shape[1]), float("nan"))
    for chunk in block.chunks:
        out[chunk.units - block.units.start] = block.approximators(chunk)
    return out


def whole_and_resumed(case: Case, folder: Path, stop: int) -> tuple[BlockRecursion, BlockRecursion]:
    """All units in one go, and saved before step `stop` and continued in another block."""
    problem = problem_of(case)
    recorded = record(problem, folder / "trajectory")
    whole, first, second = (
        BlockRecursion(problem, recorded, range(case.num_units)) for _ in range(3)
    )
    whole.advance(recorded.num_steps)
    first.advance(stop)
    first.save(folder / "state")
    second.restore(folder / "state")
    second.advance(recorded.num_steps)
    return whole, second


def compute(case: Case, folder: Path) -> Computed:
    """Train into `folder` and run the recursion for every unit in one block."""
    problem = problem_of(case)
    trajectory = record(problem, folder)
    block = BlockRecursion(problem, trajectory, range(case.num_units))
    block.advance(trajectory.num_steps)
    return Computed(problem, trajectory, in_unit_order(block))
