"""The measured error by size: between sizes, beyond them, and as a file."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.run.directory import RunDirectory
from pipeline.run.error_curve import LARGEST, NAME, ErrorCurve, ErrorPoint, merged
from tests.cluster.small_run import trained_run


def point(units: int, median: float, how: str = "measured", spread: float = 2.0) -> ErrorPoint:
    low, high = median / spread, min(median * spread, LARGEST)
    return ErrorPoint(units, units, median, low, high, 3, how)  # type: ignore[arg-type]


def curve(*points: ErrorPoint) -> ErrorCurve:
    return ErrorCurve("trials", "hvp", points)


CURVE = curve(point(1, 0.01), point(10, 0.04), point(100, 0.2))


def test_a_measured_size_is_told_as_measured() -> None:
    found = CURVE.at(10)
    assert (found.error, found.low, found.high) == (0.04, 0.02, 0.08)
    assert (found.how, found.note, found.trials) == ("measured", "", 3)


def test_between_sizes_it_is_linear_in_the_logarithm() -> None:
    found = CURVE.at(20)
    assert found.error == pytest.approx(0.04 + math.log10(2) * 0.16)
    assert found.how == "interpolated" and "between 10 and 100 units" in found.note


def test_below_the_smallest_it_is_that_of_the_smallest() -> None:
    found = curve(point(5, 0.1)).at(2)
    assert (found.error, found.how) == (0.1, "interpolated")
    assert "no fewer than 5 units" in found.note


def test_beyond_the_largest_it_grows_with_the_root_and_half_as_much_again() -> None:
    found = CURVE.at(400)
    assert found.error == pytest.approx(0.2 * 2 * 1.5)
    assert found.how == "extrapolated" and "beyond 100 units" in found.note


def test_an_estimate_counts_at_its_upper_end() -> None:
    found = curve(point(1, 0.01), point(10, 0.1, "estimated"))
    assert (found.at(10).error, found.at(10).how) == (0.2, "estimated")
    assert found.at(3).how == "estimated"


def test_an_error_that_falls_with_the_size_is_not_believed() -> None:
    found = curve(point(1, 0.3), point(10, 0.1)).at(10)
    assert found.error == 0.3
    assert found.how == "interpolated" and "fewer units" in found.note


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 10)), min_size=1, max_size=6),
    st.integers(1, 10**7),
    st.integers(1, 10**7),
)
def test_more_units_never_lower_the_error(
    values: list[tuple[int, float]], some: int, others: int
) -> None:
    made = curve(*merged(point(units, median) for units, median in values))
    few, many = sorted((some, others))
    assert made.at(few).error <= made.at(many).error * (1 + 1e-12)


def test_samples_beyond_the_usual_make_a_larger_set() -> None:
    assert CURVE.at(10, 10) == CURVE.at(10, 14) == CURVE.at(10)
    assert CURVE.at(10, 30).error == CURVE.at(20).error


def test_trials_make_a_point() -> None:
    made = ErrorPoint.of_trials(4, [3, 8, 5], [0.2, 0.1, float("nan")])
    assert made == ErrorPoint(4, 5, 0.2, 0.1, LARGEST, 3, "measured")


def test_points_of_one_size_become_the_worse_one() -> None:
    (made,) = merged([point(4, 0.1), point(4, 0.3)])
    assert (made.median, made.low, made.high, made.trials) == (0.3, 0.05, 0.6, 6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"units": 0},
        {"units": True},
        {"median": -0.1, "low": -0.1},
        {"median": float("nan")},
        {"low": 0.5},
        {"how": "guessed"},
        {"trials": "3"},
    ],
    ids=str,
)
def test_impossible_points_are_refused(wrong: dict[str, object]) -> None:
    values = {"units": 1, "samples": 1, "median": 0.1, "low": 0.0, "high": 0.2, "trials": 1}
    with pytest.raises(ValueError, match="expected"):
        ErrorPoint(**({**values, "how": "measured"} | wrong))  # type: ignore[arg-type]


def test_sizes_ascend_and_are_named_once() -> None:
    for points in ((), (point(2, 0.1), point(1, 0.1)), (point(1, 0.1), point(1, 0.2))):
        with pytest.raises(ValueError, match="sizes that ascend"):
            curve(*points)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return trained_run(tmp_path / "run")


def test_a_curve_is_read_as_it_was_written(run: RunDirectory) -> None:
    assert ErrorCurve.read(run) is None
    CURVE.write(run)
    assert ErrorCurve.read(run) == CURVE
    assert (run.path / NAME).stat().st_mode & 0o777 == 0o600


def test_a_curve_of_another_training_is_refused(run: RunDirectory) -> None:
    CURVE.write(run)
    path = run.path / NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trajectory": "0" * 64}))
    with pytest.raises(ConfigError, match=r"another training.*unlearn measure"):
        ErrorCurve.read(run)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"trajectory": 1, "points": 3}', "[" * 9999])
def test_a_damaged_curve_is_refused_in_one_line(run: RunDirectory, content: str) -> None:
    (run.path / NAME).write_text(content)
    with pytest.raises(ConfigError, match=r"damaged.*unlearn measure") as refusal:
        ErrorCurve.read(run)
    assert "\n" not in str(refusal.value)
