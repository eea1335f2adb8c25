"""What a person, another shell and a log collector see of a run."""

import json
from pathlib import Path

import pytest

from cluster import logs
from cluster.console import LINE_SECONDS, Reporter
from cluster.driver import WorkTotals
from cluster.inspection import status_of
from cluster.progress_file import WRITE_SECONDS, ProgressFile, read_progress
from cluster.scheduler import BlockAdvanced, Scheduler, WorkerReady
from tests.cluster.small_run import trained_run


def test_status_tells_where_a_precomputation_stands_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained_run(tmp_path / "run")
    assert "precompute" not in status_of(run)
    scheduler = Scheduler(20, [0, 1, 2, 3], 2, {0, 1})
    scheduler.handle(WorkerReady(0))
    scheduler.handle(BlockAdvanced(0, 0, 5, 5, 1.0))
    now = [100.0]
    monkeypatch.setattr("cluster.progress_file.time.monotonic", lambda: now[0])
    file = ProgressFile(run.path, 80)
    now[0] += 10
    file.show(scheduler, WorkTotals(num_steps=5, num_products=100, workers_lost=1))
    seen = status_of(run)["precompute"]
    assert (seen["steps_done"], seen["steps_in_all"]) == (5, 80)
    assert (seen["workers_busy"], seen["workers_starting"], seen["workers_lost"]) == (1, 1, 1)
    assert seen["blocks_in_work"] == {"0": 5}
    assert (seen["hvps_per_second"], seen["seconds_left"]) == (10.0, 150.0)
    # A moment later nothing is written yet, and after the run nothing is left.
    scheduler.handle(BlockAdvanced(0, 0, 10, 5, 1.0))
    file.show(scheduler, WorkTotals())
    assert status_of(run)["precompute"]["steps_done"] == 5
    now[0] += WRITE_SECONDS
    file.show(scheduler, WorkTotals())
    assert status_of(run)["precompute"]["steps_done"] == 10
    file.remove()
    assert read_progress(run.path) is None


def test_without_a_terminal_progress_is_plain_lines_with_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("cluster.console.time.monotonic", lambda: now[0])
    with Reporter().stage("precompute") as report:
        report(1, 40)
        now[0] += LINE_SECONDS
        report(20, 40)
        report(21, 40)
        report(40, 40)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "precompute: 20 of 40 steps, 2 steps/s, 10 s left",
        "precompute: 40 of 40 steps, 4 steps/s, 0 s left",
    ]


def test_events_are_json_lines_when_asked_for_and_silent_below_warnings_otherwise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    assert logs.wanted() == {}
    logs.log().info("block advanced", block=3)
    logs.log().warning("worker lost", worker=1)
    plain = capsys.readouterr().err
    assert "block advanced" not in plain
    assert 'level=warning event="worker lost" worker=1' in plain
    monkeypatch.setenv(logs.VARIABLE, "json")
    logs.log().info("block advanced", block=3)
    event = json.loads(capsys.readouterr().err)
    assert (event["event"], event["level"], event["block"]) == ("block advanced", "info", 3)
    assert event["timestamp"].endswith("Z")
    assert logs.wanted() == {logs.VARIABLE: "json"}
