"""What runs inside an actor, as plain classes that need no cluster to be tested."""

# P parameters

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.approximators import open_store
from pipeline.problem import Problem
from pipeline.recollection import BlockRecursion
from pipeline.rundir import RunDirectory
from pipeline.trajectory import Trajectory
from storage.store import ApproximatorStore

# Without an explicit `save_every`, a block is saved when this much work would be lost.
SAVE_SECONDS = 15.0


@dataclass(frozen=True)
class BlockReport:
    """What a worker says after a call: facts, never rows.

    Attributes:
        block: Which block.
        step: The step before which it stands; T once its rows are stored.
        num_products: HVPs (or gradients) computed in this call.
        seconds: Time of the call.
        stored_bytes: Bytes of the rows, once stored.
        drift: Largest relative distance of the replay to a checkpoint.
    """

    block: int
    step: int
    num_products: int
    seconds: float
    stored_bytes: int
    drift: float


class RecursionWorker:
    """Holds model, data and one block; every call may be repeated after a crash."""

    def __init__(self, run_path: str | Path, save_every: int | None) -> None:
        """Name the run; nothing is loaded before the first call, so a worker starts early.

        Args:
            run_path: Run directory, on storage that every node sees.
            save_every: Steps between saved states; None saves every `SAVE_SECONDS` seconds.
        """
        self._path, self._save_every = Path(run_path), save_every
        self._block: int | None = None
        self._recursion: BlockRecursion | None = None
        self._saved_at = time.monotonic()

    @cached_property
    def _run(self) -> RunDirectory:
        return RunDirectory.open(self._path)

    @cached_property
    def _problem(self) -> Problem:
        return self._run.problem()

    @cached_property
    def _trajectory(self) -> Trajectory:
        return self._run.trajectory()

    @cached_property
    def _store(self) -> ApproximatorStore:
        return open_store(self._run, self._problem)

    def ready(self) -> int:
        """Return this process's number once its imports are done."""
        return os.getpid()

    def advance(self, block: int, start: int, stop: int) -> BlockReport:
        """Bring a block from before `start` to before `stop`; at T, store its rows.

        A worker that was restarted takes up the block's newest saved state and catches up; a
        repeated call whose work is done returns at once.
        """
        began = time.perf_counter()
        if block in self._store.finished_blocks():
            return BlockReport(block, self._trajectory.num_steps, 0, 0.0, 0, 0.0)
        recursion = self._taken_up(block)
        num_products = 0
        stored_bytes = 0
        while recursion.step < stop:
            num_products += recursion.advance(self._next_stop(recursion.step, stop))
            self._save_if_due(recursion, block)
        if recursion.step == self._trajectory.num_steps:
            # Let go of first: if the rows cannot be written, the next call takes up the saved state.
            self._block = self._recursion = None
            stored_bytes = self._store.write_rows(block, recursion.rows(release=True)).bytes
            self._state_path(block).unlink(missing_ok=True)
        seconds = time.perf_counter() - began
        drift = recursion.replay.max_drift
        return BlockReport(block, recursion.step, num_products, seconds, stored_bytes, drift)

    def _next_stop(self, step: int, stop: int) -> int:
        if self._save_every is None:
            return stop
        return min(stop, (step // self._save_every + 1) * self._save_every)

    def _taken_up(self, block: int) -> BlockRecursion:
        if self._recursion is not None and self._block == block:
            return self._recursion
        units = self._store.block_units(block)
        self._recursion = BlockRecursion(self._problem, self._trajectory, units)
        self._block, self._saved_at = block, time.monotonic()
        if self._state_path(block).exists():
            self._recursion.restore(self._state_path(block))
        return self._recursion

    def _save_if_due(self, recursion: BlockRecursion, block: int) -> None:
        if recursion.step == self._trajectory.num_steps:
            return
        if self._save_every is None:
            due = time.monotonic() - self._saved_at > SAVE_SECONDS
        else:
            due = recursion.step % self._save_every == 0
        if due:
            self._run.state_folder.mkdir(exist_ok=True)
            recursion.save(self._state_path(block))
            self._saved_at = time.monotonic()

    def _state_path(self, block: int) -> Path:
        return self._run.state_folder / f"block-{block}.safetensors"


class DeletionWorker:
    """Reads and sums rows; needs the run's files, not its data or model."""

    def __init__(self, run_path: str | Path, num_threads: int = 1) -> None:
        self._num_threads = num_threads
        # Checked reading uses the store's own threads; torch is only imported.
        torch.set_num_threads(num_threads)
        self._store = ApproximatorStore.open(RunDirectory.open(run_path).store_url)

    def sum_rows(
        self, units: Sequence[int | str], weights: Sequence[int] | None
    ) -> tuple[npt.NDArray[np.float64], float]:
        """Return the weighted sum of rows, float64 (P,), and the seconds it took.

        Raises:
            StorageError: If any row is missing, damaged or erased; there is no partial sum.
        """
        began = time.perf_counter()
        total_P = self._store.sum_rows(units, weights, num_threads=self._num_threads)
        return total_P, time.perf_counter() - began
