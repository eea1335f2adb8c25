"""The recursion for chosen groups of samples, each as one unit; groups may overlap.

A pilot needs the approximators of a few units, and of sets of them as one unit, and of no others. One
replay serves all groups and every engine. For a run's own units the values are those of
`block.py`, not always to the bit: other units share the chunk.
"""

# G groups, K of a chunk, B minibatch rows, P parameters, n samples

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.approximators.recursion import ChunkState, Conventions, advance
from pipeline.config import RunConfig
from pipeline.hessian.roperator import Pairs
from pipeline.progress import Progress, silent
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory
from pipeline.training.replay import Replay
from pipeline.training.step import buffer_names

ENGINES = ("hvp", "leave-one-out")


def engines_of(config: RunConfig) -> tuple[str, ...]:
    """Return the engines that a run's conventions allow."""
    recursion = config.recursion
    linear = recursion.own_rows == "included" or recursion.expected_fraction > 0
    # A proof and the published formula are about the linear recursion.
    proved = config.certificate.kind in ("certified", "published")
    return ENGINES[:1] if linear or proved else ENGINES


def with_engine(problem: Problem, engine: str) -> Problem:
    """Return the problem with another engine: the same training, other approximators."""
    # Differences need no run's weights beside them; the values are the same to rounding.
    changed = {"engine": engine, "leave_one_out": "differences"}
    recursion = problem.config.recursion.model_copy(update=changed)
    return replace(problem, config=problem.config.model_copy(update={"recursion": recursion}))


@dataclass(frozen=True)
class GroupRows:
    """Approximators of groups, by one engine.

    Attributes:
        rows_GP: In the order of the groups; not finite where the recursion diverged.
        num_products: HVPs, or gradients.
        seconds: They took, the shared pass apart.
    """

    rows_GP: Tensor
    num_products: int
    seconds: float


def propagate(
    problem: Problem,
    trajectory: Trajectory,
    groups: Mapping[str, Sequence[Tensor]],
    progress: Progress = silent,
    num_steps: int | None = None,
) -> dict[str, GroupRows]:
    """Return each group's approximator, by engine.

    Args:
        problem: Data, network, conventions; its own engine is not looked at.
        trajectory: The approximators are propagated along it.
        groups: By engine, positions of each group's samples in the training set.
        progress: Called after each step.
        num_steps: Stop before this step; None: at the end.
    """
    walks = {
        engine: _Walk(with_engine(problem, engine), trajectory, members)
        for engine, members in groups.items()
        if members
    }
    total = trajectory.num_steps if num_steps is None else num_steps
    replay = Replay.start(problem, trajectory)
    with problem.arithmetic():
        for step, context in replay.steps(total):
            sample_ids = trajectory.schedule.sample_ids[step]
            for walk in walks.values():
                walk.advance(context, sample_ids)
            progress(step + 1, total)
    return {engine: walk.result() for engine, walk in walks.items()}


class _Walk:
    """The chunks of one engine, on their way along a trajectory."""

    def __init__(self, problem: Problem, trajectory: Trajectory, groups: Sequence[Tensor]) -> None:
        self._problem, self._conventions = problem, Conventions.of(problem.config)
        self._products, self._seconds = 0, 0.0
        num_samples, num_buffers = (
            problem.data.num_samples,
            len(buffer_names(problem.config.training)),
        )
        first_n = trajectory.schedule.first_visits(torch.arange(num_samples), num_samples)
        first_G = torch.stack([first_n[group.cpu()].min() for group in groups])
        # As in a block: those visited so far must be a prefix of the chunk.
        self._order = torch.argsort(first_G, stable=True)
        self._chunks: list[tuple[Tensor, ChunkState]] = []
        for numbers in self._order.split(problem.chunk):
            members_Kn = torch.zeros(
                len(numbers), num_samples, dtype=torch.bool, device=problem.device
            )
            for row, number in enumerate(numbers.tolist()):
                members_Kn[row, groups[number].to(problem.device)] = True
            state = ChunkState.start(len(numbers), problem.initial_P, num_buffers)
            self._chunks.append((members_Kn, state))

    def advance(self, context: Any, sample_ids: Tensor) -> None:
        began = time.perf_counter()
        for number, (members_Kn, state) in enumerate(self._chunks):
            tangents, rows = members_Kn[:, sample_ids].nonzero(as_tuple=True)
            after = advance(state, context, Pairs(tangents, rows), self._conventions)
            self._chunks[number] = (members_Kn, after)
            self._products += after.num_visited
        if self._problem.device.type == "cuda":
            torch.cuda.synchronize()
        self._seconds += time.perf_counter() - began

    def result(self) -> GroupRows:
        rows_GP = torch.cat([state.rows_KP for _, state in self._chunks]).cpu()
        back = torch.empty_like(self._order)
        back[self._order] = torch.arange(len(self._order))
        return GroupRows(rows_GP[back], self._products, self._seconds)
