"""What a pilot's sets say: the error by size and engine, which engine, and a verdict. Pure numbers.

A size that the pool of approximators does not hold is estimated from the largest that it holds: its
measured error, scaled by the geometric mean of

    what the sets' halves say      |(non-additivity, linearisation)| there / here
    the usual growth               the root of the ratio of the sizes

Both alone erred by more (docs/results.md). Where the halves see less than a quarter of the error, as
with ReLU networks, the growth counts alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from pipeline.evaluation.formats import percent
from pipeline.evaluation.pilot_design import Design
from pipeline.evaluation.pilot_experiment import SetErrors
from pipeline.run.error_curve import LARGEST, ErrorCurve, ErrorPoint
from pipeline.run.verdict import counted, level_of

# Medians of few sets lay within these factors of the median of many (docs/method.md).
SPREAD = (0.77, 1.3)
ESTIMATE_SPREAD = 1.5
# Without any measured set: the error was 1.3 to 2 times the split on smooth networks.
OF_SPLIT = (1.3, 1.6, 2.0)
# Of the error by HVPs: leave-one-out must stay below it to be worth its time, 1.4 to 3 times theirs.
WORTH_IT = 0.8
_UNSEEN = 4.0
LEAST_SHOWN, MOST_SHOWN = 1e-3, 10.0


@dataclass(frozen=True)
class SizeFigures:
    """The error of one size, by one engine.

    Attributes:
        units: Deleted together.
        samples: Of these units, or what they weigh.
        relative_error: Median; infinite where the approximators diverge.
        low: Of its range.
        high: Of its range.
        how: Measured on sets of this size, or estimated.
        trials: Sets behind it.
        linearisation: Error of a set as one unit; None: not measured. 0 by leave-one-out, which is
            exact for one unit but for rounding.
        non_additivity: Median over the sets; None where no halves were left out.
    """

    units: int
    samples: int
    relative_error: float
    low: float
    high: float
    how: Literal["measured", "estimated"]
    trials: int
    linearisation: float | None
    non_additivity: float | None

    def entry(self) -> dict[str, Any]:
        """Return the entry of the pilot's JSON."""
        values = {key: _finite(value) for key, value in asdict(self).items()}
        ends = [values.pop("low"), values.pop("high")]
        return {**values, "range": ends}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figures(sets: Sequence[SetErrors], engine: str, *, clustered: bool) -> list[SizeFigures]:
    """Return the figures of every size among the sets, ascending."""
    chosen = [each for each in sets if each.clustered == clustered]
    by_size: dict[int, list[SetErrors]] = {}
    for each in chosen:
        by_size.setdefault(each.units, []).append(each)
    measured = {
        units: [each.errors[engine] for each in found if engine in each.errors]
        for units, found in by_size.items()
    }
    largest = max((units for units, errors in measured.items() if errors), default=None)
    result = []
    for units, found in sorted(by_size.items()):
        if measured[units]:
            low, middle, high = _measured(measured[units])
        else:
            assert largest is not None, "a pilot measures single units at least"
            error = median(measured[largest])
            low, middle, high = _estimated(found, by_size[largest], error, engine)
        result.append(
            SizeFigures(
                units,
                int(median(each.mass for each in found)),
                middle,
                low,
                high,
                "measured" if measured[units] else "estimated",
                len(found),
                _linearisation(found, engine),
                _median(each.non_additivity for each in found),
            )
        )
    return result


def _measured(errors: Sequence[float]) -> tuple[float, float, float]:
    middle = median(errors)
    return min(*errors, SPREAD[0] * middle), middle, max(*errors, SPREAD[1] * middle)


def _estimated(
    here: Sequence[SetErrors], there: Sequence[SetErrors], error: float, engine: str
) -> tuple[float, float, float]:
    """Return low, middle and high of a size from the sets of the largest that was measured."""
    growth = math.sqrt(here[0].units / there[0].units)
    split_here, split_there = (
        _median(each.non_additivity for each in sets) for sets in (here, there)
    )
    if split_there is None:
        low, middle, high = (factor * (split_here or 0.0) for factor in OF_SPLIT)
        return (low, middle, high) if split_here else _around(error * growth)
    linear_here, linear_there = (_linearisation(sets, engine) for sets in (here, there))
    if linear_here is None or linear_there is None:
        linear_here = linear_there = 0.0
    seen_here = math.hypot(split_here or 0.0, linear_here)
    seen_there = math.hypot(split_there, linear_there)
    seen = seen_here * seen_there
    if not seen or math.isinf(seen) or error > _UNSEEN * seen_there:
        return _around(error * growth)
    return _around(error * math.sqrt(growth * seen_here / seen_there))


