"""Sensitivity: the bound on the L2 distance between a release and retraining.

    Delta(m) = B(m) + m * row_error + rounding(m)

B(m) bounds |w_retrained - (w_T + correction * S)| for any m units. Where a bound D(m) on
|w_retrained - w_T| is known and gives the smaller sensitivity, the release is w_T itself with noise
for D(m).

Every constant is declared before requests arrive, and m enters through a bucket (1, 2, 5, 10, ...).
So neither sigma nor a certificate depends on which units were deleted, or tells their exact number.

Kinds: `certified` when B is proved (`softmax_bound.py`) and every condition held, `calibrated` when it
was measured, `published` when it comes from the formula of the paper's released code (both in
`measured_bounds.py`), `none` otherwise.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pipeline.errors import ConfigError, RetrainRequiredError, TrajectoryError
from pipeline.run.directory import RunDirectory

Kind = Literal["none", "calibrated", "certified", "published"]


@dataclass(frozen=True)
class Term:
    """One summand of a sensitivity, an L2 distance of parameters."""

    name: str
    value: float
    source: str


@dataclass(frozen=True)
class Condition:
    """A condition of the claim, checked."""

    name: str
    held: bool
    found: str


@dataclass(frozen=True)
class UnitsBound:
    """What is declared for any set of at most `max_units` units.

    Attributes:
        max_units: m.
        residual: B(m), L2.
        rounding: Effect of finite precision in training, approximators and retraining, L2.
        distance: D(m), L2, or None where it is not known.
        distance_rounding: Effect of finite precision in training and retraining, L2.
    """

    max_units: int
    residual: float
    rounding: float = 0.0
    distance: float | None = None
    distance_rounding: float = 0.0


@dataclass(frozen=True)
class Sensitivity:
    """Delta for a bucket of m.

    Attributes:
        max_units: Upper end of the bucket.
        update: Whether the release adds the approximators, or is w_T with noise for D(m).
        terms: The summands of what is released.
        alternative: Delta of the mechanism not chosen, or None where it is not known.
    """

    max_units: int
    update: bool
    terms: tuple[Term, ...]
    alternative: float | None = None

    @property
    def total(self) -> float:
        """Delta."""
        return sum(term.value for term in self.terms)


@dataclass(frozen=True)
class Declaration:
    """What a run declares about its deletions before the first request arrives.

    Attributes:
        kind: Kind of certificates that releases with noise carry.
        bounds: For ascending numbers of units; the last is the deletion capacity.
        row_error: How far the encoding of one approximator can move the release, L2.
        residual_source: Where B(m) comes from, in words.
        row_error_source: Where `row_error` comes from, in words.
        conditions: What was checked; a failed one withdraws the kind.
        evidence: Constants and measurements that a reader needs to judge the bounds.
        generation: Which generation of the run this is about: 0 as trained, one more after each
            repair. Bounds for a training say nothing about a repaired run.
    """

    kind: Kind = "none"
    bounds: tuple[UnitsBound, ...] = ()
    row_error: float = 0.0
    residual_source: str = ""
    row_error_source: str = ""
    conditions: tuple[Condition, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 0

    def __post_init__(self) -> None:
        units = [bound.max_units for bound in self.bounds]
        if units != sorted(set(units)) or (units and units[0] < 1):
            raise ValueError(f"expected bounds for ascending numbers of units, found {units}")
        if (self.kind == "none") != (not self.bounds):
            raise ValueError("expected bounds for every kind but 'none', and none for that")
        values = [v for b in self.bounds for v in (b.residual, b.rounding, b.distance or 0.0)]
        if not all(0 <= value < float("inf") for value in [*values, self.row_error]):
            raise ValueError("expected finite bounds of at least 0")

    @property
    def capacity(self) -> int:
        """The deletion capacity: the largest number of units a certificate can be given for."""
        return self.bounds[-1].max_units if self.bounds else 0

    @property
    def failed(self) -> tuple[Condition, ...]:
        """The conditions that did not hold."""
        return tuple(condition for condition in self.conditions if not condition.held)

    def about(self, generation: int) -> "Declaration":
        """Return the declaration with the condition that it is about this generation, if it fails."""
        if self.generation == generation or self.kind == "none":
            return self
        found = f"declared for generation {self.generation}, the run is at {generation}"
        failed = Condition("declared for the run as it is now", False, found)
        return replace(self, conditions=(*self.conditions, failed))

    def for_units(self, num_units: int) -> Sensitivity:
        """Return Delta for any `num_units` units.

        Raises:
            RetrainRequiredError: They are more than the capacity.
        """
        for bound in self.bounds:
            if num_units <= bound.max_units:
                return self._smaller(bound)
        raise RetrainRequiredError(
            f"{num_units} units would be deleted and the certificate was declared for at most "
            f"{self.capacity}: retrain without them, or repair, and declare anew"
        )

    def _smaller(self, bound: UnitsBound) -> Sensitivity:
        # These texts stand in certificates, which `verify` writes again and compares: keep them.
        m = bound.max_units
        updated = Sensitivity(
            m,
            True,
            (
                Term("residual", bound.residual, self.residual_source),
                Term("row_error", m * self.row_error, self.row_error_source),
                Term("rounding", bound.rounding, "finite precision of training, rows and sum"),
            ),
        )
        if bound.distance is None:
            return updated
        kept = Sensitivity(
            m,
            False,
            (
                Term("distance", bound.distance, self.residual_source),
                Term("rounding", bound.distance_rounding, "finite precision of training"),
            ),
            alternative=updated.total,
        )
        return kept if kept.total <= updated.total else replace(updated, alternative=kept.total)

    def digest(self) -> str:
        """Return a digest that changes with anything declared."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """Return the declaration as JSON; `from_json` reads it."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Declaration":
        """Read what `to_json` wrote.

        Raises:
            ValueError: The text is not a declaration.
        """
        fields = json.loads(text)
        try:
            bounds = tuple(UnitsBound(**bound) for bound in fields.pop("bounds"))
            conditions = tuple(Condition(**each) for each in fields.pop("conditions"))
            return cls(bounds=bounds, conditions=conditions, **fields)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"expected a declaration of sensitivity: {error}") from error


