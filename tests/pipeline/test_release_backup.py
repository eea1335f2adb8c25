from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.deletion.backup import restore_ledger
from pipeline.deletion.releases import open_releases
from pipeline.deletion.requests import DeletionRequest
from pipeline.errors import AlreadyDeletedError, DamagedRunError, RequestError
from storage.errors import LedgerError
from storage.pseudonym import load_key
from tests.pipeline.fake_store import FakeStore, make_facts, make_rows

FACTS = make_facts()


def delete(run_dir: Path, store: FakeStore, *units: str, backup: Path | None = None) -> None:
    with open_releases(run_dir, FACTS, store) as releases:
        releases.delete(DeletionRequest(units))
        if backup is not None:
            releases.backup(backup)


def lose(run_dir: Path) -> None:
    for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
        (run_dir / name).unlink(missing_ok=True)
    for path in (run_dir / "internal").iterdir():
        path.unlink()


def test_a_lost_ledger_comes_back_whole(run_dir: Path, tmp_path: Path) -> None:
    store = FakeStore(make_rows(20))
    delete(run_dir, store, "3", "4", backup=tmp_path / "backup")
    lose(run_dir)
    assert restore_ledger(run_dir, tmp_path / "backup", FACTS, store) == 0
    with open_releases(run_dir, FACTS, store) as releases:
        assert releases.verify() == []
        with pytest.raises(AlreadyDeletedError):
            releases.delete(DeletionRequest(["3"]))
        releases.delete(DeletionRequest(["5"]))
    sums = load_file(run_dir / "internal" / "weighted-sum-2.safetensors")["weighted_sum"]
    rows = make_rows(20)
    assert np.array_equal(sums, 19 * (rows["3"] + rows["4"] + rows["5"]))


def test_rows_that_came_back_with_an_old_store_are_erased_again(
    run_dir: Path, tmp_path: Path
) -> None:
    delete(run_dir, FakeStore(make_rows(20)), "3", "4", backup=tmp_path / "backup")
    lose(run_dir)
    old = FakeStore(make_rows(20))  # as copied before the deletion
    assert restore_ledger(run_dir, tmp_path / "backup", FACTS, old) == 2
    assert sorted(set(make_rows(20)) - set(old.rows)) == ["3", "4"]
    with open_releases(run_dir, FACTS, old) as releases:
        assert releases.verify() == []


def test_opening_replays_the_suppression_list_too(run_dir: Path) -> None:
    delete(run_dir, FakeStore(make_rows(20)), "3")
    old = FakeStore(make_rows(20))
    with open_releases(run_dir, FACTS, old) as releases:
        assert "3" not in old.rows
        assert releases.verify() == []


def test_verify_names_a_row_that_came_back(run_dir: Path) -> None:
    store = FakeStore(make_rows(20))
    with open_releases(run_dir, FACTS, store) as releases:
        releases.delete(DeletionRequest(["3"]))
        store.rows["3"] = make_rows(20)["3"]
        assert [str(d) for d in releases.verify()] == [
            "store: the row of unit '3' is there again after its deletion"
        ]


def test_an_older_backup_does_not_replace_a_newer_ledger(run_dir: Path, tmp_path: Path) -> None:
    store = FakeStore(make_rows(20))
    delete(run_dir, store, "3", backup=tmp_path / "backup")
    delete(run_dir, store, "4")
    before = (run_dir / "ledger.sqlite").read_bytes()
    with pytest.raises(LedgerError, match="would forget deletions"):
        restore_ledger(run_dir, tmp_path / "backup", FACTS, store)
    assert (run_dir / "ledger.sqlite").read_bytes() == before


def test_a_backup_older_than_the_store_is_refused(run_dir: Path, tmp_path: Path) -> None:
    store = FakeStore(make_rows(20))
    delete(run_dir, store, "3", backup=tmp_path / "backup")
    delete(run_dir, store, "4", "5")
    lose(run_dir)
    with pytest.raises(DamagedRunError, match="erased 2 units that the ledger does not know"):
        restore_ledger(run_dir, tmp_path / "backup", FACTS, store)


def test_a_refused_backup_leaves_nothing_behind(run_dir: Path, tmp_path: Path) -> None:
    store = FakeStore(make_rows(20))
    delete(run_dir, store, "3", backup=tmp_path / "backup")
    delete(run_dir, store, "4")
    with pytest.raises(LedgerError, match="newer backup"):
        restore_ledger(run_dir, tmp_path / "backup", FACTS, store)
    # An older sum beside the present one would give away the row in between.
    assert [path.name for path in (run_dir / "internal").iterdir()] == [
        "weighted-sum-2.safetensors"
    ]


