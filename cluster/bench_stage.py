"""`unlearn bench`: the rates of this machine, measured once and kept for `unlearn plan`.

    ~/.cache/unlearn/bench.json        or below XDG_CACHE_HOME

A small network of each kind is timed with the chunk that a run would choose. A plan for GPUs whose
speed nobody states takes the rate of the nearest kind.
"""

# K units of a chunk

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ConfigError
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
from pipeline.hessian.chunking import MOST_TANGENTS, tangents_per_chunk
from storage.durable_write import write_atomically

FORMAT = 1
# On a CPU convolutions are slow enough that few samples fill it.
CPU_BATCH, CPU_IMAGES = 256, 8
# Networks with convolutions and at least so many parameters are bound by them as ResNet-18 is.
LARGE = 1_000_000


@dataclass(frozen=True)
class Measured:
    """What one kind of network does in one precision.

    Attributes:
        case: The network, one of `CASES`.
        precision: Of the products.
        chunk: K.
        batch: |B|.
        product_seconds: One Hessian product with sources and update, the shared pass apart.
        primal_seconds: The shared pass.
        forward_flops: Of the network on the minibatch, as a plan counts them.
        share: Of a large matrix product in the same precision, by counted operations.
    """

    case: str
    precision: str
    chunk: int
    batch: int
    product_seconds: float
    primal_seconds: float
    forward_flops: float
    share: float

    @property
    def sustained(self) -> float:
        """Operations per second as a plan counts them: six forward passes for a product."""
        return 6 * self.forward_flops / self.product_seconds


@dataclass(frozen=True)
class Bench:
    """The rates of a machine.

    Attributes:
        device: Name of what computed.
        device_type: cpu or cuda.
        memory_bytes: Of the GPU; 0 without one.
        threads: Of the CPU.
        torch: Version.
        matmul: Operations per second of a large matrix product, by precision.
        products: By network and precision.
    """

    device: str
    device_type: str
    memory_bytes: int
    threads: int
    torch: str
    matmul: dict[str, float]
    products: tuple[Measured, ...]

    def nearest(self, module: nn.Module, num_parameters: int, dtype: str) -> Measured | None:
        """Return what was measured of the kind of network that `module` is, or None."""
        kind = _kind(module, num_parameters)
        return next((m for m in self.products if (m.case, m.precision) == (kind, dtype)), None)


def _kind(module: nn.Module, num_parameters: int) -> str:
    layers = [type(child) for child in module.modules()]
    if nn.Conv2d in layers:
        return CASES[3].name if num_parameters >= LARGE else CASES[2].name
    return CASES[1].name if layers.count(nn.Linear) > 1 else CASES[0].name


def bench_file() -> Path:
    """Return where the rates of this machine are kept."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # As the XDG specification says, a relative path does not count.
    folder = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return folder / "unlearn" / "bench.json"


def store(bench: Bench, path: Path) -> None:
    """Keep the rates, for this user alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **asdict(bench)}, indent=1)
    write_atomically(path, text.encode(), 0o600)


def stored(path: Path) -> Bench | None:
    """Return the rates that were kept, or None if there are none.

    Raises:
        ConfigError: If the file is damaged or of another version.
    """
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise ValueError("another version")
        products = tuple(Measured(**each) for each in values.pop("products"))
        return Bench(products=products, **values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} does not hold rates that this version reads ({type(error).__name__}); measure "
            "again with `unlearn bench`, or remove it"
        ) from error


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
