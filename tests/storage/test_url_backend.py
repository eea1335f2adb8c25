"""Stores behind a URL, against an S3 API on loopback."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import obstore
import pytest
import zarr
from obstore import exceptions
from obstore.store import from_url

from storage import ApproximatorStore, StoreSpec, url_backend
from storage.errors import (
    BackendUnavailableError,
    LayoutError,
    RowCorruptError,
    UnitErasedError,
    WriterConflictError,
)
from storage.url_backend import UrlBackend
from tests.storage.store_cases import filled_store, gaussian_rows, pseudonym, write_all


def bodies(prefix: str) -> dict[str, bytes]:
    """Every object of the bucket."""
    objects = from_url(prefix)
    keys = [item["path"] for page in obstore.list(objects) for item in page]
    return {key: bytes(obstore.get(objects, key).bytes()) for key in keys}


@pytest.mark.parametrize("num_parameters", [301, 300_001])
def test_the_whole_life_of_a_store_on_s3(prefix: str, num_parameters: int) -> None:
    rows_NP = gaussian_rows(5, num_parameters)
    url = f"{prefix}/approximators.zarr"
    filled_store(url, rows_NP, StoreSpec(num_parameters, "int8", block=2))
    store = ApproximatorStore.open(url, "r+")
    assert np.abs(store.read_rows_at(range(5)) - rows_NP).max() < 5e-6
    assert store.verify() == []
    neighbours = store.sum_rows_at([0, 1, 2, 4], [1, 2, 3, 4])
    store.erase(["unit 3"], pseudonym)
    assert np.array_equal(store.sum_rows_at([0, 1, 2, 4], [1, 2, 3, 4]), neighbours)
    with pytest.raises(UnitErasedError):
        store.read_rows_at([3])
    assert not any(b"unit 3" in body for body in bodies(prefix).values())
    store.begin_generation()
    write_all(store, rows_NP * np.float32(2))
    assert store.generation == 1
    assert np.abs(store.read_rows_at([4]) - 2 * rows_NP[4]).max() < 1e-5
    assert store.verify() == []
    assert not any("generation-0" in key for key in bodies(prefix))


def test_rows_on_s3_are_read_with_zarr_alone(prefix: str) -> None:
    rows_NP = gaussian_rows(3, 301)
    filled_store(f"{prefix}/a.zarr", rows_NP, StoreSpec(301, "float32", block=2))
    objects = zarr.storage.ObjectStore(from_url(f"{prefix}/a.zarr"), read_only=True)
    codes = zarr.open_group(objects, mode="r")["generation-0/float32/codes"]
    assert np.array_equal(codes[:], rows_NP)


def test_a_damaged_or_missing_object_on_s3_is_refused(prefix: str) -> None:
    store = filled_store(f"{prefix}/a.zarr", gaussian_rows(4, 301), StoreSpec(301, block=2))
    objects, key = from_url(prefix), "a.zarr/generation-0/float16/codes/c.1.0"
    good = bytes(obstore.get(objects, key).bytes())
    obstore.put(objects, key, bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(RowCorruptError, match="unit 2"):
        store.sum_rows_at(range(4))
    obstore.delete(objects, key)
    with pytest.raises(RowCorruptError, match="missing"):
        store.sum_rows_at(range(4))
    store.write_rows(1, gaussian_rows(4, 301)[2:])
    assert store.verify() == []


def test_two_writers_of_one_block_on_s3_exclude_each_other(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = UrlBackend(prefix), UrlBackend(prefix)
    with first.lock("a.parts/block-0.lock", wait=False):
        with (
            pytest.raises(WriterConflictError, match="another writer"),
            second.lock("a.parts/block-0.lock", wait=False),
        ):
            pytest.fail("both hold the lock")
        # The first writer has died: its lease runs out.
        monkeypatch.setattr(url_backend, "LEASE_SECONDS", -time.time())
        with second.lock("a.parts/block-0.lock", wait=False):
            assert second.read("a.parts/block-0.lock") is not None
    assert bodies(prefix) == {}


@pytest.mark.parametrize("key", ["a.zarr/..%2fx", "a.parts/generation-0-block-0 (1).parquet"])
def test_a_strange_key_on_s3_is_named_and_left_alone(prefix: str, key: str) -> None:
    store = filled_store(f"{prefix}/a.zarr", gaussian_rows(3, 12), StoreSpec(12, block=2))
    obstore.put(from_url(prefix), key, b"not ours")
    ApproximatorStore.open(f"{prefix}/a.zarr", "r+").erase(["unit 0"], pseudonym)
    assert [damage.unit_or_object for damage in store.verify()] == [key]


@pytest.mark.parametrize("key", ["a.zarr/../x", "a.zarr//x", "a.parts/\x1b[2J"])
def test_a_key_that_cannot_be_named_on_s3_is_one_line(prefix: str, key: str) -> None:
    import boto3

    store = filled_store(f"{prefix}/a.zarr", gaussian_rows(3, 12), StoreSpec(12, block=2))
    boto3.client("s3").put_object(Bucket=prefix.split("/")[2], Key=f"run/{key}", Body=b"not ours")
    (damage,) = store.verify()
    assert "no store writes" in damage.reason and damage.reason.isprintable()
    with pytest.raises(LayoutError, match="no store writes"):
        ApproximatorStore.open(f"{prefix}/a.zarr", "r+")


class Flaky:
    """A function of obstore that fails a number of times first."""

    def __init__(self, function: Callable[..., Any], failures: int) -> None:
        self.function, self.failures, self.calls = function, failures, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls <= self.failures:
            raise exceptions.GenericError("503 Slow Down")
        return self.function(*args, **kwargs)


def test_a_place_that_fails_for_a_while_is_asked_again(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(url_backend, "WAIT", url_backend.tenacity.wait_none())
    put = Flaky(obstore.put, 3)
    monkeypatch.setattr(url_backend.obstore, "put", put)
    backend = UrlBackend(prefix)
    backend.put("key", b"value")
    assert (put.calls, backend.read("key")) == (4, b"value")
    monkeypatch.setattr(url_backend.obstore, "put", Flaky(obstore.put, 100))
    with pytest.raises(BackendUnavailableError, match="503"):
        backend.put("key", b"other")
    assert backend.read("key") == b"value"


def test_no_part_of_a_row_is_uploaded_before_the_whole_is_there(prefix: str) -> None:
    # An upload in parts ends in a tag that counts them; a killed one would leave parts unlisted.
    UrlBackend(prefix).put("row", bytes(12 << 20))
    assert "-" not in str(obstore.head(from_url(prefix), "row")["e_tag"]).strip('"')


def test_a_dead_writers_block_is_waited_for_and_written(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_NP = gaussian_rows(4, 301)
    store = ApproximatorStore.create(
        f"{prefix}/a.zarr", [f"unit {row}" for row in range(4)], [1] * 4, StoreSpec(301, block=2)
    )
    monkeypatch.setattr(url_backend, "LEASE_SECONDS", 2.0)
    obstore.put(from_url(prefix), "a.parts/block-0.lock", b"the lease of one who died")
    store.write_rows(0, rows_NP[:2])
    store.write_rows(1, rows_NP[2:])
    store.merge()
    assert store.verify() == []