def test_a_lost_ledger_is_not_begun_anew_over_erased_rows(run_dir: Path) -> None:
    store = FakeStore(make_rows(20))
    delete(run_dir, store, "3")
    lose(run_dir)
    kept = run_dir / "internal" / "weighted-sum-1.safetensors"
    kept.write_bytes(b"the sum")
    with pytest.raises(DamagedRunError, match="restore a backup"):
        open_releases(run_dir, FACTS, store)
    # Nothing was begun, and nothing swept: the right ledger may yet come back.
    assert kept.exists() and not (run_dir / "ledger.sqlite").exists()


def test_a_stale_ledger_sweeps_nothing(run_dir: Path, tmp_path: Path) -> None:
    store = FakeStore(make_rows(20))
    delete(run_dir, store, "3")
    stale = {p.name: p.read_bytes() for p in run_dir.glob("ledger.sqlite*")}
    delete(run_dir, store, "4")
    newer = {p.name: p.read_bytes() for p in run_dir.glob("ledger.sqlite*")}
    for name in newer:
        (run_dir / name).unlink()
    for name, content in stale.items():
        (run_dir / name).write_bytes(content)
    with pytest.raises(DamagedRunError, match="restore a newer backup"):
        open_releases(run_dir, FACTS, store)
    for path in run_dir.glob("ledger.sqlite*"):
        path.unlink()
    for name, content in newer.items():
        (run_dir / name).touch(mode=0o600)
        (run_dir / name).write_bytes(content)
    with open_releases(run_dir, FACTS, store) as releases:
        assert releases.verify() == []


def test_a_release_of_another_ledger_is_not_taken_for_ones_own(run_dir: Path) -> None:
    store = FakeStore(make_rows(20))
    (run_dir / "releases" / "1").mkdir(parents=True)
    with pytest.raises(DamagedRunError, match="not of this ledger"):
        delete(run_dir, store, "3")


def test_a_newer_backup_replaces_an_older_or_damaged_ledger(run_dir: Path, tmp_path: Path) -> None:
    store = FakeStore(make_rows(20))
    delete(run_dir, store, "3", backup=tmp_path / "first")
    delete(run_dir, store, "4", backup=tmp_path / "second")
    lose(run_dir)
    # The whole run comes from an old copy, the ledger from a newer one.
    old = FakeStore(make_rows(20))
    old.erase(["3"], load_key(run_dir).unit)
    restore_ledger(run_dir, tmp_path / "first", FACTS, old)
    assert restore_ledger(run_dir, tmp_path / "second", FACTS, old) == 1
    (run_dir / "ledger.sqlite").write_bytes(b"scribbled over" * 1000)
    assert restore_ledger(run_dir, tmp_path / "second", FACTS, old) == 0
    with open_releases(run_dir, FACTS, old) as releases:
        assert releases.verify() == []


@pytest.mark.parametrize("damage", ["sum", "chain", "empty"])
def test_a_damaged_backup_is_refused_and_the_run_unchanged(
    run_dir: Path, tmp_path: Path, damage: str
) -> None:
    store, backup = FakeStore(make_rows(20)), tmp_path / "backup"
    delete(run_dir, store, "3", backup=backup)
    if damage == "sum":
        path = backup / "weighted-sum-1.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    elif damage == "chain":
        data = (backup / "ledger.sqlite").read_bytes()
        (backup / "ledger.sqlite").write_bytes(data.replace(b'"num_units":1', b'"num_units":2'))
    else:
        (backup / "ledger.sqlite").unlink()
    lose(run_dir)
    with pytest.raises((LedgerError, DamagedRunError, RequestError)):
        restore_ledger(run_dir, backup, FACTS, store)
    assert not (run_dir / "ledger.sqlite").exists()


def test_a_backup_is_confidential_and_overwrites_nothing(run_dir: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    delete(run_dir, FakeStore(make_rows(20)), "3", backup=backup)
    assert backup.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in backup.iterdir()} == {0o600}
    assert sorted(path.name for path in backup.iterdir()) == [
        "ledger.sqlite",
        "weighted-sum-1.safetensors",
    ]
    store = FakeStore(make_rows(20))
    with open_releases(run_dir, FACTS, store) as releases, pytest.raises(RequestError):
        releases.backup(backup)