def _around(middle: float) -> tuple[float, float, float]:
    return middle / ESTIMATE_SPREAD, middle, middle * ESTIMATE_SPREAD


def _linearisation(sets: Sequence[SetErrors], engine: str) -> float | None:
    if engine != "hvp":
        return 0.0
    return _median(each.linearisation for each in sets)


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def curve(found: Sequence[SizeFigures], engine: str) -> ErrorCurve:
    """Return the figures as a run keeps them."""
    return ErrorCurve(
        "pilot",
        engine,
        tuple(
            ErrorPoint(
                each.units,
                each.samples,
                min(each.relative_error, LARGEST),
                min(each.low, LARGEST),
                min(each.high, LARGEST),
                each.trials,
                each.how,
            )
            for each in found
        ),
    )


def worst(found: Sequence[SizeFigures]) -> float:
    """Return the largest error of any size."""
    return max(each.relative_error for each in found)


def recommended(by_engine: Mapping[str, Sequence[SizeFigures]]) -> str:
    """Return the engine whose largest error is smaller; hvp unless the other saves a fifth of it."""
    if len(by_engine) == 1:
        return next(iter(by_engine))
    hvp, exact = worst(by_engine["hvp"]), worst(by_engine["leave-one-out"])
    return "leave-one-out" if exact < WORTH_IT * hvp else "hvp"


def shown(error: float | None) -> str:
    """Return an error as a percentage; what is beyond all use, or mere rounding, by its bound."""
    if error is None or math.isinf(error):
        return "diverges"
    if error > MOST_SHOWN:
        return f">{percent(MOST_SHOWN)}"
    if 0 < error < LEAST_SHOWN:
        return f"<{percent(LEAST_SHOWN)}"
    return percent(error, 0 if error >= 0.1 else 1)


def verdict(found: Sequence[SizeFigures], unit: str, engine: str, limit: float | None) -> str:
    """Return one sentence: up to which size deletions end near retraining, and what beyond is.

    Args:
        found: Of the engine, ascending.
        unit: "sample" or "user".
        engine: Its name.
        limit: `evaluation.max_error`.
    """

    def of(each: SizeFigures) -> str:
        if math.isinf(each.relative_error):
            return "the approximators diverge"
        about = "about " if each.how == "estimated" else ""
        return f"{about}{shown(each.relative_error)}"

    bad = next(
        (i for i, each in enumerate(found) if level_of(decisive(each), limit) != "good"), len(found)
    )
    near, beyond = found[:bad], found[bad:]
    parts = []
    if near:
        largest = max(near, key=lambda each: each.relative_error)
        last = near[-1].units
        who = f"up to {counted(last, unit)} end" if last > 1 else f"{counted(last, unit)} ends"
        parts.append(f"{who} within {of(largest)} of retraining")
    if beyond:
        furthest = max(beyond, key=decisive)
        is_bad = level_of(decisive(furthest), limit) == "bad"
        words = "retrain instead" if is_bad else "much is left"
        if furthest.relative_error >= 1:
            words = "worse than not deleting: retrain instead"
        parts.append(f"{counted(furthest.units, unit)}: {of(furthest)}, {words}")
    return f"with {engine}, " + "; ".join(parts)


def decisive(each: SizeFigures) -> float:
    """Return what decides: the median of what was measured, the upper end of an estimate."""
    return each.high if each.how == "estimated" else each.relative_error


def left_out_words(design: Design) -> str:
    """Return what the budget did not hold, or nothing."""
    if not design.left_out:
        return ""
    sizes = ", ".join(f"{size:,}" for size in design.left_out)
    return f"the budget held no set of {sizes} units; their error lies between those of other sizes"
