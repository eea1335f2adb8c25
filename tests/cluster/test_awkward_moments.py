"""Commands given at awkward moments: between a crash and its recovery, too early, too late."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.audit_stage import carry_out, plan_of
from cluster.console import Reporter
from cluster.upkeep import back_up, prune_run, restore_backup
from cluster.workers import RecursionWorker
from pipeline.approximators.precompute import PrecomputeJob, precompute
from pipeline.approximators.repair import repair, under_repair
from pipeline.certificates.declaration import declare
from pipeline.deletion.delete import delete, open_run
from pipeline.deletion.requests import DeletionRequest
from pipeline.errors import ConfigError, DamagedRunError, StateError, WaitingError
from pipeline.evaluation.trials import SumRows, unlearn
from pipeline.run.directory import RunDirectory
from pipeline.run.store import open_store
from storage import catalog
from storage.store import ApproximatorStore
from tests.cluster.small_run import rows_of_remaining, trained_run
from tests.pipeline.fake_store import use_key

# 22 units, three of them deleted; minibatches of 5.
REPAIR_STEPS = 4


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    use_key(monkeypatch, tmp_path)
    return finished(tmp_path / "run")


def finished(folder: Path, **changes: Any) -> RunDirectory:
    made = trained_run(folder, **changes)
    precompute(made)
    return made


def local_sum(run: RunDirectory) -> SumRows:
    store = ApproximatorStore.open(run.store_url)
    return lambda units, weights: (store.sum_rows(units, weights), 0.0)


def test_deletions_go_on_while_a_repair_is_interrupted(run: RunDirectory) -> None:
    delete(run, [1, 2, 3])
    with under_repair(run, 1):
        RecursionWorker(run.path).advance(0, 0, REPAIR_STEPS)
    old_sum = run.continuation_path
    assert old_sum.exists()
    assert delete(run, ["4"]).units_deleted == 1
    # Two sums differ by a row: the older one goes with the person.
    assert not old_sum.exists()
    assert repair(run, 1).num_samples == 18


def test_a_backup_from_before_a_deletion_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    delete(run, [1])
    back_up(run, tmp_path / "backup")
    delete(run, [2])
    for path in run.path.glob("ledger.sqlite*"):
        path.unlink()
    with pytest.raises(DamagedRunError, match="erased 1 units that the ledger does not know"):
        restore_backup(run, tmp_path / "backup")
    assert not (run.path / "internal" / "restored").exists()


CALIBRATED = {"kind": "calibrated", "max_units": 3, "audit_sets": 2}


def test_nothing_is_deleted_before_the_run_has_declared_what_it_will(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(monkeypatch, tmp_path)
    run = finished(tmp_path / "run", certificate=CALIBRATED)
    for attempt in (lambda: delete(run, [1]), lambda: delete(run, DeletionRequest(["1"]))):
        with pytest.raises(ConfigError, match="declared nothing yet"):
            attempt()
    problem, trained_P = run.problem(), run.trajectory().trained().numpy()
    declare(run, problem, lambda units: unlearn(problem, units, trained_P, local_sum(run))[0])
    delete(run, [1])


def test_nothing_is_declared_after_a_request(run: RunDirectory, tmp_path: Path) -> None:
    delete(run, [1])
    late = RunDirectory(
        run.path,
        run.config.model_copy(
            update={"certificate": run.config.certificate.model_validate(CALIBRATED)}
        ),
    )
    with pytest.raises(ConfigError, match="before it declared anything"):
        declare(late, late.problem(), local_sum(run))
    assert not run.declaration_path.exists()
    delete(run, [2])


class CrashError(BaseException):
    """Stands for a killed process."""


def test_a_request_that_waits_is_carried_out_before_a_repair(run: RunDirectory) -> None:
    store = ApproximatorStore.open(run.store_url, "r+")
    with open_run(run, store) as releases:
        releases.accept(DeletionRequest(["5"]))
    repair(run, 1)
    assert "5" not in ApproximatorStore.open(run.store_url).units


def test_a_request_that_cannot_be_carried_out_stops_repair_and_prune(run: RunDirectory) -> None:
    store = ApproximatorStore.open(run.store_url, "r+")
    with open_run(run, store) as releases:
        releases.accept(DeletionRequest(["5"]))
    codes = next((run.path / "approximators.zarr").rglob("codes/c*"))
    codes.write_bytes(bytes(len(codes.read_bytes())))
    for attempt in (lambda: repair(run, 1), lambda: prune_run(run)):
        with pytest.raises(WaitingError, match=r"keep waiting.*Nothing was changed"):
            attempt()
    assert not run.is_pruned()
    assert (run.path / "internal").is_dir()


def test_a_prune_that_was_interrupted_is_finished_by_repeating_it(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete(run, [1])

    def crash(path: Path) -> None:
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", crash)
        with pytest.raises(CrashError):
            prune_run(run)
    assert (run.path / "trajectory").exists()
    prune_run(run)
    assert not (run.path / "trajectory").exists() and not (run.path / "internal").exists()


def test_rows_of_an_abandoned_repair_do_not_enter_the_next(
    run: RunDirectory, tmp_path: Path
) -> None:
    delete(run, [1, 2, 3])
    survivor = RecursionWorker(run.path)
    with under_repair(run, 1):
        survivor.advance(0, 0, 1)
    delete(run, [4])
    with under_repair(run, 1) as job:
        # The first repair's worker, cut off from everybody, comes to its end only now.
        with pytest.raises(StateError, match="no longer expects"):
            survivor.advance(0, 1, REPAIR_STEPS)
        job.compute()
    other = finished(tmp_path / "other")
    delete(other, [1, 2, 3, 4])
    repair(other, 1)
    assert np.allclose(rows_of_remaining(run), rows_of_remaining(other), atol=1e-6)


def test_workers_of_a_precomputation_write_nothing_into_a_repair(run: RunDirectory) -> None:
    job = PrecomputeJob.of_training(run)
    recursion = job.recursion(0)
    recursion.advance(job.trajectory.num_steps)
    with under_repair(run, 1), pytest.raises(StateError, match="no longer expects"):
        job.write(0, recursion)


def test_an_audit_of_a_repaired_run_is_refused(run: RunDirectory) -> None:
    repair(run, 1)
    with pytest.raises(ConfigError, match="was repaired"):
        carry_out(run, plan_of(run, (1,), 1, 0), Reporter(quiet=True))


@pytest.mark.parametrize("left", ["digest alone", "a damaged schedule"])
def test_a_repair_begins_anew_where_its_fine_tuning_is_damaged(
    run: RunDirectory, left: str
) -> None:
    with under_repair(run, 1):
        pass
    folder = run.trajectory_folder_of(1)
    for path in folder.iterdir():
        if left == "digest alone" and path.name != "digest":
            path.unlink()
    if left == "a damaged schedule":
        (folder / "schedule.parquet").write_bytes(b"PAR1")
    assert repair(run, 1).generation == 1


def test_a_store_whose_creation_was_cut_short_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trained_run(tmp_path / "run")
    put = catalog.Catalog.save

    for crash_after in (False, True):

        def save(self: Any, manifest: Any, after: bool = crash_after) -> None:
            if after:
                put(self, manifest)
            raise CrashError

        with monkeypatch.context() as patch:
            patch.setattr(catalog.Catalog, "save", save)
            with pytest.raises(CrashError):
                open_store(made, made.problem())
    precompute(made)
    # Once rows are listed, a lost root document is damage, and nothing is put over it.
    (tmp_path / "run" / "approximators.zarr" / "zarr.json").unlink()
    listed = (tmp_path / "run" / "approximators.parquet").read_bytes()
    with pytest.raises(Exception, match=r"zarr\.json is missing"):
        open_store(made, made.problem())
    assert (tmp_path / "run" / "approximators.parquet").read_bytes() == listed


def test_a_dry_run_after_a_crash_finishes_what_was_committed(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.deletion import batch

    def crash(*_: object) -> None:
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(batch, "_erase", crash)
        with pytest.raises(CrashError):
            delete(run, [1])
    answer = delete(run, DeletionRequest(["2"], dry_run=True))
    assert answer.dry_run and answer.units_deleted == 1
    units = ApproximatorStore.open(run.store_url).units
    assert "1" not in units and "2" in units


@pytest.mark.parametrize("denominator", ["remaining", "batch"])
def test_runs_in_float64_are_deleted_from_and_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denominator: str
) -> None:
    use_key(monkeypatch, tmp_path)
    run = finished(
        tmp_path / "run",
        recursion={"dtype": "float64"},
        retraining={"denominator": denominator},
    )
    delete(run, [1, 2])
    repair(run, 1)
    delete(run, [3])
    with open_run(run, ApproximatorStore.open(run.store_url, "r+")) as releases:
        assert releases.verify() == []
