"""Timing a few of a run's steps, and their memory, in a separate process like a worker's.

    python -m cluster.step_timing < configuration.yaml > measured.json

Nothing is trained and nothing stored: the steps start at w_0 with approximators that are not zero,
because a unit costs the same wherever the parameters stand. Lines `measured i of n` on standard error
say how far it is.
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
from torch import Tensor

from cluster import actors as actor_group
from pipeline.approximators.block import BlockRecursion, Chunk
from pipeline.config import RunConfig
from pipeline.data.lazy_inputs import bytes_without_file
from pipeline.heap import keep_freed_memory
from pipeline.hessian.roperator import Pairs
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
SECONDS_PER_MEASUREMENT = 2.0
# What a chunk costs besides its products, and what owned samples cost, is timed on one chunk.
SECONDS_PER_SHARE = 1.0
MEASUREMENTS = 7
PROGRESS = "measured {} of {}"
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
        chunk_seconds: What a chunk's step takes besides its HVPs.
        first_own_seconds, further_own_seconds, repeated_own_seconds: What samples cost whose units are
            in the chunk, as `planner.OwnSeconds` names them.
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
    chunk_seconds: float
    first_own_seconds: float
    further_own_seconds: float
    repeated_own_seconds: float
    checkpoint_seconds: float
    write_seconds: float
    arithmetic_bytes: float
    idle_bytes: float
    device_bytes: float
    device_memory: float
    device_name: str


def measure(config: RunConfig, report: Callable[[int], None] = lambda done: None) -> StepTimes:
    """Take some steps of the run in this process and measure them.

    Args:
        config: The run.
        report: Called with the number of measurements done, of `MEASUREMENTS`.
    """
    began = time.perf_counter()
    problem = Problem.of(config)
    load_seconds = time.perf_counter() - began
    report(1)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        trajectory = _untrained(problem, Path(folder))
        checkpoint_seconds = time.perf_counter() - began
        primal = _seconds_per_step(lambda: _Primal(Replay.start(problem, trajectory)), problem)
        report(2)
        num_units = _num_units(problem)
        block = _block(problem, trajectory, num_units)
        idle = psutil.Process().memory_info().rss
        shares = _Shares.measure(problem, trajectory, block, primal, report)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        state = _state_bytes(problem, num_units)
        write_seconds = _write_seconds(problem, block, Path(folder))
    report(MEASUREMENTS)
    on_gpu = problem.device.type == "cuda"
    inputs = sum(map(bytes_without_file, (problem.data.inputs, problem.data.test_inputs)))
    elsewhere = inputs + (0 if on_gpu else state)
    return StepTimes(
        load_seconds=load_seconds,
        primal_seconds=primal,
        product_seconds=shares.product,
        chunk_seconds=shares.chunk,
        first_own_seconds=shares.first,
        further_own_seconds=shares.further,
        repeated_own_seconds=shares.repeated,
        checkpoint_seconds=checkpoint_seconds,
        write_seconds=write_seconds,
        arithmetic_bytes=peak - elsewhere,
        idle_bytes=idle - elsewhere,
        device_bytes=torch.cuda.max_memory_allocated() - state if on_gpu else 0.0,
        device_memory=float(torch.cuda.get_device_properties(0).total_memory) if on_gpu else 0.0,
        device_name=torch.cuda.get_device_name() if on_gpu else "cpu",
    )


@dataclass(frozen=True)
class _Shares:
    """What a step's time consists of, the shared pass apart; in seconds."""

    product: float
    chunk: float
    first: float = 0.0
    further: float = 0.0
    repeated: float = 0.0

    @staticmethod
    def measure(
        problem: Problem,
        trajectory: Trajectory,
        block: BlockRecursion,
        primal: float,
        report: Callable[[int], None],
    ) -> "_Shares":
        """Time a block, a chunk and a part of one, without owned samples and with made-up owners."""
        if problem.config.recursion.engine == "weighing":
            # Groups share their samples: a block's own mixture is all there is.
            step = _seconds_per_step(lambda: block, problem)
            return _Shares(max(0.0, step - primal) / len(block.units), 0.0)
        _own_nothing(block)
        step = max(0.0, _seconds_per_step(lambda: block, problem) - primal)
        report(3)
        product, chunk = _fitted(problem, trajectory, block, step, primal)
        report(4)
        num = min(problem.chunk, len(block.units))
        batch = min(problem.config.training.batch_size, problem.data.num_samples)
        rows, alone = torch.arange(batch), torch.zeros(batch, dtype=torch.int64)
        owned = {
            # One sample; as many as there are units, one of each; all, two or more of each.
            "first": Pairs(alone[:1], rows[:1]),
            "further": Pairs(torch.arange(min(num, batch)), rows[: min(num, batch)]),
            "repeated": Pairs((torch.arange(batch) % max(1, min(num, batch // 2))).sort()[0], rows),
        }
        seconds: dict[str, float] = {}
        for place, (name, pairs) in enumerate(owned.items(), 4):
            one = _block(problem, trajectory, num)
            _own(one, pairs)
            took = _seconds_per_step(lambda one=one: one, problem, SECONDS_PER_SHARE) - primal  # type: ignore[misc]
            seconds[name] = max(0.0, took - chunk - num * product)
            if place + 1 < MEASUREMENTS:
                report(place + 1)
        first = seconds["first"]
        more = {
            name: max(0.0, seconds[name] - first) / max(1, len(owned[name].rows) - 1)
            for name in ("further", "repeated")
        }
        return _Shares(product, chunk, first, more["further"], more["repeated"])


def _fitted(
    problem: Problem, trajectory: Trajectory, block: BlockRecursion, step: float, primal: float
) -> tuple[float, float]:
    """Return the seconds of an HVP and of a chunk besides, from a block and a part of one chunk."""
    num_units, num_chunks = len(block.units), len(block.chunks)
    few = max(1, problem.chunk // 8)
    if few >= num_units / num_chunks:
        return step / num_units, 0.0
    part = _block(problem, trajectory, few)
    _own_nothing(part)
    alone = max(0.0, _seconds_per_step(lambda: part, problem, SECONDS_PER_SHARE) - primal)
    # step = num_chunks * chunk + num_units * product, alone = chunk + few * product
    product = (step - num_chunks * alone) / (num_units - num_chunks * few)
    product = min(max(0.0, product), step / num_units)
    return product, max(0.0, step - num_units * product) / num_chunks


def _block(problem: Problem, trajectory: Trajectory, num_units: int) -> BlockRecursion:
    width = problem.num_parameters
    return BlockRecursion(
        problem,
        trajectory,
        range(num_units),
        lambda units: np.full((len(units), width), 1e-3, np.float32),
    )


@dataclass
class _Owning(Chunk):
    """A chunk whose units own given samples of every minibatch."""

    own: Pairs | None = None

    def own_pairs(self, owners_B: Tensor) -> Pairs:
        """Return these; the last minibatch of an epoch may be smaller."""
        assert self.own is not None, "given with the chunk"
        kept = self.own.rows < len(owners_B)
        return Pairs(self.own.tangents[kept], self.own.rows[kept])


def _own(block: BlockRecursion, pairs: Pairs) -> None:
    device = block.problem.device
    pairs = Pairs(pairs.tangents.to(device), pairs.rows.to(device))
    block.chunks = [
        _Owning(chunk.units, chunk.positions, chunk.state, None, pairs) for chunk in block.chunks
    ]


def _own_nothing(block: BlockRecursion) -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    _own(block, Pairs(nothing, nothing))


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


def _seconds_per_step(
    make: Callable[[], _Primal | BlockRecursion],
    problem: Problem,
    seconds: float = SECONDS_PER_MEASUREMENT,
) -> float:
    """Return the mean time of a step, after one that warms up: the mean is what adds up."""
    walker = make()
    training, num_samples = problem.config.training, problem.data.num_samples
    num_steps = training.epochs * -(-num_samples // training.batch_size)
    began = time.perf_counter()
    walker.advance(walker.step + 1)
    _synchronise(problem)
    if walker.step == num_steps:
        # A run of one step has no other.
        return time.perf_counter() - began
    times: list[float] = []
    deadline = time.perf_counter() + seconds
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

    def report(done: int) -> None:
        sys.stderr.write(PROGRESS.format(done, MEASUREMENTS) + "\n")
        sys.stderr.flush()

    sys.stdout.write(json.dumps(asdict(measure(config, report))) + "\n")


if __name__ == "__main__":
    main()
