"""Every form of Hessian products and every engine against float64 on the CPU."""

# K tangents or units, P parameters

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from gpu_sections.bench import FORMS, Bench, eager, relative
from pipeline.approximators.recursion import low_precision
from pipeline.evaluation.throughput import (
    LEARNING_RATE,
    PRECISIONS,
    Case,
    Subject,
    Walk,
    conventions,
    pairs,
    precision,
)
from pipeline.hessian.hvp import Network
from pipeline.models.minibatch import Minibatch


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
            with bench.guard(case.name, form=form, precision=name), settings(), eager():
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
