"""Predicting a run's time, memory and storage from counts and rates: pure arithmetic, without torch.

    plan = Plan(workload, rates, workers)

Rates are measured on this machine (`step_timing.py`) or stated (`stated_rates`, `core_rates`); a plan
from stated rates is an estimate and says so.
"""

# N units, n samples, P parameters, T steps, K units of a chunk, B minibatch rows

import heapq
import math
from dataclasses import dataclass, replace
from typing import Any

from cluster.scheduler import CALLS_PER_BLOCK
from cluster.work_counts import Workload
from pipeline.config import RunConfig
from pipeline.errors import ConfigError

GIB = 1 << 30
# Bytes per second to shared storage, and the time to load a data set from it.
STATED_WRITE_BYTES = 5e8
STATED_LOAD_SECONDS = 30.0
# From the end of one call of a worker to the start of the next (measured, one machine).
CALL_SECONDS = 4e-3
# A small model on a GPU waits for its kernels to be launched: some hundreds of them per chunk and step.
LAUNCH_SECONDS = 3e-3
# Of a GPU's memory, this much goes to the library's own contexts and to fragmentation.
RESERVED_SHARE = 0.15


@dataclass(frozen=True)
class OwnSeconds:
    """What the samples of a minibatch cost that units of a chunk own: their gradients are the source.

    Attributes:
        first: The first one in a chunk and step.
        further: Each further one while no unit owns two: their gradients are taken together.
        repeated: Each further one otherwise: gradients are taken unit by unit.
    """

    first: float = 0.0
    further: float = 0.0
    repeated: float = 0.0

    def step_seconds(self, num_units: int, work: Workload) -> float:
        """Return what a step of a chunk of so many units costs on average."""
        owned = num_units / work.num_units
        visits = owned * min(work.batch_size, work.num_samples)
        some = 1 - (1 - min(1.0, owned)) ** work.batch_size
        pairs = visits * max(0.0, visits - 1) / 2
        # Of two samples of the chunk, that both are the same unit's.
        alike = max(0.0, 1 - 1 / work.samples_per_unit) / num_units
        repeats = 1 - math.exp(-pairs * alike)
        each = (1 - repeats) * self.further + repeats * self.repeated
        return some * self.first + max(0.0, visits - some) * each


@dataclass(frozen=True)
class Rates:
    """How fast one worker is and what it weighs.

    Attributes:
        primal_seconds: One step's shared pass.
        product_seconds: One HVP.
        chunk_seconds: What a step of a chunk takes besides its HVPs.
        launch_seconds: What a step of a chunk takes at least: a GPU's kernels are launched meanwhile.
        own: What samples cost whose units are in the chunk.
        write_seconds: Encoding and storing one approximator.
        load_seconds: Loading data and model, once per worker.
        checkpoint_seconds: Storing one checkpoint.
        arithmetic_bytes: Peak memory of the steps without the block's state.
        idle_bytes: Memory between steps without the block's state.
        memory_bytes: What one worker may use.
        measured: False if these are stated rates.
        device: What computes.
    """

    primal_seconds: float
    product_seconds: float
    write_seconds: float
    load_seconds: float
    checkpoint_seconds: float
    arithmetic_bytes: float
    idle_bytes: float
    memory_bytes: float
    measured: bool
    device: str
    chunk_seconds: float = 0.0
    launch_seconds: float = 0.0
    own: OwnSeconds = OwnSeconds()


