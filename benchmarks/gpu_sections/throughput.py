"""Rates of products by the number of tangents and by precision, and those of a whole recipe."""

# K tangents, P parameters

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpu_sections.bench import Bench, relative
from pipeline.evaluation.throughput import (
    PRECISIONS,
    Case,
    Subject,
    Walk,
    conventions,
    moving_walk,
    pairs,
    precision,
    products,
    seconds_of,
    synchronise,
)
from pipeline.models.minibatch import Minibatch

# Of configs/cifar10-resnet18.yaml: units, steps, samples of a minibatch.
RECIPE_UNITS, RECIPE_STEPS = 50_000, 7_840
MOST_TANGENTS = {"cuda": 4096, "cpu": 32}
# Without a GPU memory is not measured; a chunk's tangents and activations stay small.
CPU_BYTES = 2 << 30


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
                **bench.timing(name, best, subject.flops_per_product, per_unit),
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
            **bench.timing(name, num, subject.flops_per_product, per_tangent),
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
                **bench.timing(name, num, subject.flops_per_product, per_unit),
                note=note,
            )
