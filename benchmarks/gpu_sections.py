"""The sections of `benchmarks/gpu.py`. Each takes a `Bench` and sends rows as it finds them."""

# B minibatch rows, K tangents or units, P parameters

from __future__ import annotations

import copy
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from pipeline.approximators.recursion import low_precision
from pipeline.evaluation.throughput import (
    CASES,
    LEARNING_RATE,
    PRECISIONS,
    Case,
    Subject,
    Walk,
    conventions,
    matmul_rate,
    moving_walk,
    pairs,
    precision,
    products,
    seconds_of,
    synchronise,
)
from pipeline.hessian.hvp import Network
from pipeline.models.minibatch import Minibatch
from storage.encoding import ENCODINGS
from storage.quantization import encode

# Of configs/cifar10-resnet18.yaml: units, steps, samples of a minibatch.
RECIPE_UNITS, RECIPE_STEPS = 50_000, 7_840
FORMS = ("r-operator", "reverse", "forward-over-reverse")
MOST_TANGENTS = {"cuda": 4096, "cpu": 32}
# Without a GPU memory is not measured; a chunk's tangents and activations stay small.
CPU_BYTES = 2 << 30
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

    def speed(self, name: str, operations: float, seconds: float) -> dict[str, float]:
        """Return a row's figures of speed."""
        rate = operations / seconds
        return {"tflops": rate / 1e12, "share": rate / self.rate(name)}

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


