"""Without Ray: the rows of the serial run, interruptions, failures, and what stays unimported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import cli
from cluster.console import Reporter
from cluster.errors import ResourcesError, WorkerFailedError
from cluster.precompute_stage import compute_with, precompute, repair
from cluster.progress_file import read_progress
from cluster.scheduler import Scheduler
from cluster.shared_store import shared_store
from cluster.worker_pool import pool_in_process
from cluster.workers import RecursionWorker
from cluster.workload import workload_of
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.approximators.precompute import precompute as serial_precompute
from pipeline.approximators.repair import repair as serial_repair
from pipeline.deletion.delete import delete
from pipeline.errors import ConfigError
from pipeline.run.directory import RunDirectory
from pipeline.run.measurements import read_measurements
from storage.errors import WriterConflictError
from tests.cluster.small_run import (
    NUM_BLOCKS,
    NUM_STEPS,
    config,
    rows_of,
    rows_of_remaining,
    serial_rows,
    trained_run,
)
from tests.pipeline.fake_store import use_key

NONE: dict[str, Any] = {"address": "none", "save_every": 3}
QUIET = Reporter(quiet=True)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return trained_run(tmp_path / "run", cluster=NONE)


def test_the_rows_and_measurements_are_those_of_a_run_with_workers(
    run: RunDirectory, tmp_path: Path
) -> None:
    precompute(run, run.problem(), QUIET)
    assert np.array_equal(rows_of(run), serial_rows(tmp_path / "serial"))
    measured = read_measurements(run)["precompute"]
    assert (measured["workers"], measured["workers_lost"], measured["max_drift"]) == (1, 0, 0.0)
    assert measured["hvps"] == workload_of(run.problem()).num_products
    assert read_progress(run.path) is None
    assert not list(run.state_folder.glob("*"))


def test_an_interruption_is_continued_from_the_saved_state(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Scheduler] = []

    def interrupt(self: object, state: Scheduler, totals: object) -> None:
        seen.append(state)
        if len(state.finished) == 1 and list(state.positions.values()) == [8]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cluster.progress_file.ProgressFile.show", interrupt)
        with pytest.raises(KeyboardInterrupt):
            precompute(run, run.problem(), QUIET)
    assert len(list(run.state_folder.glob("*"))) == 1
    pool = pool_in_process(run, run.problem())
    totals = pool.compute(PrecomputeJob.of(run), "precompute", QUIET)
    # Saved before step 6: two steps of the block in work are taken again, the first block none.
    assert totals.num_steps == (NUM_BLOCKS - 1) * NUM_STEPS - 6
    assert np.array_equal(rows_of(run), serial_rows(tmp_path / "serial"))


def test_machines_are_not_wanted_any_more_once_no_block_waits(run: RunDirectory) -> None:
    pool, waited = pool_in_process(run, run.problem()), []
    job = PrecomputeJob.of(run)
    pool.want_no_more = lambda: waited.append(len(job.waiting()))
    compute_with(pool, job, "precompute", QUIET)
    # Said once, while the last block was still computed.
    assert waited == [1]


def test_a_failed_computation_is_one_line_that_says_what_is_kept(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: object, block: int, start: int, stop: int) -> None:
        raise ArithmeticError("the row of unit '7' is no longer finite")

    monkeypatch.setattr(RecursionWorker, "advance", fail)
    with pytest.raises(WorkerFailedError, match=r"ArithmeticError: .*'7'.*saved states are kept"):
        precompute(run, run.problem(), QUIET)
    monkeypatch.setattr(sys, "argv", ["unlearn", "precompute", str(run.path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_ends_with_130_and_the_word_to_continue(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: object, block: int, start: int, stop: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RecursionWorker, "advance", interrupt)
    monkeypatch.setattr(sys, "argv", ["unlearn", "precompute", str(run.path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted; repeat the command to continue\n"


def test_a_block_that_another_process_writes_is_named_and_not_tried_again(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def conflict(self: object, block: int, start: int, stop: int) -> None:
        asked.append(block)
        raise WriterConflictError("block 0 is in use by process 4711")

    monkeypatch.setattr(RecursionWorker, "advance", conflict)
    with pytest.raises(WriterConflictError, match="4711"):
        precompute(run, run.problem(), QUIET)
    assert asked == [0]


def test_a_repair_has_the_bits_of_the_serial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(monkeypatch, tmp_path)
    runs = [trained_run(tmp_path / name, cluster=NONE) for name in ("run", "serial")]
    for made in runs:
        serial_precompute(made)
        delete(made, ["1", "2", "3"])
    assert repair(runs[0], 1, None, QUIET)["num_samples"] == 19
    serial_repair(runs[1], 1)
    assert np.array_equal(*map(rows_of_remaining, runs))


def test_gpus_that_are_not_there_are_refused(tmp_path: Path) -> None:
    made = trained_run(tmp_path / "run", cluster=NONE | {"gpus_per_worker": 2})
    with pytest.raises(ResourcesError, match=r"gpus_per_worker is 2.*address to local"):
        pool_in_process(made, made.problem())


def test_readers_need_ray(run: RunDirectory) -> None:
    with pytest.raises(ConfigError, match=r"--readers 2 .*address is none"), shared_store(run, 2):
        pass


def test_sums_are_those_of_the_store(run: RunDirectory) -> None:
    pool = pool_in_process(run, run.problem())
    compute_with(pool, PrecomputeJob.of(run), "precompute", QUIET)
    store = PrecomputeJob.of(run).store
    units, weights = list(store.units), list(range(1, len(store.units) + 1))
    total_P, seconds = pool.start_sums()(units, weights)
    assert np.array_equal(total_P, store.sum_rows(units, weights))
    assert seconds > 0
    pool.close()


WHOLE = """
import sys
from pathlib import Path
from cluster.console import Reporter
from cluster.whole_run import run_all
from pipeline import RunConfig
config, out = RunConfig.load(sys.argv[1]), Path(sys.argv[2])
for _ in range(2):
    report = run_all(config, out, Reporter(quiet=True))
print(len(report["deletions"]), "ray" in sys.modules)
"""


def test_a_whole_run_imports_no_ray_and_is_found_when_repeated(tmp_path: Path) -> None:
    certificate = {"kind": "calibrated", "max_units": 3, "audit_sets": 2}
    whole = config(cluster=NONE, certificate=certificate, evaluation={"deletions": [1, 2]})
    (tmp_path / "small.yaml").write_text(whole.to_yaml())
    done = subprocess.run(
        [sys.executable, "-c", WHOLE, str(tmp_path / "small.yaml"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("2 False\n", 0), done.stderr
    made = RunDirectory.open(tmp_path / "run")
    assert made.declaration_path.exists()
    assert np.array_equal(rows_of(made), serial_rows(tmp_path / "serial"))
    # A report of version 0.1 has null for auto, and is known again all the same.
    from cluster.whole_run import finished_report

    path = made.path / "report.json"
    report = json.loads(path.read_text())
    report["config"]["cluster"]["address"] = None
    path.write_text(json.dumps(report))
    changed = made.config.cluster.model_copy(update={"address": "auto"})
    auto = RunDirectory(made.path, made.config.model_copy(update={"cluster": changed}))
    assert finished_report(auto) is not None
    assert finished_report(made) is None
