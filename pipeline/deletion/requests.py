"""Deletion requests: what a client asks for, and the receipt it is answered with."""

import json
import math
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np

from pipeline.errors import RequestError

# Far past any meaning; beyond it the solvers of the Gaussian mechanism overflow.
LARGEST_EPSILON = 1e6


@dataclass(frozen=True)
class DeletionRequest:
    """A request to delete units.

    Attributes:
        units: Names; a whole number stands for its text. Given as a list, a tuple or a flat array,
            kept as a tuple of texts. Repetitions have one effect.
        request_id: The client's id of the request; repeating it with the same units returns the
            first receipt. None draws a fresh one.
        epsilon: Privacy of the release, above 0, at most a million; None, with delta None,
            releases without noise.
        delta: Likewise, in (0, 1).
        skip_invalid: Leave unknown and deleted units out instead of refusing the request.
        dry_run: Check everything, change nothing.
        accept_error: Release also where the measured error is above the run's limit, up to this.
        due: The day by which it is to be carried out, such as `2026-12-31`; kept in the ledger and
            listed with the request, and nothing else: no certificate names it.
    """

    units: Sequence[int | str]
    request_id: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    skip_invalid: bool = False
    dry_run: bool = False
    accept_error: float | None = None
    due: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", unit_texts(self.units))
        if self.request_id == "":
            raise RequestError("expected a request id of at least one character, found none")
        check_privacy(self.epsilon, self.delta)
        if self.accept_error is not None and not 0 < self.accept_error < math.inf:
            raise RequestError(
                f"expected a relative error above 0 to accept, such as 0.9, found {self.accept_error}"
            )
        _check_day(self.due)

    def names(self) -> list[str]:
        """Return the units' texts, each once, in the order first named."""
        return list(dict.fromkeys(map(str, self.units)))


def _check_day(due: str | None) -> None:
    with suppress(ValueError, TypeError):
        # Other forms of ISO 8601 would not sort as texts do.
        if due is None or date.fromisoformat(due).isoformat() == due:
            return
    raise RequestError(f"expected a day such as 2026-12-31 as due, found {due!r:.80}")


def unit_texts(units: object) -> tuple[str, ...]:
    """Return the texts of units, if they are given in a form that can mean one thing only.

    Raises:
        RequestError: They are no list of names and whole numbers; the message says what to write.
    """
    instead = _what_to_write(units)
    if instead:
        raise RequestError(f"expected a list of units, found {_shown(units)}; write {instead}")
    # An array, a column of a table or a tensor knows its values as plain Python objects.
    values: Any = units.tolist() if hasattr(units, "tolist") else units
    if not isinstance(values, Sequence) or len(values) == 0:
        raise RequestError("expected at least one unit to delete, found none")
    return tuple(_text(value, position) for position, value in enumerate(values))


def _what_to_write(units: object) -> str:
    """Return how to name the units instead; nothing if they are in a form that is taken."""
    if isinstance(units, str):
        return f"[{units!r:.80}] for this one unit, or a list of several"
    if isinstance(units, bytes | bytearray | memoryview):
        return "a list of texts, each decoded, as in ['17']"
    if isinstance(units, Mapping):
        return "list(units) for its keys, or list(units.values())"
    if isinstance(units, Set):
        return "sorted(units)"
    if isinstance(units, bool | int | float | np.number) or getattr(units, "ndim", 1) == 0:
        return "a list of texts, as in ['17']"
    if isinstance(units, Sequence) or (hasattr(units, "tolist") and hasattr(units, "__len__")):
        return ""
    return "list(units)" if hasattr(units, "__iter__") else "a list of texts, as in ['17']"


def _text(unit: object, position: int) -> str:
    if isinstance(unit, str) and unit:
        return str(unit)
    if isinstance(unit, int | np.integer) and not isinstance(unit, bool):
        with suppress(ValueError):  # Python writes out no number of thousands of digits
            return str(int(unit))
    raise RequestError(
        f"expected names as text or whole numbers, found {_shown(unit)} at position {position}; "
        "write each unit as the text that the run knows it by, as in ['17']"
    )


def _shown(value: object) -> str:
    try:
        text = " ".join(repr(value).split())
    except ValueError:
        text = "of thousands of digits"
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:80] + '...'}"


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
