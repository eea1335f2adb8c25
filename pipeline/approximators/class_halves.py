"""Computing class terms: one retraining for each class, without a random half of it.

    r_c = (retrained without h_c - w_T) - f(m) sum of the approximators of h_c        m = mass of h_c

A unit counts to the class of which it has the most mass. h_c is drawn by the run's seed from the units
that count to c, whole units up to half of their mass of c; a class of fewer than two such units has no
term. Each retraining is kept as soon as it is done, so an interrupted call goes on with the next.

A term of a repaired generation is made as its approximators are: the fine-tuning is repeated without
h_c from where the old generation says that deleting h_c as well would have led.
"""

# C classes, P parameters

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import tensor_file
from pipeline.approximators.continuation import Continuation
from pipeline.deletion.class_terms import (
    UNIT_MASSES,
    ClassTerms,
    Masses,
    UnitMasses,
    class_terms_of,
    term_path,
    terms_folder,
)
from pipeline.deletion.weights import (
    DeletionRule,
    DeletionState,
    Float64Array,
    add_to_state,
    apply_deletion,
    deleted_chunks,
    deletion_rule,
    unit_weights,
)
from pipeline.errors import DamagedRunError, DivergedError
from pipeline.progress import Progress, silent
from pipeline.run.class_masses import MassTable
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory
from pipeline.training.retraining import retrain
from storage.errors import UnknownUnitError
from storage.store import ApproximatorStore


@dataclass(frozen=True)
class ClassHalves:
    """The retrainings of a generation's class terms.

    Attributes:
        run: The run.
        problem: Data, network, conventions.
        trajectory: Of the generation.
        store: It holds all of the generation's approximators, merged or not.
        generation: Its number.
        start: What a repair's approximators start from; None for zero.
    """

    run: RunDirectory
    problem: Problem
    trajectory: Trajectory
    store: ApproximatorStore
    generation: int
    start: Continuation | None = None

    def compute(self, progress: Progress = silent) -> float:
        """Compute and keep every term that is missing; return the seconds it took.

        Raises:
            DivergedError: If a retraining diverges; those before it are kept.
            DamagedRunError: If what they are computed from is gone.
        """
        began = time.perf_counter()
        folder = terms_folder(self.run.path, self.generation)
        if ClassTerms.read(folder, self.trajectory.digest) is not None:
            return 0.0
        self._refuse_repaired()
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        scheduled = torch.cat(self.trajectory.schedule.sample_ids).unique()
        table = MassTable.of(self.problem.data, self.problem.sample_masses(), scheduled)
        halves = table.halves([self.problem.config.seed, self.generation])
        half_masses_C = np.zeros(table.num_classes, np.int64)
        total = len(halves) * self.trajectory.num_steps
        for place, (number, units) in enumerate(halves.items()):
            masses_C = table.of_units(units)
            half_masses_C[number] = masses_C[number]
            told = _shifted(progress, place * self.trajectory.num_steps, total)
            self._keep(folder, number, units, masses_C, told)
        dtype = self.trajectory.trained().numpy().dtype.name
        masses = self._write_masses(folder, table)
        ClassTerms.write(folder, masses, half_masses_C, self.problem.num_parameters, dtype)
        return time.perf_counter() - began

    def _refuse_repaired(self) -> None:
        """Refuse to make terms anew whose retrainings start where an older generation said."""
        start_P = self.trajectory.parameters_before(0).to(self.problem.initial_P)
        if self.start is None and not torch.equal(start_P, self.problem.initial_P):
            raise DamagedRunError(
                f"the class terms of repaired generation {self.generation} are gone and cannot be "
                "computed again; restore them from a backup with `unlearn restore`, or train without "
                "the deleted with `unlearn retrain`"
            )

    def _write_masses(self, folder: Path, table: MassTable) -> UnitMasses:
        """Write the masses of the units that were trained on and are not erased."""
        names, trajectory = self.store.units, self.trajectory.digest
        rows = [row for row in np.unique(table.units).tolist() if names[row]]
        mass_NW, class_NW = table.records()
        gone_N = np.ones(table.num_units, bool)
        gone_N[rows] = False
        mass_NW[gone_N], class_NW[gone_N] = 0, 0
        return UnitMasses.write(folder / UNIT_MASSES, trajectory, mass_NW, class_NW, rows)

    def _keep(
        self,
        folder: Path,
        number: int,
        units: NDArray[np.int64],
        masses_C: Masses,
        progress: Progress,
    ) -> None:
        """Compute a term, unless it is there."""
        path = term_path(folder, number)
        facts = {"trajectory": self.trajectory.digest, "class": number, "units": len(units)}
        try:
            if tensor_file.read(path)[1] == facts:
                return
        except tensor_file.DamagedFileError:
            pass  # not there, or of an interrupted write: made anew
        try:
            term_P = self._term(units, masses_C, progress)
        except DivergedError as error:
            raise DivergedError(
                f"recursion.class_terms: training without half of class {number}: {error}; terms need "
                "a training that stays finite without half of a class"
            ) from error
        tensor_file.write(path, {"term": term_P}, facts)

    def _term(
        self, units: NDArray[np.int64], masses_C: Masses, progress: Progress
    ) -> NDArray[np.floating]:
        problem, trained_P = self._started(units, masses_C), self.trajectory.trained().numpy()
        mask_n = problem.data.samples_of(torch.from_numpy(units).to(problem.device))
        retrained_P = retrain(problem, self.trajectory.schedule, mask_n, progress).cpu().numpy()
        rule, state = self._summed(units)
        moved_P = retrained_P.astype(np.float64)
        for start, values_C in deleted_chunks(rule, trained_P, state):
            moved_P[start : start + values_C.size] -= values_C
        return moved_P.astype(trained_P.dtype)

    def _summed(self, units: NDArray[np.int64]) -> tuple[DeletionRule, DeletionState]:
        scheduled = torch.cat(self.trajectory.schedule.sample_ids).unique()
        masses = self.problem.unit_masses(scheduled)
        rule = deletion_rule(self.problem.config, sum(masses))
        counts = [masses[unit] for unit in units.tolist()]
        try:
            sum_P = self.store.sum_written_at(units.tolist(), unit_weights(rule, counts))
        except UnknownUnitError as error:
            raise DamagedRunError(
                "class terms cannot be computed again once units of their halves are erased; restore "
                "them from a backup with `unlearn restore`, or train without the deleted with "
                "`unlearn retrain`"
            ) from error
        return rule, DeletionState(sum_P, sum(counts))

    def _started(self, units: NDArray[np.int64], masses_C: Masses) -> Problem:
        """Return the problem with the start of this generation's training without some units."""
        if self.start is None:
            return self.problem
        rule, old = self.start.rule, self.start.state
        generation = self.store.generation
        trained_P = self.run.trajectory(generation).trained().numpy()
        masses = self.problem.unit_masses()
        counts = [masses[unit] for unit in units.tolist()]
        sum_P: Float64Array = self.store.sum_rows_at(units.tolist(), unit_weights(rule, counts))
        state = add_to_state(old, sum_P, sum(counts), masses_C)
        terms, variances = class_terms_of(self.run, generation), self._variances()
        start_P = apply_deletion(rule, trained_P, state, variances, terms)
        return replace(self.problem, initial_P=torch.from_numpy(start_P).to(self.problem.initial_P))

    def _variances(self) -> Sequence[slice]:
        return self.problem.network.layout.variances()


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    """Return the progress of one of several retrainings, told in steps of all of them."""
    return lambda done, _: progress(before + done, total)
