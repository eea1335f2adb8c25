"""The recursion's worker as a plain class: saving, restarting, finishing."""

from pathlib import Path

import numpy as np
import pytest

from cluster.workers import RecursionWorker
from pipeline.run.directory import RunDirectory
from pipeline.run.store import open_store
from storage.store import ApproximatorStore
from tests.cluster.small_run import NUM_BLOCKS, NUM_STEPS, rows_of, serial_rows, trained_run

SAVE_EVERY = 3


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return trained_run(tmp_path / "run")


def merged(run: RunDirectory) -> ApproximatorStore:
    store = open_store(run, run.problem())
    store.merge()
    return store


def state_of(run: RunDirectory, block: int) -> Path:
    return run.state_folder / f"block-{block}.safetensors"


@pytest.mark.parametrize(("killed_before", "momentum"), [(2, 0.0), (7, 0.9), (NUM_STEPS - 1, 0.0)])
def test_a_restarted_worker_repeats_at_most_save_every_steps_and_finds_the_same_bits(
    tmp_path: Path, killed_before: int, momentum: float
) -> None:
    changes = {
        "training": {"momentum": momentum, "epochs": 4, "batch_size": 5, "learning_rate": 0.1}
    }
    run = trained_run(tmp_path / "run", **changes)
    steps = 0
    for block in range(NUM_BLOCKS):
        first = RecursionWorker(run.path, SAVE_EVERY)
        steps += first.advance(block, 0, killed_before).steps_taken
        # A new worker, as after SIGKILL, is asked for the same range again and goes on.
        second = RecursionWorker(run.path, SAVE_EVERY)
        steps += second.advance(block, 0, killed_before).steps_taken
        report = second.advance(block, killed_before, NUM_STEPS)
        steps += report.steps_taken
        assert report.step == NUM_STEPS
        assert report.stored_bytes > 0
    repeated = steps - NUM_BLOCKS * NUM_STEPS
    assert 0 < repeated < NUM_BLOCKS * SAVE_EVERY
    merged(run)
    assert np.array_equal(rows_of(run), serial_rows(tmp_path / "serial", **changes))


def test_asking_again_for_a_finished_block_computes_nothing(run: RunDirectory) -> None:
    RecursionWorker(run.path, SAVE_EVERY).advance(0, 0, NUM_STEPS)
    # As if the worker had died after writing its rows and before removing its saved state.
    state_of(run, 0).write_bytes(b"rows of people")
    report = RecursionWorker(run.path, SAVE_EVERY).advance(0, 18, NUM_STEPS)
    assert (report.step, report.steps_taken, report.num_products) == (NUM_STEPS, 0, 0)
    assert not state_of(run, 0).exists()


def test_one_worker_computes_blocks_one_after_the_other(run: RunDirectory, tmp_path: Path) -> None:
    worker = RecursionWorker(run.path)
    for block in reversed(range(NUM_BLOCKS)):
        worker.advance(block, 0, 4)
        worker.advance(block, 4, NUM_STEPS)
    merged(run)
    assert np.array_equal(rows_of(run), serial_rows(tmp_path / "serial"))
    assert list(run.state_folder.glob("*")) == []


def test_a_damaged_state_costs_its_block_and_not_the_run(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    RecursionWorker(run.path, SAVE_EVERY).advance(1, 0, 10)
    content = bytearray(state_of(run, 1).read_bytes())
    content[-5] ^= 1
    state_of(run, 1).write_bytes(content)
    report = RecursionWorker(run.path, SAVE_EVERY).advance(1, 10, 12)
    assert report.steps_taken == 12
    assert "saved state discarded" in capsys.readouterr().err


def test_a_state_of_another_run_is_not_taken_up(run: RunDirectory, tmp_path: Path) -> None:
    other = trained_run(
        tmp_path / "other", training={"epochs": 4, "batch_size": 5, "learning_rate": 0.2}
    )
    RecursionWorker(other.path, SAVE_EVERY).advance(1, 0, 10)
    run.state_folder.mkdir()
    state_of(run, 1).write_bytes(state_of(other, 1).read_bytes())
    assert RecursionWorker(run.path, SAVE_EVERY).advance(1, 0, 12).steps_taken == 12


def test_saved_states_are_for_their_owner_alone(run: RunDirectory) -> None:
    RecursionWorker(run.path, SAVE_EVERY).advance(0, 0, SAVE_EVERY)
    assert state_of(run, 0).stat().st_mode & 0o777 == 0o600


def test_the_store_is_asked_once_a_block_whether_it_is_finished(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    is_finished = ApproximatorStore.is_finished

    def counted(self: ApproximatorStore, block: int) -> bool:
        asked.append(block)
        return is_finished(self, block)

    monkeypatch.setattr(ApproximatorStore, "is_finished", counted)
    worker = RecursionWorker(run.path, SAVE_EVERY)
    for step in range(NUM_STEPS):
        worker.advance(1, step, step + 1)
    assert asked == [1]
    # A repeated call finds that the block is done, though its answer was lost.
    assert worker.advance(1, NUM_STEPS - 1, NUM_STEPS).steps_taken == 0
    assert asked == [1, 1]
