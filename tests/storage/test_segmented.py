"""Version 2: what holds of stores in general holds of manifests in segments, and what is theirs alone.

The tests of other files that are imported here run once more, with segments of three rows.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from storage import ApproximatorStore, StoreSpec, opening, verify_store
from storage.errors import LayoutError, RowCorruptError, UnknownUnitError
from storage.name_index import bucket_of, hashes_of, make_buckets
from storage.opening import locate, open_hierarchy
from storage.segmented_rows import SegmentedRows
from storage.upgrade import upgrade_store
from tests.storage.fragile_backend import FragileBackend, PowerCutError
from tests.storage.store_cases import filled_store, gaussian_rows, pseudonym, write_all
from tests.storage.test_corruption import (  # noqa: F401 (pytest collects them here too)  # noqa: F401
    small_store,
    store,
    test_a_sum_fails_whole_and_names_the_unit,
    test_bytes_of_no_listed_row_are_found,
    test_damaged_objects_are_refused,
    test_rows_of_an_old_generation_are_refused,
)
from tests.storage.test_crashes import (  # noqa: F401
    test_200_sigkills_during_writes_lose_no_finished_row,
    test_a_killed_erasure_is_finished_at_the_next_opening,
    test_sigkills_during_writes_lose_no_finished_row,
    test_two_processes_write_different_blocks_at_the_same_time,
)
from tests.storage.test_generations import (  # noqa: F401
    test_a_damaged_part_is_written_again,
    test_damaged_objects_are_healed_by_writing_the_same_rows,
    test_erased_units_stay_erased_in_a_new_generation,
    test_erasing_while_a_new_generation_is_written_erases_from_both,
    test_no_file_holds_an_erased_row,
    test_no_row_is_missed_while_another_process_merges,
    test_rows_of_zeros_outlive_their_erased_neighbour,
    test_the_old_generation_is_whole_until_the_new_one_is_complete,
)
from tests.storage.test_power_cuts import (  # noqa: F401
    change,
    test_a_power_cut_after_every_third_file_operation_breaks_nothing,
    test_a_power_cut_between_any_two_file_operations_breaks_nothing,
)
from tests.storage.test_state_machine import (  # noqa: F401
    test_any_sequence_of_operations_and_crashes_keeps_the_promises,
    test_many_sequences_of_operations_and_crashes_keep_the_promises,
)
from tests.storage.test_url_backend import (  # noqa: F401
    test_a_dead_writers_block_is_waited_for_and_written,
    test_the_whole_life_of_a_store_on_s3,
)

SPEC = StoreSpec(40, "float32", block=2)
ROWS = gaussian_rows(11, 40)


pytestmark = pytest.mark.usefixtures("segments_of_three_rows")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    filled_store(tmp_path / "a.zarr", ROWS, SPEC)
    return tmp_path


def lists(folder: Path) -> dict[str, bytes]:
    """The manifest's files but for its index."""
    found = (folder / "a.manifest").glob("*-*")
    return {path.name: path.read_bytes() for path in found}