def machine(bench: Bench) -> None:
    """Measure what everything else is compared with: products, memory, transfers."""
    device = bench.device
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        cudnn = torch.backends.cudnn.version()
        note = f"{about.total_memory / 2**30:.0f} GiB, {about.multi_processor_count} SMs, cuDNN {cudnn}"
        bench.emit(about.name, note=note)
    else:
        bench.emit(platform.processor() or "CPU", note=f"{torch.get_num_threads()} threads")
    for name in ("float64", *PRECISIONS):
        with bench.guard("matrix product", precision=name):
            bench.emit("matrix product", precision=name, tflops=bench.rate(name) / 1e12)
    num_bytes = (1 << 20) if bench.quick else (1 << 30 if device.type == "cuda" else 1 << 27)
    with bench.guard("copy in memory"):
        source = torch.empty(num_bytes // 4, device=device)
        target = torch.empty_like(source)
        seconds = seconds_of(lambda: target.copy_(source), device, bench.turn)
        bench.emit("copy in memory", note=f"{2 * num_bytes / seconds / 1e9:.4g} GB/s, both ways")
        host = torch.empty(num_bytes // 4, pin_memory=device.type == "cuda")
        seconds = seconds_of(lambda: host.copy_(source), device, bench.turn)
        bench.emit("copy to the host", note=f"{num_bytes / seconds / 1e9:.4g} GB/s, pinned memory")


def correctness(bench: Bench) -> None:
    """Compare every form of HVPs and every engine with float64 on the CPU."""
    for case in bench.cases()[:4]:
        small = replace(case, batch=4 if bench.quick or "resnet" in case.name else 16)
        with bench.guard(case.name):
            _forms(bench, small)
    for name in ("perceptron", "cnn"):
        small = replace(bench.case(name), batch=8)
        with bench.guard(name):
            _engines(bench, small)
    for (form, name), (error, case) in bench.worst.items():
        note = "largest of all networks, against float64 on the CPU"
        bench.emit(case, form=form, precision=name, error=error, note=note)


@contextmanager
def _run_settings() -> Iterator[None]:
    """Compute as a run with `recursion.dtype: float32` does today, torch's TF32 settings included."""
    settings = torch.backends.cudnn.allow_tf32
    with precision("float32"):
        torch.backends.cudnn.allow_tf32 = settings
        yield


def _forms(bench: Bench, case: Case) -> None:
    cpu, num = torch.device("cpu"), 3
    exact = Subject.of(case, cpu, torch.float64)
    # Tangent 1 leaves sample 0 out, tangent 2 samples 1 and 3.
    tangents, rows = [1, 2, 2], [0, 1, 3]
    # The oracle differentiates twice by autograd: no code in common with the R-operator.
    oracle = exact.network("reverse").linearize(exact.w_P, exact.batch)
    expected_KP = oracle.hessian_products(exact.tangents(num), pairs(tangents, rows, cpu))
    expected_UP = oracle.unit_gradients(pairs(tangents, rows, cpu))[1]
    kinds = [
        (device, name)
        for device in dict.fromkeys((cpu, bench.device))
        for name in ("float64", *PRECISIONS, "as a run's float32")
        if device == bench.device or name == "float64"
    ]
    for device, name in kinds:
        wide = torch.float64 if name == "float64" else torch.float32
        subject, settings = Subject.of(case, device, wide), _precision(name)
        owned = pairs(tangents, rows, device)
        for form in FORMS:
            if bench.left < 0:
                bench.emit(case.name, form=form, precision=name, note="skipped: time", shown=False)
                continue
            with bench.guard(case.name, form=form, precision=name), settings(), _eager():
                # As a step does: the shared pass first, and in low precision the products alone.
                here = subject.network(form).linearize(subject.w_P, subject.batch)
                here.gradient_sum()
                with low_precision(device.type, name):
                    found_KP = here.hessian_products(subject.tangents(num), owned)
                gradients_UP = here.unit_gradients(owned)[1]
                where = "" if device == bench.device else f" on the {device.type}"
                error = relative(found_KP, expected_KP)
                bench.compared(
                    case.name, f"{form}, products", f"{name}{where}", error, f"K = {num}"
                )
                error = relative(gradients_UP, expected_UP)
                label = f"{form}, units' gradients"
                bench.compared(case.name, label, f"{name}{where}", error, f"K = {num}")


def _precision(name: str) -> Callable[[], object]:
    return _run_settings if name == "as a run's float32" else lambda: precision(name)


def _eager() -> object:
    """Return a context in which nothing is compiled: the section `compile` does that."""
    return torch.compiler.set_stance("force_eager")


ENGINES = {
    "hvp, sgd, clipped": {"clip_norm": 0.5},
    "hvp, sgd, momentum": {"momentum": 0.9},
    "hvp, adamw": {"optimizer": "adamw"},
    "leave-one-out, sgd, clipped": {"engine": "leave-one-out", "clip_norm": 0.5},
    "leave-one-out, adamw": {"engine": "leave-one-out", "optimizer": "adamw"},
}
ENGINE_STEPS, ENGINE_UNITS, ENGINE_RATE = 6, 4, 0.05


def _engines(bench: Bench, case: Case) -> None:
    """Walk some steps with every engine; unit k owns sample k of each minibatch it meets."""
    exact = Subject.of(case, torch.device("cpu"), torch.float64)
    retrained_KP = _retrained(exact)
    for name, settings in ENGINES.items():
        with precision("float64"):
            expected_KP = _walked(exact, exact.network("reverse"), settings, "float32")
            if name == "leave-one-out, adamw":
                error = relative(expected_KP, retrained_KP)
                note = "float64 on the CPU, against retraining by torch.optim.AdamW"
                bench.emit(case.name, form=name, precision="float64", error=error, note=note)
        for asked in (*PRECISIONS, "as a run's float32"):
            with bench.guard(case.name, form=name, precision=asked), _precision(asked)():
                subject = Subject.of(case, bench.device)
                dtype = asked if asked in PRECISIONS else "float32"
                found_KP = _walked(subject, subject.network(), settings, dtype)
                error = relative(found_KP, expected_KP)
                note = f"approximators after {ENGINE_STEPS} steps, {ENGINE_UNITS} units"
                bench.compared(case.name, name, asked, error, note)


def _minibatch(subject: Subject, step: int) -> tuple[Minibatch, list[int]]:
    """Return a step's samples, and the units among them: unit k owns sample k."""
    size = len(subject.batch) // 2
    rows = [(step + place) % len(subject.batch) for place in range(size)]
    units = sorted(row for row in rows if row < ENGINE_UNITS)
    return subject.batch.take(torch.tensor(rows, device=subject.w_P.device)), units


def _walked(subject: Subject, network: Network, settings: dict[str, object], dtype: str) -> Tensor:
    rate = LEARNING_RATE if settings.get("optimizer") == "adamw" else ENGINE_RATE
    rules = conventions(dtype=dtype, **settings)
    walk = Walk.of(network, subject.w_P, rules, ENGINE_UNITS, rate)
    for step in range(ENGINE_STEPS):
        batch, units = _minibatch(subject, step)
        places = [(unit - step) % len(subject.batch) for unit in units]
        walk.step(batch, pairs(units, places, subject.w_P.device))
    return walk.rows()


def _retrained(subject: Subject) -> Tensor:
    """Return what leaving each unit out moves, by plain loops of torch, (K, P)."""

    def trained(left_out: int) -> Tensor:
        module = copy.deepcopy(subject.module)
        optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        for step in range(ENGINE_STEPS):
            size = len(subject.batch) // 2
            rows = [(step + place) % len(subject.batch) for place in range(size)]
            rows = [row for row in rows if row != left_out]
            optimizer.zero_grad()
            outputs = module(subject.batch.inputs[rows])
            nn.functional.cross_entropy(outputs, subject.batch.targets[rows]).backward()
            optimizer.step()
        return nn.utils.parameters_to_vector(module.parameters()).detach()

    end_P = trained(-1)
    return torch.stack([trained(unit) for unit in range(ENGINE_UNITS)]) - end_P


@dataclass
class Point:
    """One measured number of tangents."""

    num: int
    seconds: float
    mib_per_tangent: float | None


def throughput(bench: Bench) -> None:
    """Time products at K = 1, 2, 4, ... to the memory's limit, and what each precision costs."""
    cases = bench.cases()
    left = len(cases)
    # The largest networks first: they are what a GPU is rented for.
    for case in reversed(cases):
        share = bench.left / left
        left -= 1
        with bench.guard(case.name):
            _throughput_of(bench, case, share)


def _throughput_of(bench: Bench, case: Case, seconds: float) -> None:
    end = time.monotonic() + seconds
    subject = Subject.of(case, bench.device)
    found: dict[str, Tensor] = {}
    for place, name in enumerate(reversed(PRECISIONS)):
        # A part of the time is left for float64.
        here = time.monotonic() + (end - time.monotonic()) / (len(PRECISIONS) - place + 0.3)
        with bench.guard(case.name, precision=name), precision(name):
            best = _best_point(bench, case, subject, name, here)
            at = subject.network().linearize(subject.w_P, subject.batch)
            found[name] = products(subject, at, 2, name)().cpu()
            del at
            rules = conventions(dtype=name)
            run = moving_walk(subject, subject.network(), rules, best)
            per_unit = seconds_of(run, bench.device, bench.turn) / best
            bench.emit(
                case.name,
                form="r-operator, whole step",
                precision=name,
                K=best,
                ms=1e3 * per_unit,
                **bench.speed(name, subject.flops_per_product, per_unit),
                note=f"shared pass, products, sources and update; B = {case.batch}",
            )
    with bench.guard(case.name, precision="float64"), precision("float64"):
        exact = Subject.of(case, bench.device, torch.float64)
        at = exact.network().linearize(exact.w_P, exact.batch)
        expected_KP = at.hessian_products(exact.tangents(2), None)
        for name, found_KP in found.items():
            error = relative(found_KP, expected_KP)
            label = "r-operator, accuracy of the products"
            bench.emit(case.name, form=label, precision=name, error=error)


def _best_point(bench: Bench, case: Case, subject: Subject, name: str, end: float) -> int:
    """Time K = 1, 2, 4, ... until memory or time ends; return the fastest."""
    cuda, most = bench.device.type == "cuda", 2 if bench.quick else MOST_TANGENTS[bench.device_name]
    at = subject.network().linearize(subject.w_P, subject.batch)
    at.gradient_sum()
    points: list[Point] = []
    num, why = 1, ""
    while num <= most and not why:
        if not cuda and 8 * num * len(subject.w_P) * 4 > CPU_BYTES:
            why = "memory"
        # Four calls of twice the size must fit into the time that is left.
        elif points and time.monotonic() + 8 * points[-1].seconds > end:
            why = "time"
        else:
            try:
                points.append(_point(bench, subject, products(subject, at, num, name), num))
            except torch.OutOfMemoryError:
                why = "out of memory"
        if why:
            break
        per_tangent = points[-1].seconds / num
        bench.emit(
            case.name,
            form="r-operator",
            precision=name,
            K=num,
            ms=1e3 * per_tangent,
            **bench.speed(name, subject.flops_per_product, per_tangent),
            mib_per_tangent=points[-1].mib_per_tangent,
        )
        num *= 2
    if why:
        bench.emit(case.name, form="the next K", precision=name, K=num, note=f"not measured: {why}")
    if cuda:
        torch.cuda.empty_cache()
    return min(points, key=lambda point: point.seconds / point.num).num


def _point(bench: Bench, subject: Subject, run: Callable[[], Tensor], num: int) -> Point:
    cuda, memory = bench.device.type == "cuda", None
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        # The tangents themselves are allocated already, and count.
        before = torch.cuda.memory_allocated() - num * len(subject.w_P) * 4
    run()
    if cuda:
        memory = (torch.cuda.max_memory_allocated() - before) / num / 2**20
    return Point(num, seconds_of(run, bench.device, bench.turn), memory)


def recipe(bench: Bench) -> None:
    """Walk CIFAR-10's recipe with made-up pictures: all of a step but its disk."""
    case = bench.case("resnet18")
    device, num_samples = bench.device, 64 if bench.quick else RECIPE_UNITS
    subject = Subject.of(case, device)
    generator = torch.Generator(device=device).manual_seed(2)
    inputs = torch.randn(num_samples, *case.inputs, device=device, generator=generator)
    targets = torch.randint(0, 10, (num_samples,), device=device, generator=generator)
    chunks = (2,) if bench.quick else ((8,) if device.type == "cpu" else (32, 64, 128, 256))
    tries = [(name, num) for name in ("bfloat16", "tf32") for num in chunks]
    for place, (name, num) in enumerate(tries):
        end = time.monotonic() + bench.left / (len(tries) - place)
        with bench.guard("CIFAR-10", precision=name, K=num), precision(name):
            walk = Walk.of(
                subject.network(), subject.w_P, conventions(dtype=name, clip_norm=10.0), num
            )
            # As after an epoch: every unit is under way.
            walk.chunk = replace(walk.chunk, num_visited=num)
            steps, seconds = 0, 0.0
            order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(3)).to(
                device
            )
            longer = not bench.quick
            while steps < 2 or (longer and time.monotonic() + 2 * seconds / steps < end):
                ids = order.roll(-steps * case.batch)[: case.batch]
                # A chunk's units own the first samples of the data.
                rows = torch.nonzero(ids < num).squeeze(1)
                rows = rows[torch.argsort(ids[rows])]
                synchronise(device)
                began = time.perf_counter()
                owned = pairs(ids[rows].tolist(), rows.tolist(), device)
                walk.step(Minibatch(inputs[ids], targets[ids]), owned)
                synchronise(device)
                seconds += (time.perf_counter() - began) * (steps > 0)  # the first warms up
                steps += 1
            per_unit = seconds / (steps - 1) / num
            finite = bool(torch.isfinite(walk.rows().sum()))
            per_hour = 3600 / per_unit / RECIPE_STEPS
            note = f"{steps - 1} steps; {per_hour:.4g} rows an hour; {RECIPE_UNITS:,} rows in " \
                f"{RECIPE_UNITS / per_hour:.4g} hours{'' if finite else '; NOT FINITE'}"  # fmt: skip
            bench.emit(
                "CIFAR-10",
                form=case.name,
                precision=name,
                K=num,
                ms=1e3 * per_unit,
                **bench.speed(name, subject.flops_per_product, per_unit),
                note=note,
            )


def engines(bench: Bench) -> None:
    """Time the loop, automatic forms, leave-one-out and AdamW beside the R-operator."""
    cases = [case for case in bench.cases() if case.name != "resnet18, small stem"]
    for case in reversed(cases):
        subject = Subject.of(case, bench.device)
        operations, num = subject.flops_per_product, 2 if bench.quick else 64
        if "resnet" in case.name:
            num = min(num, 16)
        runs: list[tuple[str, str, int, Callable[[], object]]] = []
        for name in ("tf32", "bfloat16"):
            for optimizer in ("sgd", "adamw"):
                rules = conventions(optimizer, dtype=name)
                run = moving_walk(subject, subject.network(), rules, num)
                runs.append((f"r-operator, {optimizer} step", name, num, run))
        for optimizer in ("sgd", "adamw"):
            rules = conventions(optimizer, "leave-one-out")
            run = moving_walk(subject, subject.network(), rules, num)
            runs.append((f"leave-one-out, {optimizer} step", "tf32", num, run))
        few = min(num, 4)
        for form in ("reverse", "forward-over-reverse"):
            if bench.device.type == "cpu" and form == FORMS[2] and case.name == CASES[3].name:
                continue  # minutes, and never the choice there
            at = subject.network(form).linearize(subject.w_P, subject.batch)
            label = "loop, one autograd.grad per tangent" if form == "reverse" else f"{form}, eager"
            runs.append((label, "tf32", few, products(subject, at, few, "tf32")))
        for label, name, count, run in runs:
            if bench.left < 0:
                bench.emit(case.name, form=label, precision=name, note="skipped: time")
                continue
            with bench.guard(case.name, form=label, precision=name), _eager():
                seconds, note = _deterministic_if_possible(bench, run, name)
                bench.emit(
                    case.name,
                    form=label,
                    precision=name,
                    K=count,
                    ms=1e3 * seconds / count,
                    **bench.speed(name, operations, seconds / count),
                    note=note,
                )


def _deterministic_if_possible(
    bench: Bench, run: Callable[[], object], name: str
) -> tuple[float, str]:
    """Return the seconds of a call, and what of it torch refuses to do deterministically."""
    try:
        with precision(name):
            return seconds_of(run, bench.device, bench.turn), ""
    except RuntimeError as error:
        if "determinis" not in str(error):
            raise
        reason = str(error).splitlines()[0][:90]
    with precision(name, deterministic=False):
        return seconds_of(run, bench.device, bench.turn), f"not deterministic: {reason}"


def variants(bench: Bench) -> None:
    """Time what a run does not do today: other settings, channels-last, CUDA graphs."""
    num = 2 if bench.quick else (8 if bench.device.type == "cpu" else 32)
    names = ["resnet18", "cnn", "perceptron"]
    for case in [bench.case(name) for name in names]:
        subject = Subject.of(case, bench.device)
        for name in ("bfloat16", "tf32"):
            if bench.left < 0:
                bench.emit(case.name, precision=name, note="skipped: time")
                continue
            with bench.guard(case.name, precision=name):
                _variants_of(bench, case, subject, name, num)


def _whole(subject: Subject, batch: Minibatch, num: int, name: str) -> Callable[[], Tensor]:
    """Return a call of the shared pass and the products of K tangents."""
    rows_KP, network = subject.tangents(num), subject.network()

    def run() -> Tensor:
        at = network.linearize(subject.w_P, batch)
        with low_precision(subject.w_P.device.type, name):
            return at.hessian_products(rows_KP, None)

    return run


def _variants_of(bench: Bench, case: Case, subject: Subject, name: str, num: int) -> None:
    operations, device = subject.flops_per_product, bench.device
    run = _whole(subject, subject.batch, num, name)
    with precision(name):
        reference_KP = run()
        base = seconds_of(run, device, bench.turn)

    def report(label: str, seconds: float, found_KP: Tensor) -> None:
        bench.emit(
            case.name,
            form=label,
            precision=name,
            K=num,
            ms=1e3 * seconds / num,
            **bench.speed(name, operations, seconds / num),
            error=relative(found_KP, reference_KP),
            note=f"{base / seconds:.2f} times as fast as a run's way; error against it",
        )

    report("shared pass and products, as a run", base, reference_KP)
    label = "not deterministic"
    with (
        bench.guard(case.name, form=label, precision=name),
        precision(name, deterministic=False),
    ):
        report(label, seconds_of(run, device, bench.turn), run())
    with bench.guard(case.name, form="cudnn.benchmark", precision=name):
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            with precision(name, deterministic=False):
                report("cudnn.benchmark, not det.", seconds_of(run, device, bench.turn), run())
        finally:
            torch.backends.cudnn.benchmark = before
    if len(case.inputs) == 3 and case.name != "perceptron":
        with bench.guard(case.name, form="channels-last inputs", precision=name), precision(name):
            last = subject.batch.inputs.contiguous(memory_format=torch.channels_last)
            other = _whole(subject, replace(subject.batch, inputs=last), num, name)
            report("channels-last inputs", seconds_of(other, device, bench.turn), other())
    if device.type != "cuda":
        bench.emit(case.name, form="CUDA graph", precision=name, note="skipped: needs a GPU")
        return
    with bench.guard(case.name, form="CUDA graph", precision=name), precision(name):
        replay, out_KP = _captured(run)
        report("CUDA graph", seconds_of(replay, device, bench.turn), out_KP)


def _captured(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Return a call that replays `run` as a CUDA graph, and the tensor that it writes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph.replay, out


def layers(bench: Bench) -> None:
    """Time the convolutions of a product one by one, in both memory layouts, and its kernels."""
    case = bench.case("resnet18")
    num = 2 if bench.quick else (8 if bench.device.type == "cpu" else 32)
    subject = Subject.of(case, bench.device)
    shapes = list(_convolutions(subject).items())
    for label, at in shapes[:2] if bench.quick else shapes:
        if bench.left < 5 * bench.turn:
            bench.emit(label, note="skipped: time")
            continue
        for name in ("bfloat16", "tf32"):
            for layout in ("contiguous", "channels-last"):
                if bench.left < 0:
                    break
                with bench.guard(label, form=layout, precision=name), precision(name):
                    _layer(bench, label, at, case.batch, num, name, layout)
    with bench.guard("kernels of a product"):
        _kernels(bench, subject, num)


@dataclass(frozen=True)
class _Layer:
    """A convolution and the size of the maps that it meets."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    side: int


def _convolutions(subject: Subject) -> dict[str, _Layer]:
    """Return the different convolutions of a network, named by what they do."""
    found: dict[str, _Layer] = {}

    def seen(module: nn.Module, passed: tuple[Tensor, ...], output: Tensor) -> None:
        side = passed[0].shape[-1]
        at = _Layer(
            module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0],
            module.padding[0], side,
        )  # fmt: skip
        name = f"conv {at.kernel}x{at.kernel} {at.inputs}-{at.outputs}, {side}x{side}"
        found[f"{name}, stride {at.stride}"] = at

    handles = [
        module.register_forward_hook(seen)
        for module in subject.module.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        subject.module(subject.batch.inputs[:1])
    for handle in handles:
        handle.remove()
    return found


def _layer(
    bench: Bench, label: str, at: _Layer, batch: int, num: int, name: str, layout: str
) -> None:
    """Time four kinds of products of a layer, as `ConvolutionTape` takes them."""
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    memory = torch.channels_last if layout == "channels-last" else torch.contiguous_format

    def made(*shape: int) -> Tensor:
        values = torch.randn(*shape, device=bench.device, dtype=dtype)
        return values.contiguous(memory_format=memory)

    kernel = (at.kernel, at.kernel)
    shared, folded = (
        made(batch, at.inputs, at.side, at.side),
        made(batch * num, at.inputs, at.side, at.side),
    )
    weight, wide = made(at.outputs, at.inputs, *kernel), made(num * at.outputs, at.inputs, *kernel)
    settings = ([at.stride] * 2, [at.padding] * 2, [1, 1])

    def forward(inputs: Tensor, weights: Tensor) -> Tensor:
        return nn.functional.conv2d(inputs, weights, None, *settings)

    def backward(delta: Tensor, inputs: Tensor, weights: Tensor, place: int) -> Tensor:
        mask = [place == 0, place == 1, False]
        return torch.ops.aten.convolution_backward(
            delta, inputs, weights, None, *settings, False, [0, 0], 1, mask
        )[place]

    delta_wide, delta_folded = forward(shared, wide), forward(folded, weight)
    out_side = delta_folded.shape[-1]
    operations = 2 * batch * num * at.outputs * at.inputs * at.kernel**2 * out_side**2
    runs = {
        "x * dW": lambda: forward(shared, wide),
        "Rx * W": lambda: forward(folded, weight),
        "Rdelta, x": lambda: backward(delta_wide, shared, wide, 1),
        "Rdelta *^T W": lambda: backward(delta_folded, folded, weight, 0),
    }
    spent = 0.0
    for kind, run in runs.items():
        seconds = seconds_of(run, bench.device, bench.turn / 4)
        spent += seconds
        bench.emit(
            label,
            form=f"{kind}, {layout}",
            precision=name,
            K=num,
            ms=1e3 * seconds,
            **bench.speed(name, operations, seconds),
            shown=False,
        )
    bench.emit(
        label,
        form=f"convolution, {layout}",
        precision=name,
        K=num,
        ms=1e3 * spent,
        **bench.speed(name, len(runs) * operations, spent),
        note=f"{', '.join(runs)}: one call each for all K; taps on padding counted",
    )


def _kernels(bench: Bench, subject: Subject, num: int) -> None:
    """Say which kernels a product spends its time in."""
    cuda = bench.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for name in ("bfloat16",) if bench.quick else ("bfloat16", "tf32"):
        run = _whole(subject, subject.batch, num, name)
        with precision(name):
            run()
            with torch.profiler.profile(activities=activities) as profile:
                run()
                synchronise(bench.device)
        timed = "self_device_time_total" if cuda else "self_cpu_time_total"
        events = [event for event in profile.key_averages() if getattr(event, timed) > 0]
        total = sum(getattr(event, timed) for event in events)
        events.sort(key=lambda event: -getattr(event, timed))
        for event in events[:8]:
            spent = getattr(event, timed)
            bench.emit(
                event.key[:60],
                form="kernels of a product",
                precision=name,
                K=num,
                ms=spent / 1e3,
                note=f"{spent / total:.1%} of a pass with K products; {event.count} calls",
            )


def encoding(bench: Bench) -> None:
    """Encode approximators on the device and on the CPU: the same bytes, at which rate."""
    width, num = (
        (10_000, 2) if bench.quick else (11_181_642, 8 if bench.device.type == "cuda" else 2)
    )
    generator = torch.Generator().manual_seed(4)
    rows_KP = (1e-3 * torch.randn(num, width, generator=generator)).to(bench.device)
    gigabytes = num * width * 4 / 1e9
    for name, encoder in (("int8", _int8), ("float16", _float16)):
        with bench.guard(f"encoding to {name}", form=bench.device.type):
            codes, scales = encoder(rows_KP)
            stored = encode(rows_KP[0].cpu().numpy(), name)
            same = np.array_equal(codes[0].cpu().numpy().view(np.uint8), stored.codes)
            same &= np.array_equal(scales[0].cpu().numpy().view(np.uint16), stored.scales)
            seconds = seconds_of(partial(encoder, rows_KP), bench.device, bench.turn)
            fetching = seconds_of(partial(_fetched, encoder, rows_KP), bench.device, bench.turn)
            bench.emit(
                f"encoding to {name}",
                form=f"torch on {bench.device.type}",
                K=num,
                ms=1e3 * seconds / num,
                note=f"a row; {gigabytes / seconds:.4g} GB/s of float32; with the copy "
                f"to the host {1e3 * fetching / num:.4g} ms; "
                f"bytes {'equal' if same else 'DIFFER from'} the store's",
            )
        with bench.guard(f"encoding to {name}", form="the store, CPU"):
            row = rows_KP[0].cpu().numpy()
            seconds = seconds_of(partial(encode, row, name), torch.device("cpu"), bench.turn)
            bench.emit(
                f"encoding to {name}",
                form="the store's own, one thread of the CPU",
                ms=1e3 * seconds,
                note=f"a row; {row.nbytes / seconds / 1e9:.4g} GB/s; it measures the error as well",
            )


def _fetched(encoder: Callable[[Tensor], tuple[Tensor, Tensor]], rows_KP: Tensor) -> list[Tensor]:
    return [part.cpu() for part in encoder(rows_KP)]


def _scales_above(bounds: Tensor) -> Tensor:
    """Return the bits of the smallest bfloat16 not below each bound, as int16."""
    least = torch.full_like(bounds, 2.0**-126)
    bits = torch.where(bounds > 0, torch.maximum(bounds, least), torch.zeros_like(bounds))
    return ((bits.view(torch.int32) + 0xFFFF) >> 16).to(torch.int16)


def _from_bits(scales: Tensor) -> Tensor:
    return (scales.to(torch.int32) << 16).view(torch.float32)


def _int8(rows_KP: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes (K, P) int8 and scales (K, S), the bits of bfloat16, as `storage` encodes."""
    block = ENCODINGS["int8"].scale_block
    num, width = rows_KP.shape
    blocks = nn.functional.pad(rows_KP, (0, -width % block)).view(num, -1, block)
    # Divided by a number on the CPU, a GPU would multiply by its rounded reciprocal.
    divisor = torch.tensor(127.0, device=rows_KP.device)
    scales = _scales_above(torch.div(blocks.abs().amax(2), divisor))
    factors = _from_bits(scales)[:, :, None]
    codes = torch.where(factors != 0, blocks / factors, torch.zeros_like(blocks))
    codes = codes.round_().clamp_(-127, 127).to(torch.int8)
    return codes.view(num, -1)[:, :width].contiguous(), scales


def _float16(rows_KP: Tensor) -> tuple[Tensor, Tensor]:
    """As `_int8`; one power of two per block, so that the peak lies in [2^14, 2^15]."""
    block = ENCODINGS["float16"].scale_block
    num, width = rows_KP.shape
    blocks = nn.functional.pad(rows_KP, (0, -width % block)).view(num, -1, block)
    exponents = torch.frexp(blocks.abs().amax(2))[1].sub(15).clamp(-125, 113)
    factors = torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents)
    codes = (blocks / factors[:, :, None]).to(torch.float16)
    scales = (factors.view(torch.int32) >> 16).to(torch.int16)
    return codes.view(num, -1)[:, :width].contiguous(), scales


def compiled(bench: Bench) -> None:
    """Try `torch.compile` on both forms; the process is ended where that takes too long."""
    num = 2 if bench.quick else 16
    backend = "eager" if bench.quick else "inductor"
    for name in ("perceptron",) if bench.quick else ("perceptron", "resnet18"):
        case, precise = bench.case(name), "bfloat16"
        subject = Subject.of(case, bench.device)
        for form in ("r-operator", "forward-over-reverse"):
            if form == FORMS[2] and bench.device.type == "cpu" and case.name == CASES[3].name:
                continue
            with bench.guard(case.name, form=form, precision=precise), precision(precise):
                _compiled(bench, case, subject, form, num, backend)


def _compiled(
    bench: Bench, case: Case, subject: Subject, form: str, num: int, backend: str
) -> None:
    network, rows_KP = subject.network(form), subject.tangents(num)

    def run(w_P: Tensor, rows_KP: Tensor, batch: Minibatch) -> Tensor:
        at = network.linearize(w_P, batch)
        with low_precision(w_P.device.type, "bfloat16"):
            return at.hessian_products(rows_KP, None)

    arguments = (subject.w_P, rows_KP, subject.batch)
    with _eager():
        expected_KP = run(*arguments)
        plain = seconds_of(lambda: run(*arguments), bench.device, bench.turn)
    # On a GPU this form compiles itself.
    own = form == "forward-over-reverse" and bench.device.type == "cuda"
    fast = run if own else torch.compile(run, backend=backend, dynamic=False)
    began = time.perf_counter()
    found_KP = fast(*arguments)
    synchronise(bench.device)
    waited = time.perf_counter() - began
    seconds = seconds_of(lambda: fast(*arguments), bench.device, bench.turn)
    bench.emit(
        case.name,
        form=f"{form}, compiled",
        precision="bfloat16",
        K=num,
        ms=1e3 * seconds / num,
        **bench.speed("bfloat16", subject.flops_per_product, seconds / num),
        error=relative(found_KP, expected_KP),
        note=f"{plain / seconds:.2f} times as fast as eager; {waited:.1f} s to compile; "
        "error against eager",
    )
