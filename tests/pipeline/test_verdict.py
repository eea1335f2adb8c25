"""The verdict: one text for every place, and the report's words on sizes that fail."""

from typing import Any

import pytest

from pipeline.evaluation.report import advice, deletion_table, render, write_report
from pipeline.evaluation.sections import headline
from pipeline.run.verdict import report_points, report_verdict, size_verdict, statement
from tests.pipeline.test_report import entry, report

FAILING = [entry(5, 0.03), entry(20, 0.31), entry(30, 0.6), entry(40, 9.5), entry(60, 54.1)]


@pytest.mark.parametrize(
    "error, limit, level, text",
    [
        (0.0, 0.5, "good", "5 users: 0% left"),
        (0.249, 0.5, "good", "5 users: 24.9% left"),
        (0.25, 0.5, "notable", "5 users: 25% left, much"),
        (0.5, 0.5, "notable", "5 users: 50% left, much"),
        (0.501, 0.5, "bad", "5 users: 50.1% left, above the limit of 50%: retrain"),
        (0.9, None, "notable", "5 users: 90% left, much"),
        (1.0, None, "bad", "5 users: worse than not deleting: retrain"),
        (1.0, 2.0, "bad", "5 users: worse than not deleting: retrain"),
    ],
)
def test_levels_at_their_boundaries(
    error: float, limit: float | None, level: str, text: str
) -> None:
    found = size_verdict(5, "user", error, limit)
    assert (found.level, found.text) == (level, text)


def test_advice_names_every_failing_size() -> None:
    smooth = report()["config"] | {"model": {"name": "mlp", "activation": "tanh"}}
    useless, above = advice(report(deletions=FAILING, config=smooth))
    assert "Deleting 40 units (relative error 950%), 60 units (5410%) ends no nearer" in useless
    assert "Deleting 30 units (relative error 60%) leaves more than" in above


def test_headline_and_page_have_the_verdict_and_its_colour() -> None:
    failing = report(deletions=FAILING)
    title = headline(failing)
    assert title.title == "Not fit for deleting 30 samples: too much is left"
    assert title.level == "bad"
    assert title.verdict == report_verdict(failing).text
    page = render(failing | {"advice": []})
    assert f'<p class="verdict bad">{title.verdict}</p>' in page
    assert headline(report()).title.endswith("unlearned in 4.7 ms")
    assert '<p class="verdict good">' in render(report() | {"advice": []})


def test_the_table_says_it_too(tmp_path: Any) -> None:
    written = write_report(tmp_path, report(deletions=FAILING))
    assert written["verdict"].startswith(
        "5 samples: 3% left. 20 samples: 31% left, much. 30 samples"
    )
    assert (written["engine"], written["error_limit"]) == ("hvp", 0.5)
    caption = str(deletion_table(written).caption)
    assert written["verdict"] in caption and "red" in caption


def test_what_is_not_finite_is_the_worst_and_what_is_not_defined_is_no_point() -> None:
    infinite = entry(3, None, relative_error_range=[None, None])
    undefined = entry(4, None, no_update_distance=0.0)
    (point,) = report_points([infinite, undefined])
    assert (point.units, point.median) == (3, 1e9)
    assert report_verdict(report(deletions=[infinite])).level == "bad"
    assert report_verdict(report(deletions=[undefined])).level == "unknown"


def stated(**changes: Any) -> dict[str, Any]:
    return {
        "error": 0.04,
        "low": 0.02,
        "high": 0.08,
        "trials": 12,
        "how": "measured",
        "note": "",
        "limit": 0.5,
        "accepted": None,
    } | changes


@pytest.mark.parametrize(
    "changes, text",
    [
        (
            {},
            "measured error at this size: median 4%, range 2% to 8%, 12 trials; not a proof; limit 50%",
        ),
        (
            {"trials": 1, "how": "extrapolated", "note": "beyond 9 units"},
            "measured error at this size, extrapolated (beyond 9 units): median 4%, range 2% to 8%, "
            "1 trial; not a proof; limit 50%",
        ),
        (
            {"how": "estimated", "error": 0.08},
            "estimated error at this size: at most 8%, range 2% to 8%; not measured, not a proof; "
            "limit 50%",
        ),
        (
            {"accepted": 0.9, "error": 0.7},
            "measured error at this size: median 70%, range 2% to 8%, 12 trials; not a proof; limit "
            "50%; accepted by the operator up to 90%",
        ),
        (
            {"error": None, "note": "error not measured", "limit": None},
            "error not measured; no limit: evaluation.max_error is null",
        ),
    ],
)
def test_what_a_certificate_states(changes: dict[str, Any], text: str) -> None:
    assert statement(stated(**changes)) == text
