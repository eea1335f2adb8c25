"""The gate: a deletion is refused where the run's measured error is above a limit.

Only counts decide: how many units and samples are deleted once the request is carried out, those of
waiting requests included. Never who they are, their approximators or norms, so a refusal tells nothing
about a person.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.certificates.sensitivity import unit_buckets
from pipeline.errors import ErrorLimitError
from pipeline.formats import percent
from pipeline.run.error_curve import ErrorCurve, Expected
from pipeline.run.verdict import (
    DEFAULT_LIMIT,
    NOT_MEASURED,
    NOTABLE,
    Verdict,
    counted,
    size_verdict,
    verdict,
)
from storage.ledger_records import ReleaseRecord, RequestRecord


@dataclass(frozen=True)
class Decision:
    """What the gate found of a deletion that it lets through.

    Attributes:
        expected: The error to expect; None where nothing was measured.
        warnings: For the receipt.
    """

    expected: Expected | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ErrorGate:
    """The limit of a run, and what is known of its error.

    Attributes:
        curve: The measured error; None where nothing was measured.
        limit: `evaluation.max_error`; None lets everything through.
        require_measured: Refuse where nothing was measured.
        unmeasured: Why nothing was measured, with what to do about it.
        unit: What one unit is.
    """

    curve: ErrorCurve | None = None
    limit: float | None = DEFAULT_LIMIT
    require_measured: bool = False
    unmeasured: str = NOT_MEASURED
    unit: str = "sample"

    def decide(self, num_units: int, num_samples: int, accepted: float | None = None) -> Decision:
        """Let a deletion through, or refuse it.

        Args:
            num_units: Deleted of this generation once it is carried out.
            num_samples: Of these units.
            accepted: The error that the operator accepts (`--accept-error`); None: the limit alone.

        Raises:
            ErrorLimitError: The error is above the limit, or nothing was measured where it must be.
        """
        if self.curve is None:
            if self.require_measured:
                raise ErrorLimitError(
                    f"no measured error, and evaluation.require_measured is set ({self.unmeasured}). "
                    "Nothing was deleted; to delete all the same: `unlearn configure DIR "
                    "evaluation.require_measured=false`"
                )
            return Decision(None, (self.unmeasured,))
        expected = self.curve.at(num_units, num_samples)
        told = f"the measured error of {counted(num_units, self.unit)} is {_told(expected)}"
        if self.limit is not None and expected.error > self.limit:
            if accepted is None or expected.error > accepted:
                raise ErrorLimitError(_refusal(told, expected.error, self.limit, accepted))
            return Decision(
                expected, (f"{told}, above the limit of {percent(self.limit)}: accepted",)
            )
        return Decision(expected, (told,) if expected.error >= NOTABLE else ())

    def retrained(self) -> "ErrorGate":
        """Return the gate of the model that a retraining under way will give."""
        told = f"{NOT_MEASURED} for the retrained model"
        return replace(self, curve=None, unmeasured=told)

    def now(self, last: ReleaseRecord | None, generation: int) -> str:
        """Return what is left of what was deleted so far, in a line.

        Args:
            last: The newest release, if any.
            generation: Of the run.
        """
        if last is None or last.generation < generation or last.total_units == 0:
            return "nothing is deleted from the present model"
        told = counted(last.total_units, self.unit)
        if self.curve is None:
            return f"{told} deleted: {self.unmeasured}"
        expected = self.curve.at(last.total_units, last.total_samples)
        found = size_verdict(last.total_units, self.unit, expected.error, self.limit)
        how = "" if expected.how == "measured" else f" ({expected.how})"
        return f"{found.text.replace(told, f'{told} deleted', 1)}{how}"

    @property
    def verdict(self) -> Verdict:
        """What the measured error means for deletions of each size."""
        if self.curve is None:
            return Verdict("unknown", self.unmeasured)
        return verdict(self.curve.points, self.unit, self.limit)

    def can_refuse(self, num_units: int, num_samples: int) -> bool:
        """Whether any deletion of at most so many units might be refused; the error never falls."""
        try:
            self.decide(num_units, num_samples)
        except ErrorLimitError:
            return True
        return False

    def stated(
        self, num_units: int, num_samples: int, capacity: int, accepted: float | None
    ) -> dict[str, Any]:
        """Return what a release records, and its certificate states, of the error.

        The error is that of a rounded number of units, as everything on a certificate: the exact one
        would tell how many were deleted.

        Args:
            num_units: Deleted of this generation, at least 1.
            num_samples: Of these units.
            capacity: The deletion capacity that was declared; 0 for none.
            accepted: The error that the operator accepted.
        """
        curve = self.curve
        size = num_units if curve is None else max(num_units, curve.size(num_units, num_samples))
        at_most = bucket(capacity, math.ceil(size))
        expected = None if curve is None else curve.at(at_most)
        return {
            "units_at_most": at_most,
            "source": None if curve is None else curve.source,
            "how": "not measured" if expected is None else expected.how,
            "error": None if expected is None else expected.error,
            "low": None if expected is None else expected.low,
            "high": None if expected is None else expected.high,
            "trials": 0 if expected is None else expected.trials,
            "note": self.unmeasured if expected is None else expected.note,
            "limit": self.limit,
            "accepted": accepted,
        }


def accepted_error(
    requests: Sequence[RequestRecord], last: ReleaseRecord | None, generation: int
) -> float | None:
    """Return the error that the operator accepted for a release of these requests, or None.

    What was accepted for the last release counts, since the new one deletes as much and more: a
    request that waited beside the one that was accepted must not be stuck.
    """
    found = [each.accepted_error for each in requests if each.accepted_error is not None]
    if last is not None and last.generation == generation and last.measured_error is not None:
        before: Mapping[str, Any] = last.measured_error
        found += [] if before["accepted"] is None else [float(before["accepted"])]
    return max(found, default=None)


def bucket(capacity: int, num_units: int) -> int:
    """Return the number of units that a certificate tells instead of the exact one.

    Args:
        capacity: The deletion capacity that was declared; 0 for none.
        num_units: At least 1.
    """
    # Without a declared capacity the buckets go on for ever; ten times as many contain the next.
    # A set that counts as a larger one for its samples may pass the capacity, which is of units.
    largest = capacity if capacity >= num_units else 10 * num_units
    return next(bound for bound in unit_buckets(largest) if bound >= num_units)


def _told(expected: Expected) -> str:
    how = "" if expected.how == "measured" else f", {expected.how}"
    note = f", {expected.note}" if expected.note else ""
    return f"{percent(expected.error)} of no unlearning{how and f' ({how[2:]}{note})'}"


def _refusal(told: str, error: float, limit: float, accepted: float | None) -> str:
    bound = f"above evaluation.max_error, {percent(limit)}"
    if accepted is not None:
        bound += f", and above the {percent(accepted)} of --accept-error"
    enough = math.ceil(error * 100 + 1e-9) / 100
    return (
        f"{told}, {bound}. Nothing was deleted: bring the run near to retraining first with `unlearn "
        "repair DIR --epochs N`, train without the deleted with `unlearn retrain DIR` (or `unlearn "
        f"delete ... --fallback retrain`), or accept the error with `--accept-error {enough:g}`"
    )
