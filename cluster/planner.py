"""What a run will take, foretold from counts and rates: pure arithmetic.

    plan = make_plan(workload, rates, workers)

Rates are measured on this machine (`pilot.py`) or stated (`stated_rates`); a plan from stated rates
is an estimate and says so.
"""

from dataclasses import dataclass, replace
from typing import Any

from cluster.workload import Workload

GIB = 1 << 30
# Starting Ray and a worker's imports, on a machine whose disk has them cached.
START_SECONDS = 15.0
# Of a GPU's memory, this much goes to the library's own contexts and to fragmentation.
RESERVED_SHARE = 0.15


@dataclass(frozen=True)
class Rates:
    """How fast one worker is and what it weighs.

    Attributes:
        primal_seconds: One step's shared pass.
        product_seconds: One HVP.
        block_seconds: What every block costs besides: encoding and writing its rows.
        arithmetic_bytes: Peak memory of the steps without the block's state.
        idle_bytes: Memory between steps without the block's state.
        copy_beside: Whether finished rows are copied in the same memory: not from a GPU.
        memory_bytes: What one worker may use.
        measured: False if these are stated rates.
        device: What computes.
    """

    primal_seconds: float
    product_seconds: float
    block_seconds: float
    arithmetic_bytes: float
    idle_bytes: float
    copy_beside: bool
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
        """Peak memory of a worker: in the arithmetic, or at the end beside the rows' copy."""
        return self._peak_bytes(self.workload.block)

    def _peak_bytes(self, block: int) -> float:
        state = block * self.workload.state_bytes_per_unit
        copy = max(state, block * self.workload.num_parameters * 4) if self.rates.copy_beside else 0
        return state + max(self.rates.arithmetic_bytes, self.rates.idle_bytes + copy)

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
        work, rates = self.workload, self.rates
        primal = work.num_blocks * work.num_steps * rates.primal_seconds
        return (
            primal
            + work.num_products * rates.product_seconds
            + work.num_blocks * rates.block_seconds
        )

    @property
    def precompute_seconds(self) -> float:
        """Time of the precomputation, Ray's start apart."""
        return self.busy_seconds / self.workload.num_blocks * self.passes

    @property
    def train_seconds(self) -> float:
        """Time of training."""
        return self.workload.num_steps * self.rates.primal_seconds

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
    # Rows are read and written about six times a step at some 2 TB/s, the speed of current HBM.
    traffic = 6 * work.state_bytes_per_unit / 2e12
    tangents = 2.0 * work.chunk * work.state_bytes_per_unit
    return Rates(
        primal_seconds=3 * work.forward_flops / speed,
        product_seconds=work.product_flops / speed + traffic,
        block_seconds=work.block * work.row_bytes / 5e8,
        arithmetic_bytes=tangents,
        idle_bytes=0.0,
        copy_beside=False,
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
