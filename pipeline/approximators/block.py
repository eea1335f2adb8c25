"""The recursion for one block of units over the whole trajectory.

A block is a range of units whose approximators one worker computes and writes. It consists of chunks of
K units each. A chunk's arithmetic depends only on its own units and the trajectory.
"""

# B minibatch rows, K units of a chunk, P parameters, m units of the block

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import tensor_file
from pipeline.approximators.recursion import ChunkState, Conventions, advance, advance_in_parts
from pipeline.approximators.weighing import Design
from pipeline.deletion.weights import deletion_rule
from pipeline.errors import DivergedError, StateError
from pipeline.hessian.roperator import Pairs
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory
from pipeline.training.replay import Replay
from pipeline.training.step import MOMENTUM, OptimizerState, buffer_names

_RENAMED = re.compile(r"^buffers-(\d+)$")

FirstRows = Callable[[list[int]], np.ndarray]
"""Returns the approximators (k, P) at which the given units start, in their order."""


@dataclass
class Chunk:
    """Units computed together, in the order of their first visit, and their state.

    Attributes:
        units: Unit numbers (K,), in computing order.
        positions: For every unit of the run its position in this chunk, or -1.
        state: Approximators in computing order; with a design, the weights of its group retrainings.
        design: Which units are left out together, and how approximators follow (`weighing.py`).
    """

    units: Tensor
    positions: Tensor
    state: ChunkState
    design: Design | None = None

    def own_pairs(self, owners_B: Tensor) -> Pairs:
        """Return which units (or groups) of the chunk own which samples of a minibatch, sorted."""
        positions = self.positions[owners_B]
        rows = torch.nonzero(positions >= 0).squeeze(1)
        if self.design is not None:
            groups, places = self.design.groups_vK[:, positions[rows]].nonzero(as_tuple=True)
            return Pairs(groups, rows[places])
        order = torch.argsort(positions[rows], stable=True)
        rows = rows[order]
        return Pairs(positions[rows], rows)


