"""A row of the benchmark, and what a section has to work with: device, time, networks."""

# K tangents, P parameters

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from pipeline.approximators.recursion import low_precision
from pipeline.evaluation.throughput import CASES, Case, Subject, matmul_rate
from pipeline.models.minibatch import Minibatch

FORMS = ("r-operator", "reverse", "forward-over-reverse")
QUICK_SHAPES = {1: (1, 12, 12), 3: (3, 16, 16)}
SMALL_BATCH = {"quick": 4, "cpu": 32}


@dataclass
class Row:
    """One measured figure with what belongs to it; None where there is none.

    Attributes:
        section: Of the benchmark.
        case: Network, or what else is measured.
        form: Of the Hessian products, or how it is done.
        precision: Of the products.
        K: Tangents or units together.
        ms: Milliseconds per tangent, per unit, or of a call, as `note` says.
        tflops: 10^12 operations per second.
        share: Of the machine's matrix products in this precision.
        mib_per_tangent: Memory that a further tangent takes, its own parameters included.
        error: Relative difference |x - reference| / |reference|, float64 unless `note` says otherwise.
        note: In words.
        shown: Whether the table has it; the JSON file has all.
    """

    section: str
    case: str
    form: str = "-"
    precision: str = "-"
    K: int | None = None
    ms: float | None = None
    tflops: float | None = None
    share: float | None = None
    mib_per_tangent: float | None = None
    error: float | None = None
    note: str = ""
    shown: bool = True

    def cells(self) -> list[str]:
        """Return the row as texts, in the order of its fields."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "shown"}
        if self.share is not None:
            values["share"] = f"{self.share:.1%}"
        return [_text(value) for value in values.values()]

    def line(self) -> str:
        """Return the row as one line of progress."""
        return " ".join(text for text in self.cells()[1:] if text != "-")


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


@dataclass
class Bench:
    """One section's surroundings: the device, the time it has, and where rows go."""

    section: str
    device_name: str
    quick: bool
    deadline: float
    send: Callable[[Row], None]
    worst: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)
    _rates: dict[str, float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return torch.device(self.device_name)

    @property
    def left(self) -> float:
        """Seconds until the section should stop."""
        return self.deadline - time.monotonic()

    @property
    def turn(self) -> float:
        """Seconds that one measurement may take."""
        return 0.01 if self.quick else min(0.5, max(0.05, self.left / 100))

    def emit(self, case: str, **values: object) -> None:
        """Send a row of this section."""
        self.send(Row(self.section, case, **values))

    def compared(self, case: str, form: str, name: str, error: float, note: str) -> None:
        """Send a comparison that the table leaves out; `worst` keeps the largest of its kind."""
        self.emit(case, form=form, precision=name, error=error, note=note, shown=False)
        if error >= self.worst.get((form, name), (-1.0, ""))[0] or error != error:
            self.worst[form, name] = error, case

    @contextmanager
    def guard(self, case: str, **values: object) -> Iterator[None]:
        """Turn a failure into a row with its reason, so that the rest goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever fails here must not take the rest along
            traceback.print_exc(file=sys.stderr)
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            self.emit(case, note=f"failed: {type(error).__name__}: {reason}", **values)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def rate(self, name: str) -> float:
        """Return the operations per second of a large matrix product, measured once a process."""
        if name not in self._rates:
            side = 128 if self.quick else None
            self._rates[name] = matmul_rate(self.device, name, side, self.turn)
        return self._rates[name]

    def timing(self, name: str, num: int, operations: float, seconds: float) -> dict[str, object]:
        """Return what a row says of so many operations that took so long, with `num` tangents."""
        rate = operations / seconds
        share = rate / self.rate(name)
        ms = 1e3 * seconds
        return {"precision": name, "K": num, "ms": ms, "tflops": rate / 1e12, "share": share}

    def cases(self) -> list[Case]:
        """Return the networks at this device's sizes."""
        if self.quick:
            small = Case("resnet18 made small", small_resnet, CASES[3].inputs, CASES[3].batch)
            return [
                replace(case, inputs=QUICK_SHAPES[case.inputs[0]], batch=SMALL_BATCH["quick"])
                for case in (*CASES[:3], small)
            ]
        if self.device.type == "cpu":
            few = SMALL_BATCH["cpu"]
            return [
                replace(case, batch=few // 8 if "resnet" in case.name else few) for case in CASES
            ]
        return list(CASES)

    def case(self, name: str) -> Case:
        """Return the first network whose name begins so."""
        return next(case for case in self.cases() if case.name.startswith(name))


def small_resnet(shape: tuple[int, ...]) -> nn.Module:
    """Return the kinds of layers of ResNet-18 in a network of 6,000 parameters."""
    down = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
    return nn.Sequential(
        nn.Conv2d(shape[0], 8, 7, 2, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        BasicBlock(8, 8),
        BasicBlock(8, 16, 2, down),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def relative(found: Tensor, reference: Tensor) -> float:
    """Return |found - reference| / |reference|, in float64 on the CPU."""
    found, reference = found.detach().cpu().double(), reference.detach().cpu().double()
    return float((found - reference).norm() / reference.norm())


def eager() -> object:
    """Return a context in which nothing is compiled: the section `compile` does that."""
    return torch.compiler.set_stance("force_eager")


def whole_pass(subject: Subject, batch: Minibatch, num: int, name: str) -> Callable[[], Tensor]:
    """Return a call of the shared pass and the products of K tangents."""
    rows_KP, network = subject.tangents(num), subject.network()

    def run() -> Tensor:
        at = network.linearize(subject.w_P, batch)
        with low_precision(subject.w_P.device.type, name):
            return at.hessian_products(rows_KP, None)

    return run
