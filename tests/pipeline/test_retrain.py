"""Retraining: the model is training without the deleted, committed once, whatever interrupts it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.inspection import status_of, verify_run
from pipeline import (
    DeletionRequest,
    RunDirectory,
    delete,
    load_release,
    precompute,
    repair,
    retrain,
)
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.approximators.retrain import (
    abandon_retraining,
    delete_or_retrain,
    remaining_schedule,
    under_retraining,
)
from pipeline.deletion.delete import (
    accept,
    deletion_context,
    open_run,
    opened_for_deletion,
    release_waiting,
)
from pipeline.errors import (
    ConfigError,
    DivergedError,
    ErrorLimitError,
    GivenUpError,
    RequestError,
    UnitsRefusedError,
    WaitingError,
)
from pipeline.run.error_curve import ErrorCurve, ErrorPoint
from pipeline.training.retraining import retrain as oracle
from storage.errors import WriterConflictError
from storage.store import ApproximatorStore
from tests.cluster.small_run import NUM_UNITS, rows_of_remaining, trained_run
from tests.pipeline.crashes import StoppedError, stop_after
from tests.pipeline.fake_store import use_key


@pytest.fixture
def limited(run: RunDirectory) -> RunDirectory:
    """One sample may be deleted, no two."""
    points = (measured(1, 0.1), measured(2, 0.9))
    ErrorCurve("trials", "hvp", points).write(run)
    return run


def measured(units: int, error: float) -> ErrorPoint:
    return ErrorPoint(units, units, error, error, error, 2, "measured")


def without(run: RunDirectory, deleted: Sequence[int]) -> Tensor:
    """What training without some samples gives, by the retraining that everything is compared with."""
    mask_n = torch.zeros(NUM_UNITS, dtype=torch.bool)
    mask_n[list(deleted)] = True
    return oracle(run.problem(), run.trajectory().schedule, mask_n)


def released(run: RunDirectory, release: int) -> Tensor:
    model = load_release(run.path, release)
    return torch.cat([values.detach().flatten() for values in model.parameters()])


def certificate(run: RunDirectory, release: int) -> dict[str, Any]:
    path = run.path / "releases" / str(release) / "certificate.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_it_is_training_without_the_deleted_and_the_waiting(run: RunDirectory) -> None:
    delete(run, [0, 1])
    accept(run, DeletionRequest([2, 3], "Q"))
    done = retrain(run)
    assert (done.generation, done.release, done.num_samples) == (1, 2, NUM_UNITS - 4)
    assert torch.equal(released(run, 2), without(run, range(4)))
    receipt = delete(run, DeletionRequest([2, 3], "Q"))
    assert (receipt.release, receipt.units_deleted, receipt.repeated) == (2, 2, True)
    store = ApproximatorStore.open(run.store_url)
    assert store.generation == 1 and store.building is None
    assert [bool(name) for name in store.units] == [False] * 4 + [True] * (NUM_UNITS - 4)
    assert not verify_run(run).damage
    with pytest.raises(UnitsRefusedError):
        delete(run, [2])


def test_its_approximators_are_those_of_the_new_training(run: RunDirectory) -> None:
    delete(run, [0, 1])
    retrain(run)
    trained_P, expected_P = released(run, 2), without(run, [0, 1, 7])
    # Deleting one more from the retrained model is nearer to training without all three.
    assert delete(run, [7]).release == 3
    left = float((released(run, 3) - expected_P).norm() / (trained_P - expected_P).norm())
    assert left < 0.05
    assert not verify_run(run).damage


def test_the_certificate_says_retrained_and_what_it_does_to_earlier_releases(
    run: RunDirectory,
) -> None:
    delete(run, [0, 1])
    accept(run, DeletionRequest([2, 3, 4]))
    retrain(run)
    said = certificate(run, 2)
    assert (said["kind"], said["wording"], said["generation"], said["sigma"]) == (
        "retrained",
        3,
        1,
        0,
    )
    assert said["claim"].startswith("retrained: the parameters are those of training without")
    assert said["epsilon"] is None and "earlier releases claim" in said["earlier_releases"]
    assert said["deleted"]["at_most"] == 5
    assert said["error"]["statement"] == "no error: trained without the deleted units; limit 50%"
    assert not any("sum" in line for line in said["still_held_by_the_operator"])
    path = run.path / "releases" / "2" / "certificate.json"
    path.write_text(path.read_text().replace('"at_most": 5', '"at_most": 10'))
    assert verify_run(run).damage


def test_after_it_the_error_is_not_measured(limited: RunDirectory) -> None:
    delete(limited, [0])
    retrain(limited)
    told = delete(limited, [1, 2, 3]).warnings
    assert any("error not measured for the retrained model" in line for line in told)
    assert "not measured for the retrained model" in status_of(limited)["verdict"]


def test_there_must_be_something_to_retrain_without(run: RunDirectory) -> None:
    with pytest.raises(RequestError, match="nothing to retrain without"):
        retrain(run)
    delete(run, [0])
    retrain(run)
    with pytest.raises(RequestError, match="nothing to retrain without"):
        retrain(run)
    delete(run, [1])
    assert retrain(run).generation == 2
    assert torch.equal(released(run, 4), without(run, [0, 1]))


def test_repair_and_retraining_follow_each_other(run: RunDirectory) -> None:
    delete(run, [0])
    repair(run, epochs=1)
    delete(run, [1])
    assert retrain(run).generation == 2
    assert torch.equal(released(run, 3), without(run, [0, 1]))
    delete(run, [2])
    assert repair(run, epochs=1).generation == 3
    delete(run, [3])
    assert "repaired" in status_of(run)["verdict"]
    assert not verify_run(run).damage


def test_empty_minibatches_are_passed_over(run: RunDirectory) -> None:
    trajectory = run.trajectory()
    store = ApproximatorStore.open(run.store_url)
    first = trajectory.schedule.sample_ids[0].tolist()
    schedule = remaining_schedule(
        run.problem(), trajectory.schedule, store, [store.units[unit] for unit in first]
    )
    gone = [set(ids.tolist()) <= set(first) for ids in trajectory.schedule.sample_ids]
    assert schedule.num_steps == trajectory.num_steps - sum(gone) and sum(gone) >= 1
    rates = [
        rate
        for rate, skip in zip(trajectory.schedule.learning_rates, gone, strict=True)
        if not skip
    ]
    assert schedule.learning_rates == tuple(rates)
    assert not set(torch.cat(schedule.sample_ids).tolist()) & set(first)
    delete(run, first)
    retrain(run)
    assert not verify_run(run).damage


@pytest.fixture
def interrupted(run: RunDirectory) -> RunDirectory:
    delete(run, [0, 1])
    accept(run, DeletionRequest([2], "Q"))
    with pytest.raises(StoppedError):
        retrain(run, progress=stop_after(2))
    return run


def test_requests_wait_for_the_new_model_while_it_trains(interrupted: RunDirectory) -> None:
    run = interrupted
    receipt = delete(run, DeletionRequest([5], "R"))
    assert receipt.release is None and receipt.units_deleted == 1
    assert any("waits for its model" in line for line in receipt.warnings)
    assert accept(run, DeletionRequest([6], "S")).units_deleted == 1
    assert delete(run, DeletionRequest([5], "R")).repeated
    with pytest.raises(WaitingError, match="retraining is under way, and 2 requests wait"):
        release_waiting(run)
    # The old model serves, and nothing of the batch is carried out.
    told = status_of(run)
    assert (told["releases"], told["units_deleted"], told["requests_waiting"]) == (1, 2, 2)
    assert told["retraining"]["release"] == 2 and "retrain_blocks_finished" in told
    assert ApproximatorStore.open(run.store_url).generation == 0
    for read_only in (True, False):
        found = verify_run(run, read_only)
        assert not found.damage and "retraining is under way" in found.notes[0]
    done = retrain(run)
    assert (done.release, done.waiting) == (2, ())
    assert torch.equal(released(run, 2), without(run, range(3)))
    for name in ("R", "S"):
        unit = 5 if name == "R" else 6
        assert delete(run, DeletionRequest([unit], name)).release == 3
    assert not verify_run(run).damage


def test_an_interrupted_one_is_continued_to_the_same_bits(
    interrupted: RunDirectory, computed: Path, tmp_path: Path
) -> None:
    seen: list[int] = []
    retrain(interrupted, progress=lambda done, total: seen.append(total))
    assert seen == [2, 2]
    whole = RunDirectory.open(shutil.copytree(computed, tmp_path / "whole"))
    delete(whole, [0, 1])
    accept(whole, DeletionRequest([2], "Q"))
    retrain(whole)
    assert np.array_equal(rows_of_remaining(interrupted), rows_of_remaining(whole))
    assert torch.equal(released(interrupted, 2), released(whole, 2))


def test_nothing_else_begins_while_it_is_under_way(interrupted: RunDirectory) -> None:
    run = interrupted
    for again in (precompute, PrecomputeJob.of_training):
        with pytest.raises(
            ConfigError, match=r"retraining of .* was interrupted; .*unlearn retrain"
        ):
            again(run)
    with pytest.raises(WaitingError, match=r"finish it by repeating `unlearn retrain`"):
        repair(run, epochs=1)
    with pytest.raises(RequestError, match="retraining with --recompute is under way"):
        retrain(run, final=True)
    with under_retraining(run), pytest.raises(WriterConflictError):
        retrain(run)


def test_one_given_up_leaves_the_run_as_it_was(interrupted: RunDirectory) -> None:
    run = interrupted
    assert abandon_retraining(run) and not abandon_retraining(run)
    assert not run.trajectory_folder_of(1).exists()
    assert "retraining" not in status_of(run)
    assert [receipt.release for receipt in release_waiting(run)] == [2]
    assert not verify_run(run).damage
    # The generation of a repair that follows is not taken for the retraining's.
    repair(run, epochs=1)
    delete(run, [9])
    assert not verify_run(run).damage


def test_what_an_interrupted_repair_left_is_not_continued(run: RunDirectory) -> None:
    delete(run, [0, 1])
    with pytest.raises(StoppedError):
        repair(run, epochs=1, progress=stop_after(2))
    retrain(run)
    assert torch.equal(released(run, 2), without(run, [0, 1]))
    assert not run.continuation_path.exists() and not verify_run(run).damage


def test_where_the_gate_refuses_a_fallback_retrains(limited: RunDirectory) -> None:
    asked = DeletionRequest([0, 1], "R")
    with pytest.raises(ErrorLimitError):
        delete_or_retrain(limited, replace(asked, dry_run=True))
    receipt = delete_or_retrain(limited, asked)
    assert (receipt.release, receipt.units_deleted) == (1, 2)
    assert torch.equal(released(limited, 1), without(limited, [0, 1]))
    assert certificate(limited, 1)["kind"] == "retrained"
    # Where it lets through, nothing is trained.
    assert delete_or_retrain(limited, DeletionRequest([2])).release == 2
    assert certificate(limited, 2)["kind"] == "none"
    assert not verify_run(limited).damage


@pytest.mark.parametrize("stop", ["accepted", "begun", "trained"])
def test_an_interrupted_fallback_is_continued_by_repeating_it(
    limited: RunDirectory, stop: str
) -> None:
    asked = DeletionRequest([0, 1], "R")

    def stopped(run: RunDirectory) -> None:
        if stop == "begun":
            with opened_for_deletion(run) as releases:
                releases.begin_retraining(final=False)
        elif stop == "trained":
            with under_retraining(run):
                raise StoppedError
        raise StoppedError

    with pytest.raises(StoppedError):
        delete_or_retrain(limited, asked, stopped)
    if stop == "accepted":
        # It must not be released by anything else in the meantime.
        with pytest.raises(WaitingError, match="measured error of 2 samples"):
            release_waiting(limited)
    assert delete_or_retrain(limited, asked).release == 1
    assert torch.equal(released(limited, 1), without(limited, [0, 1]))
    assert not verify_run(limited).damage


def test_approximators_given_up_can_be_computed_later(run: RunDirectory) -> None:
    delete(run, [0, 1])
    retrain(run, final=True)
    assert torch.equal(released(run, 2), without(run, [0, 1]))
    assert set(ApproximatorStore.open(run.store_url).states) == {"absent", "erased"}
    assert not list((run.path / "approximators.zarr").rglob("c.*"))
    assert not verify_run(run).damage
    with pytest.raises(GivenUpError, match="unlearn precompute"):
        delete(run, [2])
    precompute(run)
    assert delete(run, [2]).release == 3
    assert not verify_run(run).damage


def test_without_approximators_a_fallback_retrains_again(run: RunDirectory) -> None:
    delete(run, [0])
    retrain(run, final=True)
    assert delete_or_retrain(run, DeletionRequest([1])).release == 3
    assert torch.equal(released(run, 3), without(run, [0, 1]))
    assert delete(run, [2]).release == 4
    assert not verify_run(run).damage


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_commands(limited: RunDirectory) -> None:
    deleted = ("delete", limited.path, "--ids", "0,1", "--json")
    assert invoke(*deleted).exit_code == 1
    assert isinstance(invoke(*deleted, "--fallback", "repair").exception, ConfigError)
    assert isinstance(invoke(*deleted, "--fallback", "retrain", "--queue").exception, ConfigError)
    done = invoke(*deleted, "--fallback", "retrain")
    assert done.exit_code == 0 and json.loads(done.stdout)["release"] == 1
    assert invoke("delete", limited.path, "--ids", "2").exit_code == 0
    told = json.loads(invoke("retrain", limited.path, "--final", "--json").stdout)
    assert (told["generation"], told["release"]) == (2, 3)
    assert (
        json.loads(invoke("retrain", limited.path, "--abandon", "--json").stdout)["abandoned"]
        is False
    )


@pytest.mark.parametrize("engine", ["hvp", "leave-one-out"])
def test_what_is_about_to_be_erased_is_not_in_the_new_approximators(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(monkeypatch, tmp_path)
    run = trained_run(tmp_path / "run", recursion={"engine": engine})
    precompute(run)
    accept(run, DeletionRequest([2]))
    with under_retraining(run) as retraining:
        job = retraining.job
        assert job is not None
        recursion = job.recursion(0)
        recursion.advance(job.trajectory.num_steps)
        rows_mP = recursion.rows()
        assert not rows_mP[2].any() and rows_mP[[0, 1, 3, 4, 5]].any(axis=1).all()
        job.compute()
    assert retraining.result is not None
    assert torch.equal(released(run, 1), without(run, [2]))
    assert not verify_run(run).damage


def test_a_retraining_that_diverges_says_how_to_give_it_up(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(*_: object) -> None:
        raise DivergedError("the gradient of step 3 is not finite")

    delete(run, [0])
    monkeypatch.setattr("pipeline.approximators.retrain.record", diverged)
    with pytest.raises(DivergedError, match=r"--abandon` gives the retraining up"):
        retrain(run)
    assert abandon_retraining(run)
    assert delete(run, [1]).release == 2


def test_a_deletion_that_was_read_before_the_commit_is_made_from_the_new_model(
    run: RunDirectory,
) -> None:
    delete(run, [0])
    store = ApproximatorStore.open(run.store_url, "r+")
    before = deletion_context(run, store)
    retrain(run)
    with open_run(run, store, before) as releases:
        assert releases.delete(DeletionRequest([1])).release == 3
    assert certificate(run, 3)["generation"] == 1
    assert not verify_run(run).damage
