"""Timing a few of a run's steps, and their memory, in a separate process like a worker's.

    python -m cluster.step_timing < configuration.yaml > measured.json

Nothing is trained and nothing stored: the steps start at w_0 with approximators that are not zero,
because a unit costs the same wherever the parameters stand.
"""

# m units that are timed, P parameters

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import psutil
import torch

from cluster import actors as actor_group
from pipeline.approximators.block import BlockRecursion
from pipeline.config import RunConfig
from pipeline.data.lazy_inputs import bytes_without_file
from pipeline.heap import keep_freed_memory
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule
from pipeline.run.store import store_spec
from pipeline.run.trajectory import Trajectory
from pipeline.training.replay import Replay, write_state
from pipeline.training.step import OptimizerState, buffer_names
from storage.store import ApproximatorStore

# Enough chunks that what a block's step costs besides its products is spread as in a real block.
TIMED_CHUNKS = 8
# The approximators that are timed stay below this, whatever the model: a laptop must hold them.
TIMED_BYTES = 1 << 30
SECONDS_PER_MEASUREMENT = 3.0
REPETITIONS = 3

# What a worker imports is part of what it weighs.
IMPORTED = actor_group


@dataclass(frozen=True)
class StepTimes:
    """What was measured.

    Attributes:
        load_seconds: Loading data and model.
        primal_seconds: One step's shared pass.
        product_seconds: One HVP with everything around it, the shared pass apart.
        checkpoint_seconds: Storing one checkpoint.
        write_seconds: Encoding and storing one approximator of a block.
        arithmetic_bytes: Peak memory of a worker's steps without its block's state.
        idle_bytes: Memory of a worker between steps without its block's state.
        device_bytes: Peak memory on the GPU without the state; 0 without one.
        device_memory: Memory of that GPU.
        device_name: What computed.
    """

    load_seconds: float
    primal_seconds: float
    product_seconds: float
    checkpoint_seconds: float
    write_seconds: float
    arithmetic_bytes: float
    idle_bytes: float
    device_bytes: float
    device_memory: float
    device_name: str


def measure(config: RunConfig) -> StepTimes:
    """Take some steps of the run in this process and measure them."""
    began = time.perf_counter()
    problem = Problem.of(config)
    load_seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        trajectory = _untrained(problem, Path(folder))
        checkpoint_seconds = time.perf_counter() - began
        primal = _seconds_per_step(lambda: _Primal(Replay.start(problem, trajectory)), problem)
        num_units = _num_units(problem)
        width = problem.num_parameters
        block = BlockRecursion(
            problem,
            trajectory,
            range(num_units),
            lambda units: np.full((len(units), width), 1e-3, np.float32),
        )
        idle = psutil.Process().memory_info().rss
        step = _seconds_per_step(lambda: block, problem)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        state = _state_bytes(problem, num_units)
        write_seconds = _write_seconds(problem, block, Path(folder))
    on_gpu = problem.device.type == "cuda"
    inputs = sum(map(bytes_without_file, (problem.data.inputs, problem.data.test_inputs)))
    elsewhere = inputs + (0 if on_gpu else state)
    return StepTimes(
        load_seconds=load_seconds,
        primal_seconds=primal,
        product_seconds=max(0.0, step - primal) / num_units,
        checkpoint_seconds=checkpoint_seconds,
        write_seconds=write_seconds,
        arithmetic_bytes=peak - elsewhere,
        idle_bytes=idle - elsewhere,
        device_bytes=torch.cuda.max_memory_allocated() - state if on_gpu else 0.0,
        device_memory=float(torch.cuda.get_device_properties(0).total_memory) if on_gpu else 0.0,
        device_name=torch.cuda.get_device_name() if on_gpu else "cpu",
    )


def _untrained(problem: Problem, folder: Path) -> Trajectory:
    """Return the run's schedule with the one checkpoint that needs no training, w_0."""
    schedule = Schedule.draw(problem.config.training, problem.data.num_samples, problem.config.seed)
    state = OptimizerState.start(problem.initial_P, problem.config.training)
    write_state(folder, 0, state, problem.network.layout)
    return Trajectory(folder, schedule, (1.0,) * schedule.num_steps, (0,), "timing")


def _write_seconds(problem: Problem, block: BlockRecursion, folder: Path) -> float:
    """Return the time to store the timed approximators as one block, for each."""
    units = [str(unit) for unit in block.units]
    spec = replace(
        store_spec(problem.config.storage, problem.num_parameters),
        block=len(units),
        row_norm_cap=None,
    )
    store = ApproximatorStore.create(folder / "timing.zarr", units, [1] * len(units), spec)
    began = time.perf_counter()
    store.write_rows(0, block.rows())
    return (time.perf_counter() - began) / len(units)


def _num_units(problem: Problem) -> int:
    block = min(problem.config.storage.units_per_block, len(problem.data.units))
    fitting = max(problem.chunk, TIMED_BYTES // (4 * problem.num_parameters))
    return min(block, TIMED_CHUNKS * problem.chunk, fitting)


def _state_bytes(problem: Problem, num_units: int) -> int:
    buffers = 1 + len(buffer_names(problem.config.training))
    return num_units * problem.num_parameters * problem.initial_P.element_size() * buffers


class _Primal:
    """The shared pass alone, with the same face as a block."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    @property
    def step(self) -> int:
        return self._replay.step

    def advance(self, stop: int) -> None:
        with self._replay.problem.arithmetic():
            for _ in self._replay.steps(stop):
                pass


def _seconds_per_step(make: Callable[[], _Primal | BlockRecursion], problem: Problem) -> float:
    """Return the mean time of a step, after one that warms up: the mean is what adds up."""
    walker = make()
    training, num_samples = problem.config.training, problem.data.num_samples
    num_steps = training.epochs * -(-num_samples // training.batch_size)
    walker.advance(walker.step + 1)
    times: list[float] = []
    deadline = time.perf_counter() + SECONDS_PER_MEASUREMENT
    while walker.step < num_steps and (len(times) < REPETITIONS or time.perf_counter() < deadline):
        began = time.perf_counter()
        walker.advance(walker.step + 1)
        _synchronise(problem)
        times.append(time.perf_counter() - began)
        if time.perf_counter() > deadline:
            break
    return fmean(times)


def _synchronise(problem: Problem) -> None:
    if problem.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure the configuration on standard input; print JSON."""
    keep_freed_memory()
    config = RunConfig.from_text(sys.stdin.read(), "the configuration")
    torch.set_num_threads(config.cluster.cpus_per_worker)
    sys.stdout.write(json.dumps(asdict(measure(config))) + "\n")


if __name__ == "__main__":
    main()
