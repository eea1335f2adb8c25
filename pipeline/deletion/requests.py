"""Deletion requests: what a client asks for, and the receipt it is answered with."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pipeline.errors import RequestError

# Far past any meaning; beyond it the solvers of the Gaussian mechanism overflow.
LARGEST_EPSILON = 1e6


@dataclass(frozen=True)
class DeletionRequest:
    """A wish to delete units.

    Attributes:
        units: Names, or positions as numbers; matched by their text. Repetitions have one effect.
        request_id: The client's id of the request; repeating it with the same units returns the
            first receipt. None draws a fresh one.
        epsilon: Privacy of the release, above 0, at most a million; None, with delta None,
            releases without noise.
        delta: Likewise, in (0, 1).
        skip_invalid: Leave unknown and deleted units out instead of refusing the request.
        dry_run: Check everything, change nothing.
    """

    units: Sequence[int | str]
    request_id: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    skip_invalid: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.units, str):
            raise RequestError(
                f"expected a list of units, found the one text {self.units!r}; name [{self.units!r}]"
            )
        if len(self.units) == 0:
            raise RequestError("expected at least one unit to delete, found none")
        if self.request_id == "":
            raise RequestError("expected a request id of at least one character, found none")
        check_privacy(self.epsilon, self.delta)

    def names(self) -> list[str]:
        """Return the units' texts, each once, in the order first named."""
        return list(dict.fromkeys(map(str, self.units)))


def check_privacy(epsilon: float | None, delta: float | None) -> None:
    """Refuse a pair that no Gaussian mechanism can keep.

    Raises:
        RequestError: One of the two is missing, not finite or out of range.
    """
    if epsilon is None and delta is None:
        return
    if epsilon is None or delta is None:
        raise RequestError(
            f"expected epsilon and delta together, found epsilon {epsilon} and delta {delta}; "
            "name both, or neither for a release without noise"
        )
    if not (math.isfinite(epsilon) and 0 < epsilon <= LARGEST_EPSILON):
        raise RequestError(
            f"expected an epsilon above 0 and at most {LARGEST_EPSILON:g}, found {epsilon}"
        )
    if not 0 < delta < 1:
        raise RequestError(f"expected a delta between 0 and 1, both excluded, found {delta}")


@dataclass(frozen=True)
class Receipt:
    """The answer to a request.

    Attributes:
        request_id: The client's id, or the one drawn for it.
        release: k of releases/<k>/; None after a dry run that found nothing to delete.
        units_deleted: How many units this request deleted.
        already: Units left out because they were deleted before, by name.
        unknown: Units left out because the run was not trained on them, by name.
        epsilon: Privacy of the release; None without noise.
        delta: Likewise.
        sum_seconds: Time in which the rows of the batch were read and summed.
        total_seconds: Time from request to receipt; for a repeated one, of the first time.
        warnings: What the client should read.
        repeated: Whether this request had been answered before.
        dry_run: Whether nothing was changed.
        copies: Files outside the run that hold approximators of deleted units: `unlearn export`
            wrote them, and the operator must remove them. Never stored.
    """

    request_id: str
    release: int | None
    units_deleted: int
    already: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    epsilon: float | None = None
    delta: float | None = None
    sum_seconds: float = 0.0
    total_seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    repeated: bool = False
    dry_run: bool = False
    copies: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the receipt as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Receipt":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        for name in ("already", "unknown", "warnings", "copies"):
            fields[name] = tuple(fields.get(name, ()))
        return cls(**fields)
