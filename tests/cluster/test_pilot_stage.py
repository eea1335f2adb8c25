"""`unlearn pilot` from the command line, its search, and the engine that it settles."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import cli, pilot_search_stage, pilot_stage, whole_run
from cluster.console import Reporter
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.pilot import read_result
from pipeline.evaluation.pilot_design import Budget
from pipeline.evaluation.pilot_search import Change, changes, finalists, frontier, pairs, ranked
from pipeline.run.directory import RunDirectory
from pipeline.run.error_curve import ErrorCurve
from tests.cluster.small_run import config

QUIET = Reporter(quiet=True)
SMALL = Budget(8, 24)
DELETIONS: dict[str, Any] = {"deletions": [1, 4], "repeats": 1}
CLUSTER: dict[str, Any] = {"address": "none", "num_workers": 1}


def small(**changes: dict[str, Any]) -> RunConfig:
    return config(evaluation=DELETIONS, cluster=CLUSTER, **changes)


def unlearn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["unlearn", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


def test_the_json_holds_what_others_rely_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "small.yaml", tmp_path / "out"
    path.write_text(small().to_yaml())
    words = ["pilot", str(path), "--out", str(out), "--price", "2", "--retrainings", "8"]
    code, text, said = unlearn(monkeypatch, capsys, *words, "--json")
    assert code == 0
    assert "1 training" in said
    assert "about" in said
    found = json.loads(text)
    for engine in ("hvp", "leave-one-out"):
        entries = found["engines"][engine]
        assert [entry["units"] for entry in entries] == [1, 4]
        assert all(entry["how"] in ("measured", "estimated") for entry in entries)
        assert all(e["range"][0] <= e["relative_error"] <= e["range"][1] for e in entries)
    assert found["recommended"] in found["engines"]
    assert 0 <= found["accuracy"] <= 1
    run = found["full_run"]
    assert run["price"] == pytest.approx(2 * run["worker_hours"])
    assert run["hours"] > 0
    assert run["bytes"] > 0
    assert found["break_even_requests"] >= 1
    assert found["recommended"] in found["verdict"]
    # No name of a unit, and nothing of a model, is left.
    assert sorted(item.name for item in (out / "pilot").iterdir()) == ["driver.lock", "pilot.json"]
    assert (out / "pilot" / "pilot.json").stat().st_mode & 0o077 == 0
    # Again: found, not computed; and for people.
    code, text, said = unlearn(monkeypatch, capsys, *words, "--write", str(tmp_path / "best.yaml"))
    assert "nothing left to do" in said
    assert max(map(len, text.splitlines())) <= 100
    assert text.splitlines()[-1].startswith("verdict: with ")
    assert RunConfig.load(tmp_path / "best.yaml").recursion.engine == found["recommended"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"num_train": 3}, "training": {"batch_size": 2}}, "at least 4 units, found 3"),
        ({"training": {"learning_rate": 1e30}}, "learning_rate"),
        ({"data": {"num_train": 4}, "training": {"batch_size": 2}}, "deletions holds 4"),
    ],
)
def test_bad_input_ends_in_one_line(
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = small(**changes).model_dump(mode="json")
    if message.startswith("at least"):
        values["evaluation"] |= {"deletions": [1]}
    path = tmp_path / "bad.yaml"
    path.write_text(RunConfig.from_values(values).to_yaml())
    code, _, said = unlearn(monkeypatch, capsys, "pilot", str(path), "--out", str(tmp_path / "out"))
    assert code in (1, 2)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_auto_takes_the_pilots_engine_and_its_curve(tmp_path: Path) -> None:
    auto = small(recursion={"engine": "auto"})
    run, _ = whole_run.train(auto, tmp_path / "run", QUIET)
    result = read_result(run.path)
    assert result is not None
    engine = result["recommended"]
    assert RunDirectory.open(run.path).config.recursion.engine == engine
    curve = ErrorCurve.read(run)
    assert curve is not None
    assert (curve.source, curve.engine) == ("pilot", engine)
    assert [point.units for point in curve.points] == [1, 4]
    # As begun, whatever a later pilot would say.
    (tmp_path / "run" / "pilot" / "pilot.json").unlink()
    again, _ = whole_run.train(auto, tmp_path / "run", QUIET)
    assert again.config.recursion.engine == engine


def test_auto_needs_no_pilot_where_conventions_allow_one_engine(tmp_path: Path) -> None:
    linear = small(recursion={"engine": "auto", "own_rows": "included"})
    assert pilot_stage.settled(linear, tmp_path, QUIET).recursion.engine == "hvp"
    assert not list(tmp_path.iterdir())


def test_a_pilot_of_another_training_decides_nothing(tmp_path: Path) -> None:
    pilot_stage.pilot(small(), tmp_path / "run", QUIET, SMALL)
    other = small(training={"learning_rate": 0.2})
    run, _ = whole_run.train(other, tmp_path / "run", QUIET)
    assert ErrorCurve.read(run) is None
    pilot_stage.pilot(other, tmp_path / "run", QUIET, SMALL)
    assert ErrorCurve.read(run) is not None


def test_a_run_with_deletions_gets_no_pilot(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").touch()
    with pytest.raises(ConfigError, match="run with deletions"):
        pilot_stage.pilot(small(), tmp_path, QUIET, SMALL)


def test_a_search_tries_changes_and_writes_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = [
        Change("half", "half", "rate", ("training.learning_rate=0.05",)),
        Change("wild", "wild", "batch", ("training.learning_rate=1e30",)),
    ]
    monkeypatch.setattr(pilot_search_stage, "changes", lambda base: tried)
    base = small()
    found = pilot_search_stage.search(base, tmp_path, QUIET, SMALL)
    summary = found["search"]
    by_label = {each["label"]: each for each in summary["candidates"]}
    assert set(by_label) == {"as configured", "half", "wild"}
    assert by_label["half"]["is_full"]
    assert by_label["wild"]["refused"]
    assert summary["chosen"] in ("as configured", "half")
    chosen = pilot_search_stage.chosen_config(base, found)
    assert RunConfig.from_text(chosen.to_yaml(), "it").recursion.engine == summary["chosen_engine"]
    page = (tmp_path / "pilot" / "search.html").read_text()
    assert "<svg" in page
    assert "as configured" in page


def test_changes_are_those_that_apply() -> None:
    base = RunConfig.from_values(
        {
            "model": {"name": "lenet"},
            "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1, "momentum": 0.9},
        }
    )
    labels = [change.label for change in changes(base)]
    assert "average pooling" in labels
    assert "tanh for ReLU" in labels
    assert "half the epochs" not in labels
    by_slug = {change.slug: change.of(base) for change in changes(base)}
    assert by_slug["no-momentum"].training.learning_rate == pytest.approx(1.0)
    assert by_slug["no-momentum"].training.momentum == 0
    assert by_slug["batch-4"].training.batch_size == 32
    assert all(change != base for change in by_slug.values())
    softmax = small()
    assert not [c for c in changes(softmax) if c.key in ("activation", "pooling", "normalization")]


def candidate(label: str, accuracy: float, error: float | None) -> dict[str, Any]:
    return {"label": label, "accuracy": accuracy, "error": error}


def test_the_frontier_and_the_order_of_candidates() -> None:
    found = [
        candidate("a", 0.9, 0.5),
        candidate("b", 0.95, 0.6),
        candidate("beaten", 0.9, 0.7),
        candidate("inaccurate", 0.5, 0.1),
        candidate("diverged", 0.9, None),
    ]
    assert [each["label"] for each in frontier(found)] == ["inaccurate", "a", "b"]
    assert [each["label"] for each in ranked(found, 0.9)] == ["a", "b", "beaten", "inaccurate"]
    assert finalists(found, 0.9) == ["a", "b", "beaten"]
    tried = [Change(name, name, key, ()) for name, key in (("a", "x"), ("b", "x"), ("beaten", "y"))]
    made = [pair.label for pair in pairs(tried, ranked(found, 0.9))]
    assert made == ["a, beaten", "b, beaten"]
