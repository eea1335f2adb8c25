"""How much a run has to compute and to hold: counted from its schedule and sizes, not measured."""

# N units, n samples, P parameters, T steps

import math
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.approximators import store_spec
from pipeline.problem import Problem
from pipeline.schedule import Schedule
from pipeline.training import checkpoint_interval
from storage.encoding import ENCODINGS


@dataclass(frozen=True)
class Workload:
    """The counts that fix what a run costs, whatever it runs on.

    Attributes:
        num_units: N, rows to compute.
        num_parameters: P.
        num_steps: T.
        num_products: HVPs of all units: a unit costs nothing before its first visit.
        block: Units of a block.
        chunk: Units computed together, K.
        encoding: Encoding of the rows.
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
        """Stored bytes of one row."""
        kind = ENCODINGS[self.encoding]
        return kind.code_bytes(self.num_parameters) + 2 * kind.scale_width(self.num_parameters)

    @property
    def store_bytes(self) -> int:
        """Stored bytes of all rows."""
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
    buffers = 2 if config.training.momentum else 1
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
        schedule_bytes=_schedule_bytes(schedule, data.num_samples),
        forward_flops=_forward_flops(problem),
    )


def _schedule_bytes(schedule: Schedule, num_samples: int) -> int:
    """Parquet keeps a dictionary of ids and packs each into as many bits as it takes."""
    num_ids = sum(len(ids) for ids in schedule.sample_ids)
    return num_ids * num_samples.bit_length() // 8 + 8 * num_samples + 24 * schedule.num_steps


def _forward_flops(problem: Problem) -> float:
    size = min(problem.config.training.batch_size, problem.data.num_samples)
    inputs = problem.data.inputs[:1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        problem.network.module(inputs)
    return float(counter.get_total_flops()) * size