class BlockRecursion:
    """The recursion of a block: a position in the trajectory that advances and can be saved.

    The approximator of unit 0 brings the trained parameters near those of a retraining without it:

    >>> import tempfile
    >>> import torch
    >>> from pipeline import RunConfig, train
    >>> from pipeline.training.retraining import retrain
    >>> folder = tempfile.mkdtemp()
    >>> config = RunConfig.from_values({
    ...     "data": {"source": "digits", "num_train": 40},
    ...     "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.1, "l2": 0.01},
    ... })
    >>> run = train(config, f"{folder}/run")
    >>> problem, trajectory = run.problem(), run.trajectory()
    >>> block = BlockRecursion(problem, trajectory, units=range(0, 10))
    >>> num_products = block.advance(stop=trajectory.num_steps)
    >>> rows_mP = block.rows()
    >>> rows_mP.shape
    (10, 650)
    >>> retrained_P = retrain(problem, trajectory.schedule, torch.arange(40) == 0)
    >>> moved_P = retrained_P - trajectory.trained()
    >>> error = torch.linalg.vector_norm(moved_P - torch.from_numpy(rows_mP[0]))
    >>> bool(error < 0.1 * torch.linalg.vector_norm(moved_P))
    True
    """

    def __init__(
        self,
        problem: Problem,
        trajectory: Trajectory,
        units: range,
        first_rows: FirstRows | None = None,
    ) -> None:
        """Start before step 0.

        Args:
            problem: Data, network, conventions.
            trajectory: The approximators are propagated along it.
            units: Of the block.
            first_rows: Initial approximators; None for zero.
        """
        self.problem, self.trajectory, self.units = problem, trajectory, units
        self.replay = Replay.start(problem, trajectory)
        visits = trajectory.schedule.first_visits(
            problem.data.unit_of_sample.cpu(), len(problem.data.units)
        )
        self.chunks = [
            self._chunk(range(start, min(start + problem.chunk, units.stop)), visits, first_rows)
            for start in range(units.start, units.stop, problem.chunk)
        ]

    def _chunk(self, units: range, visits: Tensor, first_rows: FirstRows | None) -> Chunk:
        numbers = torch.arange(units.start, units.stop)
        numbers = numbers[torch.argsort(visits[numbers], stable=True)]
        positions = torch.full((len(visits),), -1)
        positions[numbers] = torch.arange(len(numbers))
        num_buffers = len(buffer_names(self.problem.config.training))
        like = self.problem.initial_P
        if self.problem.config.recursion.engine == "weighing":
            return self._weighed(units, positions, num_buffers, first_rows)
        if first_rows is None:
            state = ChunkState.start(len(numbers), like, num_buffers)
        else:
            rows = torch.from_numpy(first_rows(numbers.tolist()))
            state = ChunkState.continued(rows.to(like), num_buffers)
            if Conventions.of(self.problem.config).carries_weights:
                state.rows_KP.add_(self.replay.state.parameters_P)
        return Chunk(numbers, positions.to(like.device), state)

    def _weighed(
        self, units: range, positions: Tensor, num_buffers: int, first_rows: FirstRows | None
    ) -> Chunk:
        """Return a chunk whose units are left out together, in groups."""
        like, start_P = self.problem.initial_P, self.replay.state.parameters_P
        numbers = torch.arange(units.start, units.stop)
        positions[numbers] = torch.arange(len(numbers))
        seen = torch.cat(self.trajectory.schedule.sample_ids).unique()
        masses_N = np.array(self.problem.unit_masses(seen), dtype=np.float64)
        rule = deletion_rule(self.problem.config, int(masses_N.sum()))
        design = Design.of(self.problem.chunk, masses_N[numbers.numpy()], rule, like)
        rows = (
            None if first_rows is None else torch.from_numpy(first_rows(numbers.tolist())).to(like)
        )
        weights_vP = start_P.repeat(len(design.groups_vK), 1)
        if rows is not None:
            weights_vP += design.moved(rows)
        buffers = tuple(torch.zeros_like(weights_vP) for _ in range(num_buffers))
        state = ChunkState(0, weights_vP, buffers, len(weights_vP))
        return Chunk(numbers, positions.to(like.device), state, design)

    @property
    def step(self) -> int:
        """The next step."""
        return self.replay.step

    def advance(self, stop: int) -> int:
        """Advance to before step `stop`; return the number of HVPs (or gradients).

        Raises:
            DivergedError: If an approximator is not finite; the message names the unit.
        """
        owners = self.problem.data.unit_of_sample
        conventions = Conventions.of(self.problem.config)
        num_products = 0
        with self.problem.arithmetic():
            for step, context in self.replay.steps(stop):
                self._follow_shift(conventions)
                owners_B = owners[self.trajectory.schedule.sample_ids[step]]
                for chunk in self.chunks:
                    own = chunk.own_pairs(owners_B)
                    step_chunk = advance if chunk.design is None else advance_in_parts
                    chunk.state = step_chunk(chunk.state, context, own, conventions)
                    num_products += chunk.state.num_visited
            self._follow_shift(conventions)
        self._check_finite()
        return num_products

    def _follow_shift(self, conventions: Conventions) -> None:
        """Move each unit's own weights by what the last step's synchronisation moved the run's."""
        shift_P, self.replay.shift_P = self.replay.shift_P, None
        if shift_P is not None and conventions.carries_weights:
            for chunk in self.chunks:
                chunk.state.rows_KP[: chunk.state.num_visited] += shift_P

    def approximators(self, chunk: Chunk) -> Tensor:
        """Return the approximators (K, P) of a chunk before the present step, in computing order."""
        rows_KP, visited = chunk.state.rows_KP, chunk.state.num_visited
        if not Conventions.of(self.problem.config).carries_weights:
            return rows_KP
        if chunk.design is not None:
            return chunk.design.approximators(rows_KP, self.replay.state.parameters_P)
        # Units that no step has visited so far are zero, and have no weights of their own.
        own_VP = rows_KP[:visited] - self.replay.state.parameters_P
        return torch.cat([own_VP, rows_KP[visited:]])

    def _check_finite(self) -> None:
        for chunk in self.chunks:
            # A sum is finite only if all its terms are, and costs one pass without a copy.
            bad = ~torch.isfinite(chunk.state.rows_KP.sum(1))
            if bool(bad.any()):
                unit = self.problem.data.units[
                    int(chunk.units[bad.nonzero()[0, 0] % len(chunk.units)])
                ]
                which = "of unit" if chunk.design is None else "of a group of units with"
                raise DivergedError(
                    f"the approximator {which} {unit!r} is no longer finite before step {self.step}; "
                    "lower training.learning_rate or set training.clip_norm"
                )

    def rows(self, release: bool = False) -> np.ndarray:
        """Return the approximators of the block in unit order, (m, P) float32.

        Args:
            release: Free each chunk's state once it is copied, so that a block never needs twice
                its memory; the recursion cannot be used afterwards.
        """
        width = self.problem.num_parameters
        out = np.empty((len(self.units), width), dtype=np.float32)
        for chunk in self.chunks:
            positions = chunk.units.numpy() - self.units.start
            out[positions] = self.approximators(chunk).to("cpu", torch.float32).numpy()
            if release:
                # A slice would keep the whole memory alive.
                chunk.state = ChunkState(self.step, chunk.state.rows_KP.new_empty(0, width))
        return out

    def save(self, path: Path) -> None:
        """Write position and approximators so that `restore` continues to the same bits."""
        arrays = {name: value.cpu().numpy() for name, value in self._tensors()}
        facts = {
            "run": self.trajectory.digest,
            "units": [self.units.start, self.units.stop],
            "step": self.step,
            "visited": [chunk.state.num_visited for chunk in self.chunks],
        }
        tensor_file.write(path, arrays, facts)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        state = self.replay.state
        yield "parameters", state.parameters_P
        for name, buffer_P in state.buffers.items():
            yield f"optimizer-{name}", buffer_P
        for number, chunk in enumerate(self.chunks):
            yield f"rows-{number}", chunk.state.rows_KP
            for place, buffers_KP in enumerate(chunk.state.buffers):
                yield f"buffers-{number}-{place}", buffers_KP

    def restore(self, path: Path) -> None:
        """Continue from a saved state.

        Raises:
            StateError: If the file is damaged or belongs to another run or block; the block is then
                unchanged.
        """
        try:
            arrays, facts = tensor_file.read(path)
        except tensor_file.DamagedFileError as error:
            raise StateError(f"{error}; remove it to start the block again") from error
        units = [self.units.start, self.units.stop]
        if (facts.get("run"), facts.get("units")) != (self.trajectory.digest, units):
            raise StateError(
                f"{path} belongs to another run or block (units {facts.get('units')}, expected "
                f"{units}); remove it to start the block again"
            )
        like = self.problem.initial_P
        tensors = {name: torch.from_numpy(array).to(like) for name, array in arrays.items()}
        # Version 0.1.0 named the buffers of momentum without a number.
        tensors = {_RENAMED.sub(r"buffers-\1-0", name): value for name, value in tensors.items()}
        tensors = {
            f"optimizer-{MOMENTUM}" if name == "buffer" else name: value
            for name, value in tensors.items()
        }
        training = self.problem.config.training
        kept = {name: tensors[f"optimizer-{name}"] for name in buffer_names(training)}
        self.replay.state = OptimizerState(tensors["parameters"], kept, facts["step"])
        self.replay.step = facts["step"]
        for number, (chunk, visited) in enumerate(zip(self.chunks, facts["visited"], strict=True)):
            buffers = (tensors[f"buffers-{number}-{place}"] for place in range(len(kept)))
            rows_KP = tensors[f"rows-{number}"]
            chunk.state = ChunkState(facts["step"], rows_KP, tuple(buffers), visited)
