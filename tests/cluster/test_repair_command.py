"""`unlearn repair`: from the shell, and what other commands say of a repaired run."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.console import Reporter
from cluster.inspection import damage_of
from cluster.training_stage import repair_run
from pipeline.approximators import recollect
from pipeline.errors import ConfigError
from pipeline.forgetting import delete
from pipeline.rundir import RunDirectory
from tests.cluster.small_run import trained_run
from tests.pipeline.fake_store import use_key


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    use_key(monkeypatch, tmp_path)
    made = trained_run(tmp_path / "run")
    recollect(made)
    delete(made, [1, 2, 3])
    return made


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_repair_prints_what_it_did(run: RunDirectory) -> None:
    result = invoke("repair", str(run.path), "--epochs", "1", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert (printed["generation"], printed["num_samples"], printed["num_steps"]) == (1, 19, 4)


def test_epochs_below_one_are_wrong_use(run: RunDirectory) -> None:
    assert invoke("repair", str(run.path), "--epochs", "0").exit_code == 2


def test_every_trajectory_of_a_repaired_run_is_verified(run: RunDirectory) -> None:
    repair_run(run, 1, None, Reporter(quiet=True))
    assert not damage_of(run)
    path = run.trajectory_folder_of(1) / "schedule.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert [item["where"] for item in damage_of(run)] == ["trajectory-1"]


def test_a_repaired_run_is_not_tried_again(run: RunDirectory) -> None:
    from cluster.whole_run import refuse_repaired
    from pipeline.approximators import open_store

    repair_run(run, 1, None, Reporter(quiet=True))
    with pytest.raises(ConfigError, match="was repaired"):
        refuse_repaired(run, open_store(run, run.problem()))
