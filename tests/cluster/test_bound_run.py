"""What decides a release is bound to the run; what lies outside the run is left alone."""

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from cluster.inspection import export_row, verify_run
from pipeline import DeletionRequest, RunConfig, delete, precompute, replay_steps, train
from pipeline.deletion.configure import configure
from pipeline.deletion.delete import accept, open_run, release_waiting
from pipeline.deletion.row_copies import RowCopies
from pipeline.errors import ConfigError, DamagedRunError, DataError
from pipeline.run.directory import RunDirectory
from storage.errors import LedgerError
from storage.store import ApproximatorStore
from tests.cluster.small_run import PLAIN
from tests.cluster.test_cli import files, unlearn
from tests.pipeline.fake_store import use_key


def edit(run: RunDirectory, old: str, new: str) -> None:
    path = run.path / "config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("denominator: remaining", "denominator: batch"),
        ("own_rows: left-out", "own_rows: included"),
        ("batch_size: 16", "batch_size: 17"),
        ("engine: hvp", "engine: leave-one-out"),
        ("l2: 0.01", "l2: 0.02"),
        ("cpus_per_worker: 1", "cpus_per_worker: 2"),
        ("encoding: auto", "encoding: int8"),
    ],
)
def test_a_configuration_changed_after_training_is_refused_by_name(
    run: RunDirectory, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(run, old, new)
    for command in (["delete", str(run.path), "--ids", "3"], ["verify", str(run.path)]):
        code, _, err = unlearn(capsys, *command)
        assert code in (1, 2)
        assert "config.yaml" in err and old.split(":")[0] in err and len(err.splitlines()) == 1


def test_settings_cannot_be_changed_together_with_the_configuration(run: RunDirectory) -> None:
    """Both files say the same, and neither is what the trajectory's digest covers."""
    edit(run, "denominator: remaining", "denominator: batch")
    path = run.trajectory_folder / "settings.json"
    body = json.loads(path.read_text())
    body["settings"]["retraining.denominator"] = "batch"
    path.write_text(json.dumps(body))
    with pytest.raises(ValueError, match=r"settings\.json was changed"):
        delete(run.path, ["3"])


@pytest.mark.parametrize("name", ["settings.json", "samples.safetensors"])
def test_a_file_of_the_trajectory_that_is_gone_is_missed_by_name(
    run: RunDirectory, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without `settings.json` nothing would bind the first deletion to the configuration."""
    edit(run, "denominator: remaining", "denominator: batch")
    if name != "settings.json":
        edit(run, "denominator: batch", "denominator: remaining")
    (run.trajectory_folder / name).unlink()
    for command in (["delete", str(run.path), "--ids", "nobody"], ["units", str(run.path)]):
        code, _, err = unlearn(capsys, *command)
        assert code in (1, 2)
        assert name in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("deleted_before", [False, True])
def test_rows_of_another_run_are_neither_summed_nor_erased(
    run: RunDirectory,
    tmp_path: Path,
    deleted_before: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = train(RunConfig.from_values(PLAIN | {"seed": 9}), tmp_path / "other")
    precompute(other)
    if deleted_before:
        delete(run, ["4"])
    edit(run, "url: null", f"url: {other.store_url}")
    for command in (["delete", str(run.path), "--ids", "3"], ["verify", str(run.path)]):
        code, out, err = unlearn(capsys, *command)
        assert code in (1, 2) and "another run's" in out + err and "config.yaml" in out + err
    assert ApproximatorStore.open(other.store_url).state("3") == "written"


def release_waiting_unchecked(run: RunDirectory) -> None:
    with open_run(run, ApproximatorStore.open(run.store_url, "r+")):
        pass


def test_the_certificate_is_bound_by_the_ledger(run: RunDirectory) -> None:
    delete(run, ["3"])
    edit(run, "kind: none", "kind: published")
    with pytest.raises(ConfigError, match=r"config\.yaml was changed.*certificate\.kind"):
        release_waiting_unchecked(RunDirectory.open(run.path))


def test_what_may_change_is_changed_by_command_with_an_entry(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    delete(run, ["3"])
    words = ["configure", str(run.path), "cluster.num_workers=3", "certificate.budget.epsilon=2"]
    code, out, _ = unlearn(capsys, *words, "certificate.budget.delta=0.0001")
    assert code == 0 and "config.yaml" in out
    again = RunDirectory.open(run.path)
    assert again.config.cluster.num_workers == 3
    with open_run(again, ApproximatorStore.open(run.store_url, "r+")) as releases:
        assert "configured" in [e.kind for e in releases._run.ledger.file.entries()]
    code, _, err = unlearn(capsys, "configure", str(run.path), "training.epochs=9")
    assert code == 2 and "fixed when" in err
    code, _, err = unlearn(capsys, "configure", str(run.path), "certificate.kind=certified")
    assert code == 2 and "only become none" in err
    assert verify_run(again).damage == []


def test_an_interrupted_change_is_completed_by_repeating_it(run: RunDirectory) -> None:
    delete(run, ["3"])
    before = (run.path / "config.yaml").read_bytes()
    words = ["certificate.budget.epsilon=2", "certificate.budget.delta=0.0001"]
    configure(run, words)
    # The ledger knows of the change, and the file was never written.
    (run.path / "config.yaml").write_bytes(before)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        delete(run.path, ["4"])
    configure(RunDirectory.open(run.path), words)
    with pytest.raises(Exception, match="budget"):
        delete(run.path, ["4"])


def test_a_replay_on_other_data_is_refused(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(30, 4)), generator.integers(0, 2, 30)
    np.savez(tmp_path / "mine.npz", x=x.astype(np.float32), y=y)
    values = {**PLAIN, "data": {"source": "arrays", "path": str(tmp_path / "mine.npz")}}
    run = train(RunConfig.from_values(values), tmp_path / "run")
    assert next(replay_steps(run)).step == 0
    x[7, 2] += 1e-3
    np.savez(tmp_path / "mine.npz", x=x.astype(np.float32), y=y)
    with pytest.raises(DataError, match="not those that"):
        run.problem()


def test_a_broken_chain_stops_a_deletion(run: RunDirectory) -> None:
    import sqlite3

    delete(run, ["3"])
    db = sqlite3.connect(run.ledger_path)
    with db:
        db.execute("UPDATE requests SET set_digest = 'x'")
    db.close()
    before = files(run.path)
    with pytest.raises(LedgerError, match="set_digest of request 1 was changed"):
        delete(run, ["4"])
    assert files(run.path).keys() == before.keys()
    found = verify_run(run).damage
    assert [item["where"] for item in found] == ["ledger.sqlite"]


@pytest.mark.parametrize("name", ["state", "exports"])
def test_a_link_is_refused_before_anything_is_deleted(
    run: RunDirectory, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "scratch"
    outside.mkdir()
    (outside / "mine").write_text("keep")
    shutil.rmtree(run.path / name, ignore_errors=True)
    (run.path / name).symlink_to(outside)
    with pytest.raises(DamagedRunError, match=f"{name} is a link to .*scratch"):
        delete(run, ["3"])
    assert not (run.path / "releases" / "1").exists()
    assert (outside / "mine").read_text() == "keep"
    (run.path / name).unlink()
    assert delete(run, ["3"]).release == 1


def test_partial_files_behind_a_link_are_not_ours(run: RunDirectory, tmp_path: Path) -> None:
    outside = tmp_path / "data"
    outside.mkdir()
    (outside / "download.partial").write_text("keep")
    (run.path / "data").symlink_to(outside)
    (run.path / "mine.partial").write_text("remove")
    delete(run, ["3"])
    assert (outside / "download.partial").read_text() == "keep"
    assert not (run.path / "mine.partial").exists()


def test_a_backup_removes_nothing_that_is_there(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delete(run, ["3"])
    (tmp_path / "kept.partial").mkdir()
    (tmp_path / "kept.partial" / "mine").write_text("keep")
    code, _, _ = unlearn(capsys, "backup", str(run.path), "--to", str(tmp_path / "kept"))
    assert code == 0
    assert (tmp_path / "kept.partial" / "mine").read_text() == "keep"


def test_exports_are_erased_inside_the_run_and_named_outside(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside, outside = run.path / "row.npy", tmp_path / "row.npy"
    export_row(run, "3", inside)
    export_row(run, "3", outside)
    export_row(run, "4", run.path / "other.npy")
    code, out, err = unlearn(capsys, "delete", str(run.path), "--ids", "3", "--json")
    assert code == 0
    assert json.loads(out)["copies"] == [str(outside)]
    assert str(outside) in err
    assert not inside.exists() and outside.exists() and (run.path / "other.npy").exists()
    outside.unlink()
    assert delete(run, ["5"]).copies == ()


def test_a_run_is_its_owners_alone(run: RunDirectory) -> None:
    delete(run, ["3"])
    fresh = train(RunConfig.from_values(PLAIN), run.path.parent / "fresh").path
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    for path in [*fresh.rglob("*"), *(run.path / "releases").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_group_may_be_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import grp

    use_key(monkeypatch, tmp_path)
    group = grp.getgrgid(os.getgid()).gr_name
    config = RunConfig.from_values({**PLAIN, "cluster": {"group": group}})
    run = train(config, tmp_path / "run")
    precompute(run)
    delete(run, ["3"])
    assert stat.S_IMODE(run.path.stat().st_mode) & 0o777 == 0o750
    model = run.path / "releases" / "1" / "model.safetensors"
    assert stat.S_IMODE(model.stat().st_mode) == 0o640
    assert stat.S_IMODE(model.parent.stat().st_mode) & 0o777 == 0o750
    assert stat.S_IMODE((run.path / "internal").stat().st_mode) & 0o077 == 0
    assert verify_run(run).damage == []


def test_a_dry_run_on_a_fresh_run_creates_nothing(run: RunDirectory, tmp_path: Path) -> None:
    before = files(tmp_path)
    receipt = delete(run, DeletionRequest(["3"], dry_run=True))
    assert (receipt.units_deleted, receipt.dry_run) == (1, True)
    with pytest.raises(ValueError, match="not in the training set"):
        delete(run, DeletionRequest(["nobody"], dry_run=True))
    assert files(tmp_path) == before


def test_a_folder_in_place_of_the_seal_is_refused_before_anything_is_done(
    run: RunDirectory,
) -> None:
    delete(run, ["3"])
    (run.path / "ledger.seal").unlink()
    (run.path / "ledger.seal").mkdir()
    with pytest.raises(LedgerError, match=r"ledger\.seal is no file"):
        delete(run, ["4"])
    (run.path / "ledger.seal").rmdir()
    assert delete(run, ["4"]).release == 2


def test_a_folder_in_place_of_the_ledger_is_refused_in_one_line(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    delete(run, ["3"])
    run.ledger_path.unlink()
    run.ledger_path.mkdir()
    folder = str(run.path)
    for command in (["delete", folder, "--ids", "4"], ["status", folder], ["release", folder]):
        code, _, err = unlearn(capsys, *command)
        assert code == 1 and "ledger.sqlite is not a ledger" in err and len(err.splitlines()) == 1
    for command in (["verify", folder], ["verify", "--read-only", folder]):
        code, out, _ = unlearn(capsys, *command)
        assert code == 1 and "ledger.sqlite is no" in out


def test_verify_of_a_copy_writes_nothing(run: RunDirectory) -> None:
    delete(run, ["3"])
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert verify_run(run, read_only=True).damage == []
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    model = run.path / "releases" / "1" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert "releases/1" in verify_run(run, read_only=True).damage[0]["where"]


def test_waiting_requests_become_one_release(run: RunDirectory) -> None:
    for unit in ("3", "4", "5"):
        assert accept(run, DeletionRequest([unit], request_id=f"R{unit}")).release is None
    receipts = release_waiting(run)
    assert [receipt.release for receipt in receipts] == [1, 1, 1]
    assert release_waiting(run) == []
    assert delete(run, DeletionRequest(["4"], request_id="R4")).repeated


def test_no_copy_is_held_where_nothing_was_exported(run: RunDirectory) -> None:
    assert RowCopies(run.path).held_outside({"any"}) == ()
