"""The format's promise: another program reads a store with Zarr and Parquet alone."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from blake3 import blake3

from storage import StoreSpec
from storage.layout import Layout
from tests.storage.store_cases import Rows, filled_store, gaussian_rows

ENCODINGS = ["float32", "float16", "bfloat16", "int8", "int4"]


def read_with_zarr(root: zarr.Group, line: dict[str, object], num_parameters: int) -> Rows:
    """Decode one row as the specification says, without a line of this package."""
    group = root[f"generation-{line['generation']}/{line['encoding']}"]
    codes = np.asarray(group["codes"][line["row"]])
    if line["encoding"] == "float32":
        return codes
    if line["encoding"] == "bfloat16":
        return (codes.astype(np.uint32) << 16).view(np.float32)
    if line["encoding"] == "int4":
        levels = np.array(group["codes"].attrs["levels"], np.float32)
        nibbles = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)[:num_parameters]
        codes = levels[nibbles]
    scales = (np.asarray(group["scales"][line["row"]]).astype(np.uint32) << 16).view(np.float32)
    per_column = np.repeat(scales, group["codes"].attrs["scale_block"])[:num_parameters]
    return codes.astype(np.float32) * per_column


def digest_by_hand(root: zarr.Group, line: dict[str, object], num_parameters: int) -> bytes:
    """The row's digest as the specification says."""
    group = root[f"generation-{line['generation']}/{line['encoding']}"]
    codes = np.asarray(group["codes"][line["row"]])
    bytes_per_segment = 262_144 * codes.nbytes // num_parameters
    if line["encoding"] == "int4":
        bytes_per_segment = 131_072
    raw, scales, per_segment = codes.tobytes(), np.empty(0, np.uint16), 0
    if "scales" in group:
        scales = np.asarray(group["scales"][line["row"]])
        per_segment = 262_144 // group["codes"].attrs["scale_block"]
    header = b"approximator-row-1\0" + bytes.fromhex(root.attrs["store_id"])
    header += int(line["generation"]).to_bytes(8, "little")  # type: ignore[call-overload]
    header += num_parameters.to_bytes(8, "little")
    header += f"{line['encoding']}\0{line['unit']}\0".encode()
    segments = b""
    for i in range(-(-num_parameters // 262_144)):
        piece = raw[i * bytes_per_segment : (i + 1) * bytes_per_segment]
        segments += blake3(
            piece + scales[i * per_segment : (i + 1) * per_segment].tobytes()
        ).digest()
    return blake3(header + segments).digest()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("num_parameters", [301, 300_001])
def test_a_store_is_read_with_zarr_alone(
    tmp_path: Path, encoding: str, num_parameters: int
) -> None:
    rows_NP = gaussian_rows(5, num_parameters)
    spec = StoreSpec(num_parameters, encoding, block=2)  # type: ignore[arg-type]
    store = filled_store(tmp_path / "a.zarr", rows_NP, spec)
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")
    lines = pq.read_table(tmp_path / "a.parquet").to_pylist()
    ours = store.read_rows_at(range(5))
    for line, row in zip(lines, ours, strict=True):
        assert np.array_equal(read_with_zarr(root, line, num_parameters), row)
        assert digest_by_hand(root, line, num_parameters) == line["digest"]


def test_a_row_above_64_mib_is_split_and_read_with_zarr_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.layout.OBJECT_BYTES", 1 << 20)
    num_parameters = 900_001
    rows_NP = gaussian_rows(2, num_parameters)
    store = filled_store(tmp_path / "a.zarr", rows_NP, StoreSpec(num_parameters, "float32"))
    assert len(list((tmp_path / "a.zarr/generation-0/float32/codes").glob("c.0.*"))) == 4
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")
    assert np.array_equal(root["generation-0/float32/codes"][1], rows_NP[1])
    assert np.array_equal(store.read_rows_at([1, 0]), rows_NP[[1, 0]])
    assert store.verify() == []


@pytest.mark.parametrize("codec", ["zstd", "gzip"])
def test_a_codec_stores_less_and_zarr_undoes_it(tmp_path: Path, codec: str) -> None:
    rows_NP = np.round(gaussian_rows(4, 4_000), 4).astype(np.float32)
    spec = StoreSpec(4_000, "float16", block=4, codec=codec)
    store = filled_store(tmp_path / "a.zarr", rows_NP, spec)
    plain = filled_store(tmp_path / "b.zarr", rows_NP, StoreSpec(4_000, "float16", block=4))
    assert np.array_equal(store.read_rows_at(range(4)), plain.read_rows_at(range(4)))
    assert store.facts().store_bytes < 0.7 * plain.facts().store_bytes
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")
    lines = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert np.array_equal(read_with_zarr(root, lines[2], 4_000), store.read_rows_at([2])[0])
    store.erase(["unit 2"], lambda unit: "gone")
    assert np.array_equal(store.read_rows_at([1]), plain.read_rows_at([1]))
    assert store.verify() == []


def test_small_rows_share_an_object_and_large_ones_do_not() -> None:
    small = Layout(StoreSpec(7_850, "int8", block=256), 1_437, 1_437, "00" * 16)
    large = Layout(StoreSpec(11_181_642, "int8", block=256), 1_437, 1_437, "00" * 16)
    odd = Layout(StoreSpec(100_000, "int8", block=250), 1_437, 1_437, "00" * 16)
    assert (small.rows_per_chunk("int8"), small.rows_per_chunk("float16")) == (256, 1)
    assert large.rows_per_chunk("int8") == 1
    assert odd.rows_per_chunk("int8") == 50  # the largest divisor of 250 below 8 MiB
    assert odd.chunk_bytes("int8", "codes") <= 8 << 20


def test_a_row_above_the_error_cap_is_widened_and_the_index_says_so(tmp_path: Path) -> None:
    rows_NP = gaussian_rows(4, 2_048)
    # Few sizes of values: int8 holds them to about its scale's rounding.
    rows_NP[2] = np.where(rows_NP[2] > 0, 1e-9, -1e-9)
    rows_NP[3, 64:] = 0
    rows_NP[3, :64] = 1e-4
    spec = StoreSpec(2_048, "int8", block=4, row_error_cap=4e-3)
    store = filled_store(tmp_path / "a.zarr", rows_NP, spec)
    lines = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [line["encoding"] for line in lines] == ["float16", "float16", "int8", "int8"]
    found = store.read_rows_at(range(4))
    errors = np.linalg.norm(found - rows_NP.astype(float), axis=1)
    assert (errors <= 4e-3 * np.linalg.norm(rows_NP.astype(float), axis=1)).all()
    assert np.allclose([line["error"] for line in lines], errors, rtol=1e-9)
    assert store.verify() == []