def test_a_store_of_version_2_answers_as_one_of_version_1(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.layout.WHOLE_MANIFEST_UNITS", 100)
    whole = filled_store(tmp_path_factory.mktemp("whole") / "a.zarr", ROWS, SPEC)
    segmented = ApproximatorStore.open(folder / "a.zarr", "r+")
    for erased in (["unit 4"], ["unit 0", "unit 10"], ["unit 4", "unit 3", "unit 5"]):
        for each in (whole, segmented):
            each.erase(erased, pseudonym)
        for one, other in ((segmented, whole), (ApproximatorStore.open(folder / "a.zarr"), whole)):
            assert (one.units, one.states) == (other.units, other.states)
            assert dict(one.samples_per_unit()) == dict(other.samples_per_unit())
            assert one.finished_blocks() == other.finished_blocks()
            assert one.num_erased == other.num_erased
            facts, expected = one.facts(), other.facts()
            assert facts == expected
            live = [name for name in other.units if name]
            assert np.array_equal(one.sum_rows(live), other.sum_rows(live))
            for name in (*erased, "unit 99"):
                with pytest.raises(UnknownUnitError):
                    one.read_rows([name])
            assert [one.state(pseudonym(name)) for name in erased] == ["erased"] * len(erased)
    assert segmented.verify() == whole.verify() == []
    assert not (folder / "a.parquet").exists()


def test_an_erasure_changes_the_files_of_its_own_row_alone(folder: Path) -> None:
    before = lists(folder)
    ApproximatorStore.open(folder / "a.zarr", "r+").erase(["unit 7"], pseudonym)
    after = lists(folder)
    assert sum(name.startswith("rows-") for name in after) == 4
    gone = sorted(name.rsplit("-", 1)[0] for name in before.keys() - after.keys())
    bucket = bucket_of("unit 7", 4)
    assert gone == ["erased", f"names-{bucket}", "rows-2"]
    assert list((folder / "a.parts").iterdir()) == []


def test_every_bit_of_the_manifest_is_guarded(folder: Path) -> None:
    rng = np.random.default_rng(0)
    segmented = ApproximatorStore.open(folder / "a.zarr", "r+")
    segmented.erase(["unit 2"], pseudonym)
    for path in sorted((folder / "a.manifest").iterdir()):
        good = path.read_bytes()
        for _ in range(4):
            data = bytearray(good)
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            for bad in (bytes(data), good[: int(rng.integers(len(good)))], None):
                path.unlink() if bad is None else path.write_bytes(bad)
                assert verify_store(folder / "a.zarr"), path.name
                with pytest.raises((RowCorruptError, LayoutError)):
                    copy = ApproximatorStore.open(folder / "a.zarr")
                    copy.sum_rows([name for name in copy.units if name])
                    copy.state(pseudonym("unit 2"))
                path.write_bytes(good)
    assert verify_store(folder / "a.zarr") == []


def test_files_of_an_older_manifest_are_not_taken_for_the_present_ones(folder: Path) -> None:
    shutil.copytree(folder / "a.manifest", folder / "old")
    segmented = ApproximatorStore.open(folder / "a.zarr", "r+")
    segmented.erase(["unit 7"], pseudonym)
    for path in (folder / "old").glob("*-*"):
        if not (folder / "a.manifest" / path.name).exists():
            shutil.copy(path, folder / "a.manifest")
    # A part of an old backup is named as such, counts for nothing, and is swept.
    assert len(segmented.verify()) == 3
    with pytest.raises(UnknownUnitError):
        segmented.read_rows(["unit 7"])
    (folder / "a.parts/block-0.writing").write_bytes(b"a crash")
    assert ApproximatorStore.open(folder / "a.zarr", "r+").verify() == []
    shutil.copy(folder / "old/index.json", folder / "a.manifest/index.json")
    assert verify_store(folder / "a.zarr")
    with pytest.raises(RowCorruptError, match="missing"):
        ApproximatorStore.open(folder / "a.zarr").read_rows(["unit 7"])


def test_a_reader_with_an_older_index_goes_on(folder: Path) -> None:
    _, catalog = open_hierarchy(*locate(folder / "a.zarr"))
    manifest = catalog.load()
    segmented = ApproximatorStore.open(folder / "a.zarr", "r+")
    segmented.erase(["unit 7"], pseudonym)
    assert manifest.find("unit 6").row == 6
    with pytest.raises(UnknownUnitError):
        manifest.find("unit 7")
    assert isinstance(manifest.entries, SegmentedRows)


def test_only_what_was_not_settled_is_swept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from storage import erasure

    def refuse(*_: object) -> None:
        raise AssertionError("nothing was left to sweep")

    with monkeypatch.context() as patch:
        patch.setattr(erasure, "listed_rows", refuse)
        segmented = ApproximatorStore.open(folder / "a.zarr", "r+")
        segmented.erase(["unit 1"], pseudonym)
    orphan = folder / "a.zarr/generation-0/float32/codes/c.5.0.partial"
    orphan.write_bytes(b"cut off")
    (folder / "a.parts/block-5.writing").write_bytes(b"")
    assert ApproximatorStore.open(folder / "a.zarr", "r+").verify() == []
    assert not orphan.exists() and list((folder / "a.parts").iterdir()) == []


def test_a_sealed_index_that_is_nonsense_is_refused(folder: Path) -> None:
    from storage.manifest import UNSEALED, seal

    path = folder / "a.manifest/index.json"
    good = json.loads(path.read_bytes()) | {"seal": UNSEALED}
    changes: list[dict[str, object]] = [
        {"segments": []},
        {"segments": [[1, 2, 3, 4]]},
        {"segments": 3},
        {"names": ["xy"]},
        {"erased": [good["names"][0]]},
        {"generation": "0"},
        {"building": -1},
        {"segment_units": 0},
        {"format_version": 3},
        {"store_id": "another"},
    ]
    for edit in changes:
        path.write_bytes(seal(json.dumps(good | edit, sort_keys=True).encode()))
        with pytest.raises((LayoutError, RowCorruptError)):
            ApproximatorStore.open(folder / "a.zarr").sum_rows_at(range(11))


def test_buckets_hold_each_name_once_and_where_it_is_looked_up() -> None:
    names = [f"unit {i}" for i in range(1000)]
    for count in (1, 2, 7, 1000):
        buckets = make_buckets(hashes_of(names), range(1000), count)
        assert len(buckets) == count
        assert sorted(row for bucket in buckets for row in bucket.rows.tolist()) == list(
            range(1000)
        )
        for row, name in enumerate(names):
            assert row in buckets[bucket_of(name, count)].rows_of(name)


def test_names_that_share_a_hash_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.name_index.name_hash", lambda name: 7)
    segmented = filled_store(tmp_path / "a.zarr", ROWS, SPEC)
    segmented.erase(["unit 3"], pseudonym)
    assert np.array_equal(segmented.read_rows(["unit 4", "unit 0"]), ROWS[[4, 0]])
    with pytest.raises(UnknownUnitError):
        segmented.read_rows(["unit 3"])
    assert segmented.verify() == []


def test_a_store_of_rows_rewritten_after_erasures_keeps_its_names(folder: Path) -> None:
    segmented = ApproximatorStore.open(folder / "a.zarr", "r+")
    segmented.erase(["unit 9", "unit 10"], pseudonym)
    segmented.begin_generation()
    segmented.erase(["unit 0"], pseudonym)
    write_all(segmented, 2 * ROWS)
    assert (segmented.generation, segmented.num_erased) == (1, 3)
    assert np.array_equal(segmented.read_rows(["unit 1"]), 2 * ROWS[1:2])
    assert segmented.verify() == []


@pytest.fixture
def old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of version 1 of which a unit was erased, that would be created in version 2 today."""
    shutil.rmtree(folder)
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("storage.layout.WHOLE_MANIFEST_UNITS", 100)
        filled_store(folder / "a.zarr", ROWS, SPEC).erase(["unit 8"], pseudonym)
    return folder


def test_an_upgraded_store_answers_as_before(old: Path) -> None:
    before = ApproximatorStore.open(old / "a.zarr")
    counts = dict(before.samples_per_unit())
    expected = (before.units, before.states, counts, before.facts())
    rows = before.read_rows(["unit 1", "unit 10"])
    assert upgrade_store(old / "a.zarr") == (1, 2)
    assert upgrade_store(old / "a.zarr") == (2, 2)
    after = ApproximatorStore.open(old / "a.zarr", "r+")
    assert (after.units, after.states, dict(after.samples_per_unit()), after.facts()) == expected
    assert np.array_equal(after.read_rows(["unit 1", "unit 10"]), rows)
    assert after.state(pseudonym("unit 8")) == "erased"
    assert after.verify() == [] and not (old / "a.parquet").exists()


def test_a_store_whose_rows_are_being_replaced_is_not_upgraded(old: Path) -> None:
    ApproximatorStore.open(old / "a.zarr", "r+").begin_generation()
    with pytest.raises(LayoutError, match="finish the repair"):
        upgrade_store(old / "a.zarr")


def test_an_upgrade_cut_short_anywhere_is_whole_in_one_version(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "LocalBackend", FragileBackend)
    monkeypatch.setattr(FragileBackend, "unsynced", {})
    fuse, found, died = 0, set(), True
    while died:
        copy = old.with_name("copy")
        shutil.copytree(old, copy)
        FragileBackend.unsynced.clear()
        FragileBackend.fuse, FragileBackend.undone = fuse, fuse % 4
        died = False
        try:
            upgrade_store(copy / "a.zarr")
        except PowerCutError:
            died = True
        finally:
            FragileBackend.fuse = None
        found_there = ApproximatorStore.open(copy / "a.zarr", "r+")
        found.add((copy / "a.parquet").exists())
        assert (copy / "a.parquet").exists() != (copy / "a.manifest/index.json").exists()
        assert found_there.verify() == []
        found_there.erase(["unit 5"], pseudonym)
        assert not any(b"unit 5" in p.read_bytes() for p in copy.rglob("*") if p.is_file())
        upgrade_store(copy / "a.zarr")
        assert np.array_equal(
            ApproximatorStore.open(copy / "a.zarr").read_rows(["unit 6"]), ROWS[6:7]
        )
        shutil.rmtree(copy)
        fuse += 1
    assert found == {True, False} and fuse > 20
