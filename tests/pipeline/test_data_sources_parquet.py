"""A user's own Parquet files: pictures and arrays, here and at a URL."""

from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet as pq

from pipeline.config import DataConfig
from pipeline.data import Dataset, load
from pipeline.data.samples import split_positions
from pipeline.errors import DataError

N = 60
LABELS = ["dog", "cat", "ant"] * (N // 3)
USERS = [f"user {i % 7}" for i in range(N)]
IMAGES_NHW = np.random.default_rng(0).integers(0, 256, (N, 6, 5), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def read(path: Path | str, **settings: Any) -> Dataset:
    config = DataConfig.model_validate({"source": "parquet", "path": str(path), **settings})
    return load(config, seed=3)


def order() -> np.ndarray:
    """Return the rows in the order training, then test, as the seed splits them."""
    return np.concatenate(split_positions(N, DataConfig(), 3))


def all_inputs(data: Dataset) -> np.ndarray:
    return torch.cat([data.inputs, data.test_inputs]).numpy()


@pytest.mark.parametrize("wrapped", [False, True])
def test_pictures_are_decoded_and_split(tmp_path: Path, wrapped: bool) -> None:
    pictures: list[Any] = [png(image) for image in IMAGES_NHW]
    if wrapped:
        pictures = [{"bytes": picture, "path": "../elsewhere.png"} for picture in pictures]
    table = pa.table({"image": pictures, "label": LABELS, "user": USERS})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    data = read(tmp_path / "a.parquet", unit="user")
    np.testing.assert_allclose(all_inputs(data), IMAGES_NHW[order(), None] / 255, atol=1e-6)
    classes = [["ant", "cat", "dog"].index(LABELS[i]) for i in order()]
    assert torch.cat([data.targets, data.test_targets]).tolist() == classes
    assert [data.units[u] for u in data.unit_of_sample] == [USERS[i] for i in order()[:48]]


def fixed_shape(values: np.ndarray) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values.astype(np.float32))


ARRAYS: dict[str, tuple[pa.Array, tuple[int, ...]]] = {
    "list": (pa.array([image.ravel().tolist() for image in IMAGES_NHW]), (30,)),
    "fixed-size list": (
        pa.FixedSizeListArray.from_arrays(pa.array(IMAGES_NHW.ravel(), pa.float32()), 30),
        (30,),
    ),
    "list of lists": (pa.array(IMAGES_NHW.tolist()), (1, 6, 5)),
    "three levels": (pa.array(IMAGES_NHW.reshape(N, 2, 3, 5).tolist()), (2, 3, 5)),
    "tensors": (fixed_shape(IMAGES_NHW.reshape(N, 3, 2, 5)), (3, 2, 5)),
}


@pytest.mark.parametrize("kind", sorted(ARRAYS))
def test_arrays_keep_their_values_and_shape(tmp_path: Path, kind: str) -> None:
    column, shape = ARRAYS[kind]
    numbers = [i % 3 for i in range(N)]
    for part, rows in enumerate((slice(0, 25), slice(25, N))):
        table = pa.table({"x": column[rows], "y": numbers[rows]})
        pq.write_table(table, tmp_path / f"part-{part}.parquet", row_group_size=10)
    data = read(tmp_path)
    expected = IMAGES_NHW.reshape(N, *shape)[order()]
    np.testing.assert_array_equal(all_inputs(data), expected)
    assert data.targets.tolist() == [numbers[i] for i in order()[:48]]
    fewer = read(tmp_path, num_train=20)
    assert torch.equal(fewer.inputs, data.inputs[:20])
    assert torch.equal(fewer.test_inputs, data.test_inputs)


def test_columns_can_be_named_and_lie_at_a_url(tmp_path: Path) -> None:
    table = pa.table({"pixels": ARRAYS["list"][0], "kind": LABELS, "owner": USERS})
    columns = {"input_column": "pixels", "label_column": "kind", "user_column": "owner"}
    with fsspec.open("memory://bucket/a.parquet", "wb") as file:
        pq.write_table(table, file)
    data = read("memory://bucket/a.parquet", unit="user", **columns)
    np.testing.assert_array_equal(all_inputs(data), IMAGES_NHW.reshape(N, 30)[order()])
    assert data.units == tuple(f"user {i}" for i in range(7))


ROW = [0.0, 1.0]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"x": [ROW] * 6}, {}, "no column label or y .found: x.; set data.label_column"),
        ({"x": [ROW] * 6, "label": [0, 1] * 3}, {"unit": "user"}, "no column user"),
        (
            {"x": [ROW] * 6, "label": [0, 1] * 3, "owner": list("abcabc")},
            {"unit": "user", "user_column": "ovner"},
            "data.user_column 'ovner' is unknown; did you mean 'owner'",
        ),
        ({"x": [ROW] * 6, "label": [0, None] * 3}, {}, r"no class in 3 rows .the first is row 1"),
        ({"x": [ROW] * 6, "label": [0.5, 1.0] * 3}, {}, "'label' is double; expected text"),
        ({"x": [ROW] * 6, "label": [0, -1] * 3}, {}, "whole numbers from 0"),
        ({"x": [ROW] * 6, "label": [0, 10**12] * 3}, {}, "only 6 rows"),
        ({"x": [ROW, [1.0]] * 3, "label": [0, 1] * 3}, {}, "lists of different lengths"),
        ({"x": [ROW, None] * 3, "label": [0, 1] * 3}, {}, "lists of different lengths, or nulls"),
        ({"x": [[None, 1.0]] * 6, "label": [0, 1] * 3}, {}, "with nulls"),
        ({"x": [1.0] * 6, "label": [0, 1] * 3}, {}, "'x' is double; expected the bytes"),
        ({"x": [[float("nan")]] * 6, "label": [0, 1] * 3}, {}, "NaN or infinite"),
        ({"image": [b"GIF89a"] * 6, "label": [0, 1] * 3}, {}, "row . of 'image' .6 bytes. is no"),
        (
            {"image": [None] * 5 + [b"x"], "label": [0, 1] * 3},
            {},
            "row . of 'image' holds no picture",
        ),
        ({"image": [None] * 6, "label": [0, 1] * 3}, {}, "expected the bytes of pictures"),
        ({"x": [ROW] * 6, "label": list("aaaaab")}, {}, "none of class b"),
        (
            {
                "x": [ROW] * 6,
                "label": [0, 1] * 3,
                "user": ["a", None, "b", "", "c", "d"],
            },
            {"unit": "user"},
            "names no owner for 2 samples",
        ),
    ],
)
def test_what_cannot_be_used_is_explained(
    tmp_path: Path, columns: dict[str, list[Any]], settings: dict[str, Any], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.parquet", **settings)


def test_pictures_of_mixed_sizes_are_refused(tmp_path: Path) -> None:
    pictures = [png(IMAGES_NHW[0]), png(IMAGES_NHW[0, :4])] * 10
    pq.write_table(pa.table({"image": pictures, "label": [0, 1] * 10}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="pictures of one data set must have one size"):
        read(tmp_path / "a.parquet")


def test_pictures_of_16_bits_are_refused(tmp_path: Path) -> None:
    pictures = [png(IMAGES_NHW[0].astype(np.uint16))] * 20
    pq.write_table(pa.table({"image": pictures, "label": [0, 1] * 10}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row . of 'image' is of mode I;16, expected 8 bits"):
        read(tmp_path / "a.parquet")


def test_half_downloaded_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": ARRAYS["list"][0], "label": LABELS}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cannot be read as Parquet.*half downloaded"):
        read(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.parquet", "does not exist"),
        ("nosuch://bucket/a.parquet", "is no path that Parquet is read from; expected"),
    ],
)
def test_places_without_files_are_explained(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(path if "://" in path else tmp_path / path)
    with pytest.raises(DataError, match=r"holds no \.parquet file \(found: nothing\)"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"needs data\.path"):
        load(DataConfig(source="parquet"), seed=0)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("x", pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int64()))),
        ("label", pa.array([2**64 - 1] * N, pa.uint64())),
        ("user", pa.array([1] * N, pa.timestamp("ns"))),
    ],
    ids=["a map", "a class past 64 bits", "a time of day"],
)
def test_columns_of_strange_types_are_refused_by_name(
    tmp_path: Path, column: str, values: pa.Array
) -> None:
    columns = {"x": pa.array([[1.0, 2.0]] * N), "label": pa.array([0, 1] * (N // 2))}
    pq.write_table(pa.table({**columns, "user": USERS, column: values}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"column '{column}'"):
        read(tmp_path / "a.parquet", unit="user")


def test_one_damaged_file_of_a_folder_is_refused(tmp_path: Path) -> None:
    table = pa.table({"x": [[1.0, 2.0]] * N, "label": [0, 1] * (N // 2)})
    for name in ("a", "b"):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    content = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[:-20])
    with pytest.raises(DataError, match=r"b\.parquet|cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("owners", "reason"),
    [
        ([b"alice"] * N, "by bytes b'alice'"),
        ([["alice"]] * N, "by list"),
        (["a\nb"] * N, "control character"),
        (["x" * 2000] * N, "2000 bytes"),
    ],
)
def test_owners_that_no_request_could_name_are_refused_before_training(
    tmp_path: Path, owners: list[Any], reason: str
) -> None:
    columns = {"x": [[1.0, 2.0]] * N, "label": [0, 1] * (N // 2), "user": owners}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"column 'user'.*{reason}"):
        read(tmp_path / "a.parquet", unit="user")
