"""The precompute job: propagates every unit's approximator along a trajectory and stores it.

The approximators of a training or a retraining start at zero, those of a repair at values of the old
generation (`continuation.py`).
"""

# m units of a block, P parameters

from dataclasses import dataclass

from pipeline.approximators.block import BlockRecursion
from pipeline.approximators.class_halves import ClassHalves
from pipeline.approximators.continuation import Continuation
from pipeline.approximators.retraining_mark import is_retraining
from pipeline.deletion.class_terms import remove_other_generations
from pipeline.deletion.weights import Float32Array
from pipeline.errors import ConfigError, StateError
from pipeline.progress import Progress, silent
from pipeline.run.checkpoints import recorded_digest
from pipeline.run.directory import RunDirectory
from pipeline.run.measurements import record_measurements
from pipeline.run.problem import Problem
from pipeline.run.store import open_store
from pipeline.run.trajectory import Trajectory
from storage.facts import BlockFacts
from storage.store import ApproximatorStore


@dataclass(frozen=True)
class PrecomputeJob:
    """The inputs that all unfinished blocks of a store share.

    Attributes:
        problem: Data, network, conventions.
        trajectory: The approximators are propagated along it.
        store: They are written to it.
        start: Where they start; None for zero.
        generation: Of the store that they make.
        is_new: Whether that generation is written beside the one that is read.
        run: The run, where it is to have class terms; None: no terms.
    """

    problem: Problem
    trajectory: Trajectory
    store: ApproximatorStore
    start: Continuation | None = None
    generation: int = 0
    is_new: bool = False
    run: RunDirectory | None = None

    @staticmethod
    def of(run: RunDirectory, problem: Problem | None = None) -> "PrecomputeJob":
        """Open the job of a run: of its training, or of the repair or retraining under way.

        Args:
            run: A trained run.
            problem: Of this run, if it is at hand.

        Raises:
            StateError: If what a repair starts from is damaged or missing.
        """
        problem = problem or run.problem()
        store = open_store(run, problem)
        generation, kept = store.building, run if run.config.recursion.class_terms else None
        if generation is None:
            generation = store.generation
            trajectory = run.trajectory(generation)
            return PrecomputeJob(problem, trajectory, store, None, generation, run=kept)
        trajectory = run.trajectory(generation)
        start = None
        if not is_retraining(run, generation, trajectory.schedule):
            start = Continuation.read(run.continuation_path, trajectory)
        return PrecomputeJob(problem, trajectory, store, start, generation, is_new=True, run=kept)

    @staticmethod
    def of_training(run: RunDirectory, problem: Problem | None = None) -> "PrecomputeJob":
        """Open the job of the training.

        Raises:
            ConfigError: If a repair or a retraining is under way.
        """
        job = PrecomputeJob.of(run, problem)
        if job.is_new:
            what = "repair" if job.start is not None else "retrain"
            raise ConfigError(
                f"a {what if what == 'repair' else 'retraining'} of {run.path} was interrupted; finish "
                f"it by repeating `unlearn {what}`"
            )
        return job

    def waiting(self) -> list[int]:
        """Return the blocks that are not finished yet, in order."""
        return sorted(set(range(self.store.num_blocks)) - self.store.finished_blocks())

    def recursion(self, block: int) -> BlockRecursion:
        """Return the recursion of a block before step 0."""
        units, start = self.store.block_units(block), self.start
        if start is None:
            return BlockRecursion(self.problem, self.trajectory, units)
        return BlockRecursion(
            self.problem, self.trajectory, units, lambda chosen: start.rows(self.store, chosen)
        )

    def write(self, block: int, recursion: BlockRecursion) -> BlockFacts:
        """Store a finished block's approximators, and free the recursion's memory.

        Raises:
            StateError: If the store belongs to another job by now; nothing is written.
        """
        rows_mP = self._rows(recursion)
        self._refuse_if_over()
        return self.store.write_rows(block, rows_mP)

    def _refuse_if_over(self) -> None:
        """Stop a worker that outlived its driver: its block looks like one of the next repair."""
        building = self.store.building
        if not self.is_new:
            over = building is not None or self.store.generation != self.generation
        else:
            over = building != self.generation or (
                recorded_digest(self.trajectory.folder) != self.trajectory.digest
            )
        if over:
            raise StateError(
                f"the store no longer expects approximators of {self.trajectory.folder}: another "
                "repair has begun, or this one has ended"
            )

    def _rows(self, recursion: BlockRecursion) -> Float32Array:
        rows_mP = recursion.rows(release=True)
        if self.start is not None:
            # The mean gradient of the others moves the approximators of erased units as well.
            names = self.store.units
            rows_mP[[not names[unit] for unit in recursion.units]] = 0.0
        return rows_mP

    def compute(self, progress: Progress = silent) -> None:
        """Compute and store every unfinished block in this process; merge the manifest."""
        waiting = self.waiting()
        for done, block in enumerate(waiting):
            recursion = self.recursion(block)
            recursion.advance(self.trajectory.num_steps)
            self.write(block, recursion)
            progress(done + 1, len(waiting))
        self.finish()

    def finish(self, progress: Progress = silent) -> float:
        """Merge the manifest, all blocks being stored; before it compute the class terms, if any.

        So a generation is read only once it has its terms.

        Args:
            progress: In steps of the terms' retrainings.

        Returns:
            The seconds that the terms took.
        """
        if self.run is None:
            self.store.merge()
            return 0.0
        seconds = ClassHalves(
            self.run, self.problem, self.trajectory, self.store, self.generation, self.start
        ).compute(progress)
        self.store.merge()
        remove_other_generations(self.run.path, self.generation)
        if seconds:
            record_measurements(self.run, "class_terms", {"seconds": seconds})
        return seconds


def precompute(run: RunDirectory, progress: Progress = silent) -> ApproximatorStore:
    """Compute and store every unit's approximator in this process, without Ray.

    Finished blocks are kept: an interrupted call is continued by the next.

    Returns:
        The complete store, its manifest merged.

    Raises:
        ConfigError: If a repair is under way.
    """
    job = PrecomputeJob.of_training(run)
    job.compute(progress)
    return job.store
