"""What a run will take, foretold from counts and rates: pure arithmetic.

    plan = make_plan(workload, rates, workers)

Rates are measured on this machine (`pilot.py`) or stated (`stated_rates`); a plan from stated rates
is an estimate and says so.
"""

import heapq
from dataclasses import dataclass, replace
from typing import Any

from cluster.scheduler import CALLS_PER_BLOCK
from cluster.workload import Workload

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
class Rates:
    """How fast one worker is and what it weighs.

    Attributes:
        primal_seconds: One step's shared pass.
        product_seconds: One HVP.
        write_seconds: Encoding and storing one row.
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
        work = self.workload
        return sum(self._block_seconds(units) for units in work.block_sizes)

    def _block_seconds(self, num_units: int) -> float:
        work, rates = self.workload, self.rates
        products = work.num_products / work.num_units * num_units
        return (
            CALLS_PER_BLOCK * CALL_SECONDS
            + work.num_steps * rates.primal_seconds
            + products * rates.product_seconds
            + num_units * rates.write_seconds
        )

    @property
    def precompute_seconds(self) -> float:
        """Time of the precomputation, Ray's start apart: blocks go to whoever is free."""
        free_at = [self.rates.load_seconds] * self.workers
        for units in self.workload.block_sizes:
            heapq.heapreplace(free_at, free_at[0] + self._block_seconds(units))
        return max(free_at)

    @property
    def train_seconds(self) -> float:
        """Time of training."""
        work, rates = self.workload, self.rates
        written = work.num_checkpoints * rates.checkpoint_seconds
        return work.num_steps * rates.primal_seconds + written

    @property
    def worker_hours(self) -> float:
        """Hours that all workers together are held."""
        return self.precompute_seconds * self.workers / 3600

    def summary(self, price: float | None = None) -> dict[str, Any]:
        """Return the plan as one flat mapping, for people and programs."""
        work = self.workload
        return {
            "basis": "measured" if self.rates.measured else "estimate from stated rates",
            "device": self.rates.device,
            "num_units": work.num_units,
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
    per_chunk = LAUNCH_SECONDS / work.chunk
    # Rows are read and written about six times a step at some 2 TB/s, the speed of current HBM.
    traffic = 6 * work.state_bytes_per_unit / 2e12
    tangents = 2.0 * work.chunk * work.state_bytes_per_unit
    return Rates(
        primal_seconds=max(LAUNCH_SECONDS, 3 * work.forward_flops / speed),
        product_seconds=max(per_chunk, work.product_flops / speed + traffic),
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


def savings(plan: Plan) -> list[dict[str, Any]]:
    """Return what other choices would cost: larger units, other encodings, fewer checkpoints."""
    work = plan.workload
    rows = []
    for samples in (10, 100):
        if work.num_units >= 2 * samples:
            other = replace(plan, workload=work.with_larger_units(samples))
            rows.append(_saving(f"users of {samples} samples as units", other))
    for encoding in ("float16", "int8", "int4"):
        if encoding != work.encoding:
            other = replace(plan, workload=replace(work, encoding=encoding))
            rows.append(_saving(f"storage.encoding: {encoding}", other))
    if work.num_checkpoints > 2:
        other = replace(plan, workload=replace(work, num_checkpoints=2))
        rows.append(_saving("no checkpoints between first and last", other))
    return rows


def _saving(choice: str, plan: Plan) -> dict[str, Any]:
    return {
        "choice": choice,
        "precompute_seconds": plan.precompute_seconds,
        "worker_hours": plan.worker_hours,
        "store_bytes": plan.workload.store_bytes,
        "trajectory_bytes": plan.workload.trajectory_bytes,
    }
