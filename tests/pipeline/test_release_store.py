"""Deletions from the real store: sums, erasure of every byte, replay after an old copy."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from pipeline.deletion.context import DeletionContext
from pipeline.deletion.releases import Releases, open_releases
from pipeline.deletion.requests import DeletionRequest
from pipeline.deletion.row_copies import RowCopies
from pipeline.deletion.weights import DeletionRule, DeletionState, apply_deletion
from pipeline.errors import AlreadyDeletedError
from storage.errors import UnitErasedError
from storage.layout import StoreSpec
from storage.store import ApproximatorStore
from tests.pipeline.fake_store import make_facts

NAMES = [f"person-{index:03d}@example.org" for index in range(12)]
PATTERN = np.float32(0.001953125)  # 2^-9: exact in every encoding


def make_store(run_dir: Path, size: int, encoding: str) -> ApproximatorStore:
    """Rows of one known value; every other row is its negative, so none is another's."""
    spec = StoreSpec(size, encoding, block=4)  # type: ignore[arg-type]
    store = ApproximatorStore.create(run_dir / "approximators.zarr", NAMES, [1] * 12, spec)
    for block in range(store.num_blocks):
        rows = np.full((4, size), PATTERN, np.float32)
        rows[1::2] *= -1
        store.write_rows(block, rows)
    store.merge()
    return store


def facts_of(store: ApproximatorStore) -> DeletionContext:
    """As the command line builds them: erased units are no longer named."""
    return make_facts(
        12,
        store.spec.num_parameters,
        samples_per_unit=store.samples_per_unit(),
        rule=DeletionRule("remaining", "left-out", 12, 4),
    )


def opened(run_dir: Path) -> Releases:
    store = ApproximatorStore.open(run_dir / "approximators.zarr", mode="r+")
    return open_releases(run_dir, facts_of(store), store, also_erase=[RowCopies(run_dir)])


def mentions(run_dir: Path, needle: bytes) -> list[str]:
    """Files outside internal/ that hold the bytes, Parquet files also when decompressed."""
    found = []
    for path in sorted(run_dir.rglob("*")):
        if path.is_file() and "internal" not in path.parts:
            data = path.read_bytes()
            if path.suffix == ".parquet":
                data += repr(pq.read_table(path).to_pydict()).encode()
            if needle in data:
                found.append(str(path.relative_to(run_dir)))
    return found


@pytest.mark.parametrize(
    ("size", "encoding"),
    [(60, "float32"), (60, "float16"), (400_000, "float32"), (1_200_000, "int8")],
    ids=["shared-float32", "shared-float16", "own-object-float32", "own-object-int8"],
)
def test_a_deletion_from_the_store(run_dir: Path, size: int, encoding: str) -> None:
    store = make_store(run_dir, size, encoding)
    facts = facts_of(store)
    total_P = store.sum_rows([NAMES[index] for index in (3, 4, 8)], [11, 11, 11])
    assert np.allclose(total_P, 11 * PATTERN * (-1 + 1 + 1), rtol=1e-2)
    assert mentions(run_dir, NAMES[3].encode())
    with opened(run_dir) as releases:
        releases.delete(DeletionRequest([NAMES[3]]))
    with opened(run_dir) as releases:
        releases.delete(DeletionRequest([NAMES[4], NAMES[8]]))
        with pytest.raises(AlreadyDeletedError):
            releases.delete(DeletionRequest([NAMES[3]]))
        assert releases.verify() == []
    expected = apply_deletion(facts.rule, facts.trained_P, DeletionState(total_P, 3))
    model = load_file(run_dir / "releases" / "2" / "model.safetensors")
    assert np.array_equal(np.concatenate([model["weight"].ravel(), model["bias"]]), expected)
    for index in (3, 4, 8):
        assert mentions(run_dir, NAMES[index].encode()) == []
    store = ApproximatorStore.open(run_dir / "approximators.zarr")
    kept = [name for name in store.units if name]
    assert kept == [name for index, name in enumerate(NAMES) if index not in (3, 4, 8)]
    assert np.allclose(np.abs(store.read_rows(kept)), PATTERN, rtol=1e-2)


def test_a_row_of_its_own_leaves_no_byte(run_dir: Path) -> None:
    make_store(run_dir, 400_000, "float32")
    with opened(run_dir) as releases:
        releases.delete(DeletionRequest([NAMES[2 * index] for index in range(6)]))
    # The even rows are all deleted: their value stands nowhere in the run any more.
    assert mentions(run_dir, np.full(4, PATTERN).tobytes()) == []
    assert mentions(run_dir, np.full(4, -PATTERN).tobytes())


def test_an_old_copy_of_the_store_is_erased_again_when_opened(run_dir: Path) -> None:
    make_store(run_dir, 60, "float32")
    copies = [path for path in run_dir.iterdir() if path.name.startswith("approximators")]
    for path in copies:
        copy = run_dir.parent / path.name
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copy2(path, copy)
    with opened(run_dir) as releases:
        releases.delete(DeletionRequest([NAMES[3]]))
    for path in copies:
        if path.is_dir():
            shutil.rmtree(path)
            shutil.copytree(run_dir.parent / path.name, path)
        else:
            shutil.copy2(run_dir.parent / path.name, path)
    assert mentions(run_dir, NAMES[3].encode())
    with opened(run_dir) as releases:
        assert mentions(run_dir, NAMES[3].encode()) == []
        assert releases.verify() == []
    with pytest.raises((UnitErasedError, KeyError)):
        ApproximatorStore.open(run_dir / "approximators.zarr").read_rows([NAMES[3]])
