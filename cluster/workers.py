"""The recursion's worker: a plain class without Ray, used in an actor or in the driver's process."""

import os
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cluster.logs import log
from pipeline.approximators.block import BlockRecursion
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.errors import StateError
from pipeline.heap import keep_freed_memory
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from storage.store import ApproximatorStore

# Without an explicit `save_every`, a block is saved when this much work would be lost.
SAVE_SECONDS = 15.0


@dataclass(frozen=True)
class WorkerNode:
    """Where a worker runs.

    Attributes:
        node: The machine's name in the cluster.
        process: Number of the worker's process there.
    """

    node: str
    process: int


@dataclass(frozen=True)
class BlockReport:
    """What a worker reports after a call: counts and times, never rows.

    Attributes:
        block: Which block.
        step: The step before which it stands; T once its rows are stored.
        steps_taken: Steps of the recursion in this call, those repeated after a crash included.
        num_products: HVPs (or gradients) computed in this call.
        seconds: Time of the call.
        stored_bytes: Bytes of the rows, once stored.
        drift: Largest relative distance of the replay to a checkpoint.
        node: Where the worker runs.
        peak_bytes: Largest memory of the worker's process so far.
    """

    block: int
    step: int
    steps_taken: int
    num_products: int
    seconds: float
    stored_bytes: int
    drift: float
    node: WorkerNode
    peak_bytes: int = 0


class RecursionWorker:
    """Holds model, data and one block; every call may be repeated after a crash."""

    def __init__(
        self,
        run_path: str | Path,
        save_every: int | None = None,
        node_name: Callable[[], str] = socket.gethostname,
        problem: Problem | None = None,
    ) -> None:
        """Name the run; nothing is loaded before the first call, so a worker starts early.

        Args:
            run_path: Run directory, on storage that every node sees.
            save_every: Steps between saved states; None saves every `SAVE_SECONDS` seconds.
            node_name: Tells which machine this is.
            problem: Of the run, where it is at hand; None loads it.
        """
        keep_freed_memory()
        self._path, self._save_every, self._node_name = Path(run_path), save_every, node_name
        self._problem = problem
        self._block: int | None = None
        self._recursion: BlockRecursion | None = None
        self._saved_at = time.monotonic()

    @cached_property
    def _run(self) -> RunDirectory:
        return RunDirectory.open(self._path)

    @cached_property
    def _job(self) -> PrecomputeJob:
        return PrecomputeJob.of(self._run, self._problem)

    @property
    def _store(self) -> ApproximatorStore:
        return self._job.store

    @property
    def _num_steps(self) -> int:
        return self._job.trajectory.num_steps

    def ready(self) -> WorkerNode:
        """Return where this worker runs, once its imports are done."""
        return WorkerNode(self._node_name(), os.getpid())

    def advance(self, block: int, start: int, stop: int) -> BlockReport:
        """Bring a block from before `start` to before `stop`; at T, store its rows.

        A worker that was restarted takes up the block's newest saved state and catches up; a
        repeated call whose work is done returns at once.
        """
        began = time.perf_counter()
        # Asked when a block is taken up, not at each of its calls: it reads several objects, and
        # nobody but its holder finishes a block.
        if not self._holds(block) and self._store.is_finished(block):
            self._leave(block)
            return BlockReport(block, self._num_steps, 0, 0, 0.0, 0, 0.0, self.ready())
        recursion = self._taken_up(block)
        first, num_products, stored_bytes = recursion.step, 0, 0
        while recursion.step < stop:
            num_products += recursion.advance(self._next_stop(recursion.step, stop))
            self._save_if_due(recursion, block)
        if recursion.step == self._num_steps:
            # Released first: if the rows cannot be written, the next call takes up the saved state.
            self._recursion = None
            stored_bytes = self._job.write(block, recursion).bytes
            self._leave(block)
        return BlockReport(
            block=block,
            step=recursion.step,
            steps_taken=recursion.step - first,
            num_products=num_products,
            seconds=time.perf_counter() - began,
            stored_bytes=stored_bytes,
            drift=recursion.replay.max_drift,
            node=self.ready(),
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )

    def _next_stop(self, step: int, stop: int) -> int:
        if self._save_every is None:
            return stop
        return min(stop, (step // self._save_every + 1) * self._save_every)

    def _holds(self, block: int) -> bool:
        return self._recursion is not None and self._block == block

    def _taken_up(self, block: int) -> BlockRecursion:
        if self._recursion is not None and self._block == block:
            return self._recursion
        # The last block's rows go before the next one's are made: memory holds one block.
        self._recursion = None
        recursion = self._job.recursion(block)
        if self._state_path(block).exists():
            _restore_or_restart(recursion, self._state_path(block))
        self._recursion, self._block, self._saved_at = recursion, block, time.monotonic()
        return recursion

    def _leave(self, block: int) -> None:
        """Release a finished block and remove its saved state, which holds approximators."""
        self._state_path(block).unlink(missing_ok=True)
        self._block = self._recursion = None

    def _save_if_due(self, recursion: BlockRecursion, block: int) -> None:
        if recursion.step == self._num_steps:
            return
        if self._save_every is None:
            due = time.monotonic() - self._saved_at > SAVE_SECONDS
        else:
            due = recursion.step % self._save_every == 0
        if due:
            self._run.state_folder.mkdir(mode=0o700, exist_ok=True)
            recursion.save(self._state_path(block))
            self._saved_at = time.monotonic()

    def _state_path(self, block: int) -> Path:
        return self._run.state_folder / f"block-{block}.safetensors"


def _restore_or_restart(recursion: BlockRecursion, path: Path) -> None:
    """Continue from a saved state; a damaged one costs its block's time, not the run."""
    try:
        recursion.restore(path)
    except StateError as error:
        log().warning("saved state discarded", path=str(path), reason=str(error))
        path.unlink()
