"""`unlearn plan --units --samples`: a plan from counts alone. Needs no data, no model and no torch."""

from dataclasses import dataclass, replace
from typing import Any

import psutil

from cluster.counted import (
    Counts,
    count,
    fitting_chunk,
    kind_of_model,
    network_counts,
)
from cluster.planner import (
    GIB,
    Plan,
    Rates,
    core_rates,
    fitting_block,
    savings,
    stated_rates,
)
from cluster.rates_file import Bench, bench_file, stored
from cluster.work_counts import (
    Workload,
    fitting_workers,
)
from pipeline.bounds import MAX_WORKERS
from pipeline.config import RunConfig
from pipeline.config_yaml import short
from pipeline.errors import ConfigError

# The largest machines that a plan is made for; beyond them a plan is a slip of the hand.
MAX_GPUS = 100_000
# Of a GPU that nobody has measured or described.
ASSUMED_TFLOPS, ASSUMED_GPU_MEMORY_GIB = 100.0, 80.0
MAX_TFLOPS = 1e6
MAX_GPU_MEMORY_GIB = 1e5
MAX_PRICE = 1e9
LONGEST_CURRENCY = 12


@dataclass(frozen=True)
class Hardware:
    """Machines that a plan is made for.

    Attributes:
        gpus: Number of GPUs at stated rates; None plans for this machine, measured.
        tflops: Sustained speed of one GPU; None: as `unlearn bench` measured here, or as assumed.
        gpu_memory_gib: Memory of one GPU, likewise.
        workers: Workers on this machine; None takes what the configuration says.
    """

    gpus: int | None = None
    tflops: float | None = None
    gpu_memory_gib: float | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        _require("--gpus", self.gpus, 1, MAX_GPUS)
        _require("--tflops", self.tflops, 1e-3, MAX_TFLOPS)
        _require("--gpu-memory", self.gpu_memory_gib, 0.1, MAX_GPU_MEMORY_GIB)
        _require("--workers", self.workers, 1, MAX_WORKERS)
        if self.gpus is None and (self.tflops is not None or self.gpu_memory_gib is not None):
            raise ConfigError("--tflops and --gpu-memory describe GPUs; give --gpus with them")


def _require(option: str, value: float | None, least: float, most: float) -> None:
    # Written so that a NaN, which is neither below nor above, is refused as well.
    if value is not None and not least <= value <= most:
        raise ConfigError(f"{option} is {short(value)}; expected {least:,} to {most:,}")


@dataclass(frozen=True)
class Price:
    """What an hour of a worker costs.

    Attributes:
        amount: Of a worker-hour; None: no money is spoken of.
        currency: A word or a sign; None: the amount's own.
    """

    amount: float | None = None
    currency: str | None = None

    def __post_init__(self) -> None:
        _require("--price", self.amount, 0, MAX_PRICE)
        if self.currency is None:
            return
        if not (1 <= len(self.currency) <= LONGEST_CURRENCY and self.currency.isprintable()):
            raise ConfigError(
                f"--currency is {short(self.currency)}; expected a word such as EUR, of at most "
                f"{LONGEST_CURRENCY} characters"
            )
        if self.amount is None:
            raise ConfigError(f"--currency {self.currency} needs --price")


NO_PRICE = Price()


def planned(config: RunConfig) -> RunConfig:
    """Return the configuration with an engine: where a pilot will choose, the faster one is planned."""
    if config.recursion.engine != "auto":
        return config
    recursion = config.recursion.model_copy(update={"engine": "hvp"})
    return config.model_copy(update={"recursion": recursion})


def plan_counts(
    config: RunConfig, counts: Counts, hardware: Hardware, price: Price = NO_PRICE
) -> dict[str, Any]:
    """Return the plan's summary and what other choices would save, from counts and shapes.

    Raises:
        ConfigError: If the counts contradict the configuration or leave something open.
        ModelError: If a user's own network cannot be built or counted.
    """
    config = planned(config)
    settled = counts.settled(config)
    network = network_counts(config, settled)
    fitting = fitting_chunk(config, network, on_gpu=hardware.gpus is not None)
    work = count(config, settled, network, fitting)
    kind, dtype = kind_of_model(config), config.recursion.dtype
    bench = stored(bench_file()) if hardware.tflops is None and kind is not None else None
    if hardware.gpus is not None:
        rates = rates_of_gpus(work, hardware, bench, kind, dtype)
        made = fitting_block(Plan(work, rates, hardware.gpus))
    else:
        made = _on_this_machine(config, work, hardware, bench, kind)
    return made.summary(price.amount, price.currency) | {"savings": savings(made, config, fitting)}


def _on_this_machine(
    config: RunConfig, work: Workload, hardware: Hardware, bench: Bench | None, kind: str | None
) -> Plan:
    workers = fitting_workers(config.cluster, hardware.workers, work)
    flops = None
    if bench is not None and bench.device_type == "cpu" and kind is not None:
        found = bench.nearest(kind, config.recursion.dtype)
        flops = None if found is None else found.sustained / max(1, bench.threads)
    memory = psutil.virtual_memory().available / workers
    return Plan(work, core_rates(work, config.cluster.cpus_per_worker, memory, flops), workers)


def rates_of_gpus(
    work: Workload, hardware: Hardware, bench: Bench | None, kind: str | None, dtype: str
) -> Rates:
    """Return the rates of a GPU as stated, else as measured here by `unlearn bench`, else assumed.

    Args:
        work: Sizes of the run.
        hardware: What is stated.
        bench: What was measured here, if anything was.
        kind: Of the network, as `rates_file.py` names it.
        dtype: Precision of the products.
    """
    tflops, memory = hardware.tflops, hardware.gpu_memory_gib
    source = "as assumed" if tflops is None and memory is None else "as stated"
    if tflops is None and bench is not None and bench.device_type == "cuda" and kind is not None:
        found = bench.nearest(kind, dtype)
        if found is not None:
            tflops, source = found.sustained / 1e12, f"as `unlearn bench` measured {bench.device}"
            memory = memory or bench.memory_bytes / GIB
    rates = stated_rates(work, tflops or ASSUMED_TFLOPS, memory or ASSUMED_GPU_MEMORY_GIB)
    return replace(rates, device=rates.device.replace("as stated", source))
