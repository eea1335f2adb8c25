"""Who may read a store's files, and what symbolic links may not do to it."""

import os
from pathlib import Path

import pytest

from storage import ApproximatorStore
from storage.errors import LayoutError
from storage.local_backend import LocalBackend
from tests.storage.store_cases import ROWS, SPEC, filled_store, pseudonym


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = filled_store(tmp_path / "new/run/a.zarr", ROWS, SPEC)
        store.erase(["unit 1"], pseudonym)
        store.begin_generation()
        store.write_rows(0, ROWS[:2])
    finally:
        os.umask(before)
    for path in (tmp_path / "new").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_a_store_that_others_may_read_is_read_and_written_as_before(folder: Path) -> None:
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    store = ApproximatorStore.open(folder / "a.zarr", "r+")
    store.erase(["unit 1"], pseudonym)
    assert (folder / "a.parquet").stat().st_mode & 0o777 == 0o600
    assert store.verify() == []


LINKS = ["a.zarr", "a.parts", "a.zarr/generation-0", "a.zarr/generation-0/int8/codes"]


@pytest.mark.parametrize("name", LINKS)
def test_nothing_behind_a_link_is_removed(folder: Path, name: str) -> None:
    outside = folder.with_name("outside")
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    partials = ["x.partial", "generation-0-block-0.parquet.partial", "c.0.0.partial", "c.7.0"]
    for partial in partials:
        (outside / partial).write_bytes(b"not ours")
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    with pytest.raises(LayoutError, match="symbolic link"):
        ApproximatorStore.open(folder / "a.zarr", "r+")
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == before


def test_a_folder_is_removed_and_what_its_links_lead_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "outside/sub").mkdir(parents=True)
    (tmp_path / "outside/sub/x.partial").write_bytes(b"not ours")
    (tmp_path / "run/a/b").mkdir(parents=True)
    (tmp_path / "run/a/b/folder").symlink_to(tmp_path / "outside")
    (tmp_path / "run/a/file.partial").symlink_to(tmp_path / "outside/sub/x.partial")
    (tmp_path / "run/link").symlink_to(tmp_path / "outside")
    backend = LocalBackend(tmp_path / "run")
    backend.delete_folder("a")
    assert not (tmp_path / "run/a").exists()
    for change in (
        lambda: backend.delete_folder("link"),
        lambda: backend.delete_folder("link/sub"),
        lambda: backend.delete("link/sub/x.partial"),
        lambda: backend.put("link/sub/x", b"row"),
        lambda: backend.lock("link/sub/x.lock", wait=False).__enter__(),
    ):
        with pytest.raises(LayoutError, match="symbolic link"):
            change()
    backend.delete("link")
    assert not (tmp_path / "run/link").is_symlink()
    assert [path.name for path in (tmp_path / "outside").rglob("*")] == ["sub", "x.partial"]
