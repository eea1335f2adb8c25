"""What the commands say of a repaired run, and of one whose repair was interrupted."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.inspection import status_of, verify_run
from cluster.workers import RecursionWorker
from pipeline.approximators.precompute import PrecomputeJob, precompute
from pipeline.approximators.repair import repair, under_repair
from pipeline.deletion.delete import delete
from pipeline.errors import ConfigError, StateError
from pipeline.run.directory import RunDirectory
from pipeline.run.store import refuse_repaired
from tests.cluster.small_run import NUM_BLOCKS, rows_of_remaining, trained_run
from tests.pipeline.fake_store import use_key

DELETED = [1, 2, 3]
# 19 samples remain, in minibatches of 5.
REPAIR_STEPS = 4


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    use_key(monkeypatch, tmp_path)
    return shrunk(tmp_path / "run")


def shrunk(folder: Path) -> RunDirectory:
    made = trained_run(folder)
    precompute(made)
    delete(made, DELETED)
    return made


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_epochs_below_one_are_wrong_use(run: RunDirectory) -> None:
    assert invoke("repair", str(run.path), "--epochs", "0").exit_code == 2


def test_every_trajectory_of_a_repaired_run_is_verified(run: RunDirectory) -> None:
    repair(run, 1)
    assert not verify_run(run).damage
    path = run.trajectory_folder_of(1) / "schedule.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert [item["where"] for item in verify_run(run).damage] == ["trajectory-1"]


def test_a_repaired_run_is_not_tried_again(run: RunDirectory) -> None:
    repair(run, 1)
    with pytest.raises(ConfigError, match="was repaired"):
        refuse_repaired(run, PrecomputeJob.of(run).store)


def test_workers_carry_the_rows_of_a_repair_to_the_serial_bits(
    run: RunDirectory, tmp_path: Path
) -> None:
    with under_repair(run, 1) as job:
        for block in job.waiting():
            # A worker of its own for each half: the second takes up what the first has saved.
            RecursionWorker(run.path, save_every=1).advance(block, 0, 2)
            report = RecursionWorker(run.path, save_every=1).advance(block, 2, REPAIR_STEPS)
            assert report.steps_taken == REPAIR_STEPS - 2
        job.store.merge()
    serial = shrunk(tmp_path / "serial")
    repair(serial, 1)
    assert (rows_of_remaining(run) == rows_of_remaining(serial)).all()
    assert not run.continuation_path.exists()


@pytest.fixture
def interrupted(run: RunDirectory) -> RunDirectory:
    with under_repair(run, 1):
        RecursionWorker(run.path).advance(0, 0, REPAIR_STEPS)
    return run


def test_an_interrupted_repair_is_told_and_not_mistaken_for_a_precomputation(
    interrupted: RunDirectory,
) -> None:
    assert status_of(interrupted)["repair_blocks_finished"] == f"1 of {NUM_BLOCKS}"
    for again in (precompute, PrecomputeJob.of_training):
        with pytest.raises(ConfigError, match=r"repair of .* was interrupted; .* `unlearn repair`"):
            again(interrupted)
    repair(interrupted, 1)
    assert status_of(interrupted)["blocks_finished"] == f"{NUM_BLOCKS} of {NUM_BLOCKS}"


def test_what_the_rows_start_from_is_private_and_checked(interrupted: RunDirectory) -> None:
    path = interrupted.continuation_path
    assert path.stat().st_mode & 0o777 == 0o600
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StateError, match="repeat `unlearn repair`"):
        RecursionWorker(interrupted.path).advance(1, 0, REPAIR_STEPS)
    path.unlink()
    with pytest.raises(StateError, match="repeat `unlearn repair`"):
        RecursionWorker(interrupted.path).advance(1, 0, REPAIR_STEPS)
    # Repeating it is all it takes.
    assert repair(interrupted, 1).num_steps == REPAIR_STEPS
