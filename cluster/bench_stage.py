"""`unlearn bench`: the rates of this machine, measured once and kept (`rates_file.py`).

A small network of each kind is timed with the chunk that a run would choose. A plan for GPUs whose
speed nobody states takes the rate of the nearest kind.
"""

# K units of a chunk

import platform
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cluster.rates_file import Bench, Measured, kind_of
from pipeline.evaluation.throughput import (
    CASES,
    PRECISIONS,
    Case,
    Subject,
    conventions,
    matmul_rate,
    moving_walk,
    precision,
    seconds_of,
)
from pipeline.hessian.chunking import tangents_per_chunk
from pipeline.sizes import MOST_TANGENTS

# On a CPU convolutions are slow enough that few samples fill it.
CPU_BATCH, CPU_IMAGES = 256, 8


def kind_of_module(module: nn.Module, num_parameters: int) -> str:
    """Return the kind of network that a module is."""
    layers = [type(child) for child in module.modules()]
    return kind_of(layers.count(nn.Linear), num_parameters, convolves=nn.Conv2d in layers)


def measure(
    device: torch.device, seconds: float, report: Callable[[int, int], None], cases: int = 4
) -> Bench:
    """Measure this machine.

    Args:
        device: Where.
        seconds: To take in all, about; a slow machine may take longer for its last call.
        report: Called with the measurements done and those there are.
        cases: How many of `CASES`, the smallest first.
    """
    on_gpu = device.type == "cuda"
    # On a CPU TF32 is float32.
    names = PRECISIONS if on_gpu else ("float32", "bfloat16")
    turn = seconds / 60
    matmul = {name: matmul_rate(device, name, budget=turn) for name in names}
    products: list[Measured] = []
    end = time.monotonic() + seconds
    asked = [(case, name) for case in CASES[:cases] for name in names]
    for done, (case, name) in enumerate(asked):
        report(done, len(asked))
        if time.monotonic() < end:
            products.append(_measured(_sized(case, on_gpu), name, device, turn, matmul[name]))
    report(len(asked), len(asked))
    return Bench(
        device=torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        device_type=device.type,
        memory_bytes=torch.cuda.get_device_properties(device).total_memory if on_gpu else 0,
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        matmul=matmul,
        products=tuple(products),
    )


def _sized(case: Case, on_gpu: bool) -> Case:
    if on_gpu:
        return case
    return replace(
        case, batch=CPU_IMAGES if len(case.inputs) == 3 and case.inputs[0] == 3 else CPU_BATCH
    )


def _measured(case: Case, name: str, device: torch.device, turn: float, matmul: float) -> Measured:
    subject = Subject.of(case, device)
    network, rules = subject.network(), conventions(dtype=name)
    batch = subject.batch
    chunk = tangents_per_chunk(network, batch.inputs[:1], case.batch, MOST_TANGENTS)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        subject.module(batch.inputs[:1])
    forward = float(counter.get_total_flops()) * case.batch
    with precision(name):
        primal = seconds_of(
            lambda: network.linearize(subject.w_P, batch).gradient_sum(), device, turn
        )
        step, chunk = _step_seconds(subject, rules, chunk, device, turn)
    product = max(step - primal, step / 10) / chunk
    return Measured(
        case=case.name,
        precision=name,
        chunk=chunk,
        batch=case.batch,
        product_seconds=product,
        primal_seconds=primal,
        forward_flops=forward,
        share=subject.flops_per_product / product / matmul,
    )


def _step_seconds(
    subject: Subject, rules: Any, chunk: int, device: torch.device, turn: float
) -> tuple[float, int]:
    """Return the seconds of a step, and the units that fitted into the device's memory."""
    while True:
        try:
            return seconds_of(
                moving_walk(subject, subject.network(), rules, chunk), device, turn
            ), chunk
        except torch.OutOfMemoryError:
            if chunk < 2:
                raise
        chunk //= 2


def bench_table(bench: Bench) -> Table:
    """Return the rates as a table for people."""
    table = Table(title=f"{bench.device}, torch {bench.torch}, {bench.threads} threads")
    for name in ("network", "precision", "K", "batch", "ms per HVP", "share of matrix products"):
        table.add_column(name, justify="left" if name in ("network", "precision") else "right")
    for each in bench.products:
        table.add_row(
            each.case,
            each.precision,
            str(each.chunk),
            str(each.batch),
            f"{1e3 * each.product_seconds:.4g}",
            f"{each.share:.1%}",
        )
    return table
