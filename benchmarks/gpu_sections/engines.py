"""The engines and forms beside each other, settings that a run does not use, and compilation."""

# K tangents, P parameters

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gpu_sections.bench import FORMS, Bench, eager, relative, whole_pass
from pipeline.approximators.recursion import low_precision
from pipeline.evaluation.throughput import (
    CASES,
    Case,
    Subject,
    conventions,
    moving_walk,
    precision,
    products,
    seconds_of,
    synchronise,
)
from pipeline.models.minibatch import Minibatch


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
            with bench.guard(case.name, form=label, precision=name), eager():
                seconds, note = _deterministic_if_possible(bench, run, name)
                bench.emit(
                    case.name,
                    form=label,
                    **bench.timing(name, count, operations, seconds / count),
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


def _variants_of(bench: Bench, case: Case, subject: Subject, name: str, num: int) -> None:
    operations, device = subject.flops_per_product, bench.device
    run = whole_pass(subject, subject.batch, num, name)
    with precision(name):
        reference_KP = run()
        base = seconds_of(run, device, bench.turn)

    def report(label: str, seconds: float, found_KP: Tensor) -> None:
        bench.emit(
            case.name,
            form=label,
            **bench.timing(name, num, operations, seconds / num),
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
            other = whole_pass(subject, replace(subject.batch, inputs=last), num, name)
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
    with eager():
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
        **bench.timing("bfloat16", num, subject.flops_per_product, seconds / num),
        error=relative(found_KP, expected_KP),
        note=f"{plain / seconds:.2f} times as fast as eager; {waited:.1f} s to compile; "
        "error against eager",
    )
