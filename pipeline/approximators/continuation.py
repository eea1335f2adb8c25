"""The approximators at which a repair starts: the effect of deleting each unit on the repaired model.

With v = w_T + f(M) S the model to be repaired, n' = n - M samples left, and n_u those of unit u:

    denominator batch:      a'_u = a_u
    leave-one-out Hessian:  a'_u = ((n - n_u) a_u + (n_u / n') S) / (n' - n_u)
    full-batch Hessian:     a'_u = (n - 1) / (n' - 1) (a_u + (n_u / n') S)

Sums of these equal the sums of the old approximators, so deletions before and after the repair add
up as if made together (docs/method.md, section 9).
"""

# m units, P parameters

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline import tensor_file
from pipeline.deletion.weights import (
    DeletionRule,
    DeletionState,
    Float32Array,
    correction_factor,
    unit_weights,
)
from pipeline.errors import StateError
from pipeline.run.trajectory import Trajectory
from storage.store import ApproximatorStore


@dataclass(frozen=True)
class Continuation:
    """How the approximators of a new generation follow from those of the old one.

    Attributes:
        rule: Of the old generation.
        state: S and M of the old generation.
    """

    rule: DeletionRule
    state: DeletionState

    def rows(self, store: ApproximatorStore, units: Sequence[int]) -> Float32Array:
        """Return a'_u of each unit, float32 (m, P); those of erased units are zero.

        Args:
            store: Its readable generation is the old one.
            units: Unit numbers.
        """
        names, counts = store.units, store.samples_per_unit()
        live = [unit for unit in units if names[unit]]
        rows_mP = np.zeros((len(units), len(self.state.weighted_sum_P)), np.float32)
        if live:
            positions = [position for position, unit in enumerate(units) if names[unit]]
            rows_mP[positions] = store.read_rows_at(live)
            for position, unit in zip(positions, live, strict=True):
                rows_mP[position] = self.row(rows_mP[position], counts[names[unit]])
        return rows_mP

    def row(self, row_P: Float32Array, num_owned: int) -> Float32Array:
        """Return a'_u from a_u, both float32 (P,), of a unit with n_u = `num_owned` samples."""
        rule, state = self.rule, self.state
        if rule.denominator == "batch":
            return row_P
        if rule.exponent != 1:
            return self._adaptive_row(row_P, num_owned)
        left = rule.num_samples - state.num_deleted_samples
        shared_P = state.weighted_sum_P * (num_owned / left)
        if rule.own_rows == "left-out":
            moved_P = ((rule.num_samples - num_owned) * row_P.astype(np.float64) + shared_P) / (
                left - num_owned
            )
        else:
            moved_P = (rule.num_samples - 1) / (left - 1) * (row_P + shared_P)
        return np.asarray(moved_P, dtype=np.float32)

    def _adaptive_row(self, row_P: Float32Array, num_owned: int) -> Float32Array:
        """Return f(M + n_u) (S + weight a_u) - f(M) S, which all other formulas are cases of."""
        rule, state = self.rule, self.state
        weights = unit_weights(rule, [num_owned])
        weight = 1 if weights is None else weights[0]
        deleted = state.num_deleted_samples
        both_P = state.weighted_sum_P + weight * row_P.astype(np.float64)
        moved_P = correction_factor(rule, deleted + num_owned) * both_P
        moved_P -= correction_factor(rule, deleted) * state.weighted_sum_P
        return np.asarray(moved_P, dtype=np.float32)

    def write(self, path: Path, trajectory: Trajectory) -> None:
        """Write this for workers of other processes; `trajectory` is the fine-tuning it belongs to.

        S is confidential: the folder and the file are readable by their owner only.
        """
        path.parent.mkdir(mode=0o700, exist_ok=True)
        facts = {
            "trajectory": trajectory.digest,
            "rule": asdict(self.rule),
            "num_deleted_samples": self.state.num_deleted_samples,
        }
        if self.state.masses_C is not None:
            facts["masses"] = self.state.masses_C.tolist()
        tensor_file.write(path, {"weighted_sum": self.state.weighted_sum_P}, facts)

    @staticmethod
    def read(path: Path, trajectory: Trajectory) -> "Continuation":
        """Return what `write` wrote.

        Raises:
            StateError: If the file is damaged or belongs to another fine-tuning.
        """
        remedy = "repeat `unlearn repair`"
        try:
            arrays, facts = tensor_file.read(path)
        except tensor_file.DamagedFileError as error:
            raise StateError(f"{error}; {remedy}") from error
        if facts.get("trajectory") != trajectory.digest:
            raise StateError(f"{path} belongs to another repair than {trajectory.folder}; {remedy}")
        masses_C = np.array(facts["masses"], np.int64) if "masses" in facts else None
        state = DeletionState(
            arrays["weighted_sum"], facts["num_deleted_samples"], masses_C=masses_C
        )
        return Continuation(DeletionRule(**facts["rule"]), state)
