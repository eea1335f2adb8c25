"""The measured error of a run: how far from retraining deletions of each size end. Needs no torch.

The error is relative: the distance of the unlearned model to the retrained one, divided by that of
the trained model. 0 is retraining, 1 is no unlearning. A curve lies in the run's `measured-error.json`:

    {"trajectory": digest of the training, "source": "trials", "engine": "hvp",
     "points": [{"units": 1, "samples": 1, "median": 0.01, "low": 0.008, "high": 0.02,
                 "trials": 4, "how": "measured"}, ...]}

It holds for the trained model. A repaired one was never compared with retraining.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from pipeline.errors import ConfigError
from pipeline.run.directory import RunDirectory
from storage.durable_write import write_atomically

NAME = "measured-error.json"
# An error is unlearned / trained distance; one that is not finite is kept as this, since JSON has no
# infinity.
LARGEST = 1e9
# Beyond the largest size that was tried a set's error grows about with the root of its size; measured
# recipes stayed within this factor of it (docs/method.md).
EXTRAPOLATION = 1.5
# Random sets of one size differ in their samples; only more than this many times the usual number of
# samples makes a set count as a larger one.
USUAL_SPREAD = 1.5

How = Literal["measured", "interpolated", "extrapolated", "estimated"]


@dataclass(frozen=True)
class ErrorPoint:
    """The relative error of deleting some number of units together.

    Attributes:
        units: How many, at least 1.
        samples: Their samples together, or what they weigh where samples weigh differently; the
            median over the sets.
        median: Over the sets; of an estimate its middle.
        low: The smallest, or the lower end of an estimate.
        high: The largest, or the upper end of an estimate.
        trials: Retrainings behind it.
        how: Whether deletions of this size were compared with retraining, or the error was estimated
            from something else.
    """

    units: int
    samples: int
    median: float
    low: float
    high: float
    trials: int
    how: Literal["measured", "estimated"]

    def __post_init__(self) -> None:
        whole = {"units": (self.units, 1), "samples": (self.samples, 0), "trials": (self.trials, 0)}
        for name, (value, least) in whole.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"{name}: expected a whole number from {least}, found {value!r:.40}"
                )
        for name in ("low", "median", "high"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= LARGEST:
                raise ValueError(
                    f"{name}: expected an error from 0 to {LARGEST:g}, found {value!r:.40}"
                )
        if not self.low <= self.median <= self.high:
            raise ValueError(
                f"expected low <= median <= high, found {self.low}, {self.median}, {self.high}"
            )
        if self.how not in ("measured", "estimated"):
            raise ValueError(f"how: expected measured or estimated, found {self.how!r:.40}")

    @staticmethod
    def of_trials(units: int, samples: Sequence[int], errors: Sequence[float]) -> "ErrorPoint":
        """Return the point of trial deletions of one size; errors that are not finite are the worst.

        Args:
            units: Deleted in each trial.
            samples: Of each trial's units together.
            errors: The relative error of each trial.
        """
        kept = [min(error, LARGEST) if math.isfinite(error) else LARGEST for error in errors]
        return ErrorPoint(
            units,
            int(np.median(samples)),
            float(np.median(kept)),
            float(min(kept)),
            float(max(kept)),
            len(kept),
            "measured",
        )

    @property
    def figure(self) -> float:
        """What decides: the median of what was measured, the upper end of an estimate."""
        return self.high if self.how == "estimated" else self.median


@dataclass(frozen=True)
class Expected:
    """The error to expect of a deletion of some size.

    Attributes:
        error: What decides: the median where it was measured, the upper end of an estimate.
        low: Lower end of the range.
        high: Upper end of the range.
        how: `measured` at this very size; `interpolated` between sizes; `extrapolated` beyond the
            largest; `estimated` where an estimate takes part.
        note: What a person should know of its origin; empty where it was measured.
        trials: Retrainings behind it.
    """

    error: float
    low: float
    high: float
    how: How
    note: str
    trials: int


@dataclass(frozen=True)
class ErrorCurve:
    """The error by the number of units deleted, as measured on one run.

    Attributes:
        source: `trials` compared deletions of the run with retraining; `pilot` estimated before.
        engine: `recursion.engine` of the approximators.
        points: Ascending in `units`, each size once, at least one.
    """

    source: Literal["trials", "pilot"]
    engine: str
    points: tuple[ErrorPoint, ...]

    def __post_init__(self) -> None:
        sizes = [point.units for point in self.points]
        if not sizes or sizes != sorted(set(sizes)):
            raise ValueError(
                f"expected sizes that ascend, each once and at least one, found {sizes}"
            )
        if self.source not in ("trials", "pilot"):
            raise ValueError(f"source: expected trials or pilot, found {self.source!r:.40}")
        if not isinstance(self.engine, str):
            raise ValueError(f"engine: expected a name, found {self.engine!r:.40}")

    def at(self, num_units: float, num_samples: float = 0) -> Expected:
        """Return the error to expect once so many units are deleted.

        Never smaller than that of fewer units. Between two sizes it is linear in the logarithm of the
        size, which lies above growth with the root of the size.

        Args:
            num_units: Deleted so far and by the request, at least 1.
            num_samples: Of these units; more than usual for their number makes the set a larger one.
        """
        size = self.size(num_units, num_samples)
        knots = self._rising()
        first, last = self.points[0].units, self.points[-1].units
        if size > last:
            return _beyond(knots[-1], size / last, last)
        if size < first:
            note = f"no fewer than {first:,} units were tried"
            how: How = "estimated" if knots[0].how == "estimated" else "interpolated"
            return replace(knots[0], how=how, note=note)
        after = next(i for i, point in enumerate(self.points) if point.units >= size)
        if self.points[after].units == size:
            return knots[after]
        return self._between(knots, after, size)

    def size(self, num_units: float, num_samples: float) -> float:
        """Return the size that a set counts as: its units, or more if it has unusually many samples."""
        return max(num_units, num_samples / (USUAL_SPREAD * self._samples_per_unit()))

    def _between(self, knots: Sequence[Expected], after: int, size: float) -> Expected:
        left, right = knots[after - 1], knots[after]
        below, above = self.points[after - 1].units, self.points[after].units
        share = math.log(size / below) / math.log(above / below)
        error, low, high = (
            a + share * (b - a)
            for a, b in zip(
                (left.error, left.low, left.high), (right.error, right.low, right.high), strict=True
            )
        )
        how: How = "estimated" if "estimated" in (left.how, right.how) else "interpolated"
        note = f"between {below:,} and {above:,} units"
        return Expected(error, low, high, how, note, left.trials + right.trials)

    def _samples_per_unit(self) -> float:
        samples = sum(point.samples for point in self.points)
        return samples / sum(point.units for point in self.points) if samples else math.inf

    def _rising(self) -> list[Expected]:
        """Return what each point says; a point below a smaller size's is raised to that one's."""
        found: list[Expected] = []
        for point in self.points:
            how: How = point.how
            note = f"estimated from {point.trials} retrainings" if how == "estimated" else ""
            mine = Expected(point.figure, point.low, point.high, how, note, point.trials)
            if found and found[-1].error > mine.error:
                before = found[-1]
                note = before.note or "as of fewer units, where it was larger"
                how = "estimated" if "estimated" in (before.how, how) else "interpolated"
                mine = replace(before, how=how, note=note)
            found.append(mine)
        return found

    def write(self, run: RunDirectory) -> None:
        """Write the curve into a trained run, bound to its training.

        Raises:
            TrajectoryError: If the run is not trained.
        """
        values = {"trajectory": run.digest(), **asdict(self)}
        content = json.dumps(values, indent=1, allow_nan=False).encode()
        write_atomically(run.path / NAME, content, mode=0o600)

    @staticmethod
    def read(run: RunDirectory) -> "ErrorCurve | None":
        """Return the curve of a run; None if nothing was measured.

        Raises:
            ConfigError: If the file is damaged, or another run's.
        """
        path = run.path / NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            trajectory = values["trajectory"]
            curve = _parsed(values)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"{path} is damaged ({' '.join(str(error).split()):.120}); remove it, and measure the "
                f"error again with `unlearn measure {run.path}`"
            ) from error
        if trajectory != run.digest():
            raise ConfigError(
                f"{path} was measured on another training; remove it, and measure the error again with "
                f"`unlearn measure {run.path}`"
            )
        return curve


def merged(points: Iterable[ErrorPoint]) -> tuple[ErrorPoint, ...]:
    """Return points in ascending size; of several of one size the larger error and the whole range."""
    by_size: dict[int, ErrorPoint] = {}
    for point in points:
        known = by_size.get(point.units)
        by_size[point.units] = point if known is None else _worse(known, point)
    return tuple(by_size[units] for units in sorted(by_size))


def _worse(left: ErrorPoint, right: ErrorPoint) -> ErrorPoint:
    how: Literal["measured", "estimated"] = (
        "estimated" if "estimated" in (left.how, right.how) else "measured"
    )
    return ErrorPoint(
        left.units,
        max(left.samples, right.samples),
        max(left.median, right.median),
        min(left.low, right.low),
        max(left.high, right.high),
        left.trials + right.trials,
        how,
    )


def _beyond(last: Expected, ratio: float, units: int) -> Expected:
    growth = math.sqrt(ratio)
    return Expected(
        min(last.error * growth * EXTRAPOLATION, LARGEST),
        min(last.low * growth, LARGEST),
        min(last.high * growth * EXTRAPOLATION, LARGEST),
        "extrapolated",
        f"beyond {units:,} units, the largest size tried",
        last.trials,
    )


def _parsed(values: Mapping[str, Any]) -> ErrorCurve:
    points = tuple(ErrorPoint(**point) for point in values["points"])
    return ErrorCurve(values["source"], values["engine"], points)