@dataclass(frozen=True)
class Plan:
    """Time, memory, bytes and money of a run, before anything runs."""

    workload: Workload
    rates: Rates
    workers: int

    @property
    def peak_bytes(self) -> float:
        """Peak memory of a worker."""
        return self._peak_bytes(self.workload.block)

    def _peak_bytes(self, block: int) -> float:
        # A state that is saved stands beside the bytes of its file.
        state = block * self.workload.state_bytes_per_unit
        return state + max(self.rates.arithmetic_bytes, self.rates.idle_bytes + state)

    @property
    def largest_block(self) -> int:
        """Units of the largest block that a worker's memory holds; 0 if not even one fits."""
        low, high = 0, self.workload.num_units
        while low < high:
            middle = (low + high + 1) // 2
            if self._peak_bytes(middle) <= self.rates.memory_bytes:
                low = middle
            else:
                high = middle - 1
        return low

    @property
    def passes(self) -> int:
        """Walks over the trajectory that the busiest worker takes, one per block."""
        return -(-self.workload.num_blocks // self.workers)

    @property
    def busy_seconds(self) -> float:
        """Worker-seconds of the precomputation."""
        sizes = self.workload.block_sizes
        # All but the last are alike.
        return (len(sizes) - 1) * self._block_seconds(sizes[0]) + self._block_seconds(sizes[-1])

    def _block_seconds(self, num_units: int) -> float:
        work, rates = self.workload, self.rates
        products = work.num_products / work.num_units * num_units
        chunk = min(work.chunk, num_units)
        steps = num_units / chunk * work.num_steps
        # Where nothing is launched ahead of time, what a chunk takes besides its products adds up.
        arithmetic = max(products * rates.product_seconds, steps * rates.launch_seconds)
        overhead = -(-num_units // chunk) * work.num_steps * rates.chunk_seconds
        return (
            CALLS_PER_BLOCK * CALL_SECONDS
            + work.num_steps * rates.primal_seconds
            + arithmetic
            + overhead
            + steps * rates.own.step_seconds(chunk, work)
            + num_units * rates.write_seconds
        )

    @property
    def precompute_seconds(self) -> float:
        """Time of the precomputation, Ray's start apart; the first free worker takes the next block."""
        free_at = [self.rates.load_seconds] * self.workers
        seconds: dict[int, float] = {}
        for units in self.workload.block_sizes:
            if units not in seconds:
                seconds[units] = self._block_seconds(units)
            heapq.heapreplace(free_at, free_at[0] + seconds[units])
        return max(free_at)

    @property
    def train_seconds(self) -> float:
        """Time of training."""
        work, rates = self.workload, self.rates
        written = work.num_checkpoints * rates.checkpoint_seconds
        return work.num_steps * rates.primal_seconds + written

    @property
    def retrain_seconds(self) -> float:
        """Time of one retraining: the steps of training, without its checkpoints."""
        return self.workload.num_steps * self.rates.primal_seconds

    def break_even_requests(self, retrain_seconds: float | None = None) -> float:
        """Return how many requests, each answered by a retraining, cost what the precomputation does.

        Args:
            retrain_seconds: Of one retraining, where it was measured.
        """
        return self.busy_seconds / (retrain_seconds or self.retrain_seconds)

    @property
    def worker_hours(self) -> float:
        """Hours that all workers together are held."""
        return self.precompute_seconds * self.workers / 3600

    def summary(self, price: float | None = None, currency: str | None = None) -> dict[str, Any]:
        """Return the plan as one flat mapping, for people and programs.

        Args:
            price: Of a worker-hour.
            currency: What the price is in.
        """
        work = self.workload
        return {
            "basis": "measured" if self.rates.measured else "estimate from stated rates",
            "device": self.rates.device,
            "num_units": work.num_units,
            "num_samples": work.num_samples,
            "num_parameters": work.num_parameters,
            "num_steps": work.num_steps,
            "hvps": work.num_products,
            "blocks": work.num_blocks,
            "block": work.block,
            "largest_block": self.largest_block,
            "chunk": work.chunk,
            "workers": self.workers,
            "passes": self.passes,
            "train_seconds": self.train_seconds,
            "precompute_seconds": self.precompute_seconds,
            "worker_hours": self.worker_hours,
            "peak_bytes_per_worker": int(self.peak_bytes),
            "store_bytes": work.store_bytes,
            "trajectory_bytes": work.trajectory_bytes,
            "state_bytes": self.workers * work.block * work.state_bytes_per_unit,
            "flops": work.flops,
            "money": None if price is None else price * self.worker_hours,
            "currency": currency,
            "retrain_seconds": self.retrain_seconds,
            "break_even_requests": math.ceil(self.break_even_requests()),
        }


def stated_rates(work: Workload, tflops: float, memory_gib: float) -> Rates:
    """Return what a GPU of stated speed would do.

    Args:
        work: Sizes of the run.
        tflops: Sustained 10^12 operations per second in this kind of work, not the data sheet's.
        memory_gib: Memory of one GPU.
    """
    speed = tflops * 1e12
    usable = memory_gib * GIB * (1 - RESERVED_SHARE)
    # Approximators are read and written some six times a step at 2 TB/s, the speed of current HBM.
    traffic = 6 * work.state_bytes_per_unit / 2e12
    tangents = 2.0 * work.chunk * work.state_bytes_per_unit
    # A gradient of one sample alone, which is written and added.
    sample = 3 * work.forward_flops / work.batch_size / speed + traffic
    return Rates(
        primal_seconds=max(LAUNCH_SECONDS, 3 * work.forward_flops / speed),
        product_seconds=work.product_flops / speed + traffic,
        launch_seconds=LAUNCH_SECONDS,
        own=OwnSeconds(LAUNCH_SECONDS, sample, LAUNCH_SECONDS / 3),
        write_seconds=work.row_bytes / STATED_WRITE_BYTES,
        load_seconds=STATED_LOAD_SECONDS,
        checkpoint_seconds=work.checkpoint_bytes / STATED_WRITE_BYTES,
        arithmetic_bytes=tangents,
        idle_bytes=0.0,
        memory_bytes=usable,
        measured=False,
        device=f"GPU with {tflops:g} TFLOP/s sustained and {memory_gib:g} GiB, as stated",
    )


def fitting_block(plan: Plan) -> Plan:
    """Return the plan with its block made as small as the worker's memory asks, if it is too large."""
    if plan.largest_block >= plan.workload.block or plan.largest_block < 1:
        return plan
    return replace(plan, workload=replace(plan.workload, block=plan.largest_block))


@dataclass(frozen=True)
class Core:
    """What one core sustains in this kind of work, and what calls of small operations take besides.

    Attributes:
        flops: Floating-point operations per second.
        step_seconds: A step of a chunk besides its products, and a step's shared pass.
        own: What samples cost whose units are in the chunk.
    """

    flops: float
    step_seconds: float
    own: OwnSeconds


# Measured on two cores of an AMD EPYC with configs/digits*.yaml, rounded (docs/benchmarks.md).
CORE = Core(4e10, 5e-4, OwnSeconds(2e-4, 1e-5, 4e-5))
# Of a worker that has imported torch.
WORKER_BYTES = 900 << 20
CORE_WRITE_BYTES, CORE_LOAD_SECONDS = 5e7, 1.0


def core_rates(work: Workload, threads: int, memory_bytes: float, flops: float | None) -> Rates:
    """Return what a worker of this machine would do, which nobody measured with this run.

    Args:
        work: Sizes of the run.
        threads: Of the worker.
        memory_bytes: What one worker may use.
        flops: Sustained by one thread, as `unlearn bench` measured; None: as stated here.
    """
    speed = (flops or CORE.flops) * threads
    tangents = 2.0 * work.chunk * work.state_bytes_per_unit
    sample = 3 * work.forward_flops / work.batch_size / speed
    source = "as `unlearn bench` measured" if flops else "as stated"
    return Rates(
        primal_seconds=CORE.step_seconds / 2 + 3 * work.forward_flops / speed,
        product_seconds=work.product_flops / speed,
        chunk_seconds=CORE.step_seconds,
        own=replace(CORE.own, further=CORE.own.further + sample),
        write_seconds=work.row_bytes / CORE_WRITE_BYTES,
        load_seconds=CORE_LOAD_SECONDS,
        checkpoint_seconds=work.checkpoint_bytes / STATED_WRITE_BYTES,
        arithmetic_bytes=WORKER_BYTES + tangents,
        idle_bytes=WORKER_BYTES,
        memory_bytes=memory_bytes,
        measured=False,
        device=f"this machine's CPU, {threads} threads a worker, {speed / 1e9:.3g} GFLOP/s {source}",
    )


def savings(
    plan: Plan, asked: RunConfig | None = None, fitting_chunk: int = 0
) -> list[dict[str, Any]]:
    """Return what other choices would cost: larger units, other encodings, fewer checkpoints.

    Args:
        plan: As configured.
        asked: The configuration as written; None: without larger units.
        fitting_chunk: The tangents that fit into cache.
    """
    work = plan.workload
    rows = [] if asked is None else _of_users(plan, asked, fitting_chunk)
    for encoding in ("float16", "int8", "int4"):
        if encoding != work.encoding:
            other = replace(plan, workload=replace(work, encoding=encoding))
            rows.append(_saving(f"storage.encoding: {encoding}", other))
    if work.num_checkpoints > 2:
        other = replace(plan, workload=replace(work, num_checkpoints=2))
        rows.append(_saving("no checkpoints between first and last", other))
    return rows


def _of_users(plan: Plan, asked: RunConfig, fitting_chunk: int) -> list[dict[str, Any]]:
    work, rows = plan.workload, []
    for samples in (10, 100):
        num_units = work.num_samples // samples
        if num_units < 2 or work.samples_per_unit >= samples:
            continue
        try:
            other = replace(plan, workload=work.with_units(num_units, asked, fitting_chunk))
        except ConfigError:
            # Too few for the engine.
            continue
        if isinstance(asked.storage.block, str):
            other = fitting_block(other)
        rows.append(_saving(f"users of {samples} samples as units", other))
    return rows


def _saving(choice: str, plan: Plan) -> dict[str, Any]:
    return {
        "choice": choice,
        "precompute_seconds": plan.precompute_seconds,
        "worker_hours": plan.worker_hours,
        "store_bytes": plan.workload.store_bytes,
        "trajectory_bytes": plan.workload.trajectory_bytes,
    }
