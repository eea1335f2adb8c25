"""Predicting a run's time, memory and storage from counts and rates: pure arithmetic.

    plan = make_plan(workload, rates, workers)

Rates are measured on this machine (`step_timing.py`) or stated (`stated_rates`); a plan from stated
rates is an estimate and says so.
"""

# N units, n samples, P parameters, T steps

import heapq
import math
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cluster.scheduler import CALLS_PER_BLOCK
from pipeline.config import ClusterConfig
from pipeline.data import Dataset
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule
from pipeline.run.store import store_spec
from pipeline.training.step import buffer_names
from pipeline.training.train import checkpoint_interval
from storage.encoding import ENCODINGS


@dataclass(frozen=True)
class Workload:
    """The counts that fix what a run costs, whatever it runs on.

    Attributes:
        num_units: N, approximators to compute.
        num_parameters: P.
        num_steps: T.
        num_products: HVPs of all units: a unit costs nothing before its first visit.
        block: Units of a block.
        chunk: Units computed together, K.
        encoding: Encoding of the approximators.
        state_bytes_per_unit: What a unit holds while it is computed.
        num_checkpoints: Stored parameters along the trajectory.
        checkpoint_bytes: One of them.
        schedule_bytes: Sample ids and learning rates of all steps.
        forward_flops: Floating-point operations of the network on one minibatch.
    """

    num_units: int
    num_parameters: int
    num_steps: int
    num_products: int
    block: int
    chunk: int
    encoding: str
    state_bytes_per_unit: int
    num_checkpoints: int
    checkpoint_bytes: int
    schedule_bytes: int
    forward_flops: float

    @property
    def num_blocks(self) -> int:
        """Blocks, the last one possibly smaller."""
        return -(-self.num_units // self.block)

    @property
    def block_sizes(self) -> list[int]:
        """Units of each block, in the order they are computed."""
        starts = range(0, self.num_units, self.block)
        return [min(self.block, self.num_units - start) for start in starts]

    @property
    def row_bytes(self) -> int:
        """Stored bytes of one approximator."""
        kind = ENCODINGS[self.encoding]
        return kind.code_bytes(self.num_parameters) + 2 * kind.scale_width(self.num_parameters)

    @property
    def store_bytes(self) -> int:
        """Stored bytes of all approximators."""
        return self.num_units * self.row_bytes

    @property
    def trajectory_bytes(self) -> int:
        """Bytes of checkpoints and schedule."""
        return self.num_checkpoints * self.checkpoint_bytes + self.schedule_bytes

    @property
    def product_flops(self) -> float:
        """Operations of one HVP on one minibatch: six forward passes' worth (docs/method.md, 3)."""
        return 6 * self.forward_flops

    @property
    def flops(self) -> float:
        """Operations of the whole precomputation: HVPs, and one gradient per block and step."""
        primal = 3 * self.forward_flops * self.num_blocks * self.num_steps
        return self.num_products * self.product_flops + primal

    def with_larger_units(self, samples_per_unit: int) -> "Workload":
        """Return the same run with units that own so many samples each."""
        num_units = max(1, self.num_units // samples_per_unit)
        share = num_units / self.num_units
        return replace(
            self,
            num_units=num_units,
            num_products=math.ceil(self.num_products * share),
            block=min(self.block, num_units),
        )


def workload_of(problem: Problem) -> Workload:
    """Count what the run of `problem` has to do."""
    config, data = problem.config, problem.data
    schedule = Schedule.draw(config.training, data.num_samples, config.seed)
    first_N = schedule.first_visits(data.unit_of_sample.cpu(), len(data.units))
    buffers = 1 + len(buffer_names(config.training))
    width = problem.num_parameters * problem.initial_P.element_size() * buffers
    every = checkpoint_interval(problem, schedule)
    return Workload(
        num_units=len(data.units),
        num_parameters=problem.num_parameters,
        num_steps=schedule.num_steps,
        num_products=int((schedule.num_steps - first_N).sum()),
        block=min(config.storage.units_per_block, len(data.units)),
        chunk=problem.chunk,
        encoding=store_spec(config.storage, problem.num_parameters).encoding,
        state_bytes_per_unit=width,
        num_checkpoints=1 + -(-schedule.num_steps // every),
        checkpoint_bytes=width,
        schedule_bytes=_schedule_bytes(schedule, data.num_samples) + _record_bytes(data),
        forward_flops=_forward_flops(problem),
    )


def fitting_workers(cluster: ClusterConfig, asked: int | None, work: Workload) -> int:
    """Return how many workers a run has on this machine: as asked, or as cores and blocks allow."""
    wanted: int | str = asked or cluster.num_workers
    fitting = max(1, (os.cpu_count() or 1) // cluster.cpus_per_worker)
    return min(wanted if isinstance(wanted, int) else fitting, work.num_blocks)


def _schedule_bytes(schedule: Schedule, num_samples: int) -> int:
    """Parquet keeps a dictionary of ids and packs each into as many bits as it takes."""
    num_ids = sum(len(ids) for ids in schedule.sample_ids)
    return num_ids * num_samples.bit_length() // 8 + 8 * num_samples + 24 * schedule.num_steps


def _record_bytes(data: Dataset) -> int:
    """A number and a unit for each training sample, a number for each other row of the source."""
    others = 0 if data.rows is None else len(data.rows.held_out) + len(data.rows.unused)
    return 8 * (2 * data.num_samples + others)


def _forward_flops(problem: Problem) -> float:
    size = min(problem.config.training.batch_size, problem.data.num_samples)
    inputs = problem.data.inputs[:1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        problem.network.module(inputs)
    return float(counter.get_total_flops()) * size


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
        """Time of the precomputation, Ray's start apart; the first free worker takes the next block."""
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
    # Approximators are read and written some six times a step at 2 TB/s, the speed of current HBM.
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