def unit_buckets(max_units: int) -> tuple[int, ...]:
    """Return 1, 2, 5, 10, 20, 50, ... below `max_units`, and `max_units`.

    >>> unit_buckets(12)
    (1, 2, 5, 10, 12)
    """
    if max_units < 1:
        raise ValueError(f"expected a capacity of at least one unit, found {max_units}")
    buckets = []
    scale = 1
    while scale < max_units:
        buckets += [scale * step for step in (1, 2, 5) if scale * step < max_units]
        scale *= 10
    return (*buckets, max_units)


def read_declaration(run: RunDirectory) -> Declaration:
    """Return what the run declared, or that it declared nothing.

    Raises:
        TrajectoryError: If the file is damaged.
    """
    if not run.declaration_path.exists():
        return Declaration()
    try:
        return Declaration.from_json(run.declaration_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrajectoryError(
            f"{run.declaration_path} is damaged: {error}; restore it from a backup"
        ) from error


def refuse_undeclared(run: RunDirectory) -> None:
    """Refuse a deletion before the declaration that the configuration asks for.

    Raises:
        ConfigError: If `certificate.kind` asks for a declaration and none was made yet.
    """
    kind = run.config.certificate.kind
    if kind != "none" and not run.declaration_path.exists() and not run.is_pruned():
        raise ConfigError(
            f"certificate.kind is {kind}, and {run.path} has declared nothing yet; no "
            "declaration can be made after a deletion: finish `unlearn run` first, or run "
            f"`unlearn configure {run.path} certificate.kind=none`"
        )
