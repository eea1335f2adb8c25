"""Files that are damaged, huge or made to harm: each ends in one line that names it."""

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pipeline.data import DataConfig, load
from pipeline.data.mnist import FILES
from pipeline.deletion.request_files import read_request_file
from pipeline.errors import DataError, ModelError, RequestError
from pipeline.models.weights import load_weights
from storage.masking import masked
from tests.pipeline.test_data_sources import write_mnist
from tests.pipeline.test_data_sources_faces import write_celeba
from tests.pipeline.test_data_sources_tables import write_adult, write_hapt, write_obesity

X = np.random.default_rng(0).standard_normal((20, 3))
Y = np.arange(20) % 2


def refused(path: Path, message: str, source: str = "arrays", **config: Any) -> str:
    with pytest.raises(DataError, match=message) as caught:
        load(DataConfig(source=source, path=str(path), **config), 0)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1500
    return text


def idx_header(dimensions: int, size: int = 1) -> bytes:
    return bytes((0, 0, 8, dimensions)) + struct.pack(f">{dimensions}I", *[size] * dimensions)


IDX: dict[str, tuple[Callable[[], bytes], str]] = {
    "65 dimensions": (lambda: idx_header(65) + b"\0", "the number of dimensions, 1 or 3"),
    "no dimension": (lambda: idx_header(0) + b"\0", "the number of dimensions, 1 or 3"),
    "a size of 2**96": (lambda: idx_header(3, 2**32 - 1), "promises 79228162458924105"),
    "cut within the sizes": (lambda: idx_header(3)[:7], "holds less than"),
    "more than promised": (lambda: idx_header(1, 3) + b"\0" * 9, "holds more than the 3 values"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("damage", IDX)
def test_idx_files_that_promise_other_than_they_hold(
    damage: str, packed: bool, tmp_path: Path
) -> None:
    write_mnist(tmp_path, packed)
    content, message = IDX[damage]
    path = tmp_path / (FILES[0] + ".gz" * packed)
    path.write_bytes(gzip.compress(content()) if packed else content())
    assert str(path) in refused(tmp_path, message, "mnist")


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    write_mnist(tmp_path, packed=True)
    with gzip.open(tmp_path / f"{FILES[0]}.gz", "wb") as file:
        file.write(idx_header(1, 100))
        for _ in range(64):
            file.write(bytes(1 << 20))
    refused(tmp_path, "holds more than the 100 values", "mnist")
    with gzip.open(tmp_path / f"{FILES[0]}.gz", "wb") as file:
        file.write(idx_header(3, 2000))
    refused(tmp_path, "promises 8000000000 values", "mnist")


def test_an_npz_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 24, 2)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            member.write(header.getvalue())
            for _ in range(257):
                member.write(bytes(1 << 20))
        archive.writestr("y.npy", b"")
    assert path.stat().st_size < 1 << 21
    refused(path, r"unpacks 'x\.npy' from \d+ to 269484160 bytes")


def npy(header: str) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


HEADERS = {
    "65 dimensions": f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({'1,' * 65})}}",
    "a size past memory": "{'descr': '<f8', 'fortran_order': False, 'shape': (10**18,)}",
    "a huge size": f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**13},)}}",
    "a negative size": "{'descr': '<f8', 'fortran_order': False, 'shape': (-5,)}",
    "nested brackets": "[" * 3000,
    "no dictionary": "7",
    "an unknown type": "{'descr': 'zzz', 'fortran_order': False, 'shape': (3,)}",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}",
    "thousands of digits": f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({'9' * 5000},)}}",
}


@pytest.mark.parametrize("header", HEADERS)
def test_headers_of_arrays_are_not_believed(header: str, tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, y=Y)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.npy", npy(HEADERS[header]) + bytes(64))
    refused(path, r"d\.npz is not a readable \.npz of plain arrays: array 'x': ")


STRANGE: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt name": ({"x_tset": X, "y_test": Y}, "'x_tset' .*did you mean 'x_test'"),
    "another table": (
        {"extra_table": X},
        r"an array 'extra_table' of shape \(20, 3\), which is unknown",
    ),
    "objects": ({"extra": np.array([{}], dtype=object)}, "array 'extra': Object arrays"),
    "labels past 64 bits": (
        {"y": Y.astype(np.uint64) + np.uint64(2**63)},
        "y holds label 9223372036854775809",
    ),
    "a structure": ({"x": np.zeros(20, [("a", "f4")])}, "x has shape .* expected numbers"),
    "dates": ({"y": np.zeros(20, "M8[D]")}, "y has shape .* expected whole"),
    "a scalar": ({"y": np.array(3)}, r"y has shape \(\)"),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_arrays_that_are_not_understood_are_refused_by_name(strange: str, tmp_path: Path) -> None:
    changes, message = STRANGE[strange]
    np.savez(tmp_path / "d.npz", **{"x": X, "y": Y, **changes})
    refused(tmp_path / "d.npz", message)


def test_further_columns_of_the_samples_are_no_mistake(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y.astype(np.uint64), device=Y, writer=Y + 5)
    path = str(tmp_path / "d.npz")
    assert load(DataConfig(source="arrays", path=path), 0).num_samples == 16
    data = load(DataConfig(source="arrays", path=path, unit="user", user_column="writer"), 0)
    assert data.units == ("5", "6")


LONG_CELL = "x" * 200_000


def spoil_adult(folder: Path) -> None:
    write_adult(folder)
    path = folder / "adult.data"
    path.write_text(path.read_text().replace("State-gov", LONG_CELL))


def spoil_adult_number(folder: Path) -> None:
    write_adult(folder)
    path = folder / "adult.data"
    path.write_text(path.read_text().replace("77516", LONG_CELL[:100_000]))


def spoil_obesity(folder: Path) -> None:
    write_obesity(folder)
    path = next(folder.iterdir())
    path.write_text(LONG_CELL[:100_000] + path.read_text())


def spoil_celeba(folder: Path) -> None:
    write_celeba(folder)
    (folder / "list_attr_celeba.txt").write_bytes(b"\xff\xfe" * 50)


def spoil_celeba_count(folder: Path) -> None:
    write_celeba(folder)
    path = folder / "list_attr_celeba.txt"
    path.write_text(path.read_text().replace("24\n", "9" * 5000 + "\n", 1))


def spoil_celeba_identity(folder: Path) -> None:
    write_celeba(folder)
    path = folder / "identity_CelebA.txt"
    path.write_text(path.read_text().replace("2881", "²²", 1))


def spoil_hapt(folder: Path) -> None:
    write_hapt(folder)
    path = folder / "Train" / "subject_id_train.txt"
    path.write_text(path.read_text().replace("2\n", "nan\n", 1))


def spoil_hapt_classes(folder: Path) -> None:
    write_hapt(folder)
    path = folder / "Train" / "y_train.txt"
    path.write_text(path.read_text().replace("2\n", "1e300\n", 1))


def spoil_adult_by_infinity(folder: Path) -> None:
    write_adult(folder)
    path = folder / "adult.data"
    path.write_text(path.read_text().replace("83311", "1e999"))


SPOILT: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a cell past 128 KiB": ("adult", spoil_adult, "line 1 cannot be read .*field larger"),
    "a number of 100 kB": ("adult", spoil_adult_number, "line 1: fnlwgt is 'xxx"),
    "an infinite number": ("adult", spoil_adult_by_infinity, r"1 training samples .* sample 1\)"),
    "a head of 100 kB": ("obesity", spoil_obesity, "begins with xxx.*expected the column"),
    "no text": ("celeba", spoil_celeba, "is no UTF-8 text"),
    "a count of 5,000 digits": ("celeba", spoil_celeba_count, "does not begin with the number"),
    "digits that are none": ("celeba", spoil_celeba_identity, "expected a photo's name and a"),
    "no number": ("hapt", spoil_hapt, "holds subject nan, expected whole numbers"),
    "a number that is no class": ("hapt", spoil_hapt_classes, r"holds class 1e\+300, expected"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_spoilt_tables_and_lists_are_refused(spoilt: str, tmp_path: Path) -> None:
    source, spoil, message = SPOILT[spoilt]
    spoil(tmp_path)
    refused(tmp_path, message, source)


def write_parquet(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": X.tolist(), "y": Y, **columns}), path)


def test_a_folder_may_hold_other_files_than_parquet(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "a.parquet")
    write_parquet(tmp_path / "in" / "below" / "b.PARQUET")
    for name in (
        "README.md",
        "a.parquet.crc",
        "_SUCCESS",
        ".hidden.parquet",
        "_temporary/c.parquet",
    ):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("not Parquet")
    write_parquet(tmp_path / "in" / "c.pq")
    data = load(DataConfig(source="parquet", path=str(tmp_path / "in")), 0)
    assert data.num_samples + len(data.test_targets) == 60
    for name in ("a.parquet", "below/b.PARQUET", "c.pq"):
        (tmp_path / "in" / name).unlink()
    message = r"in holds no \.parquet file \(found: '.hidden.parquet', 'README.md', "
    refused(tmp_path / "in", message, "parquet")


def unchecked(url: str) -> DataConfig:
    """A section as a run of version 0.1.0 may hold it: today's refuses credentials in a URL."""
    return DataConfig(source="parquet").model_copy(update={"path": url})


@pytest.mark.parametrize(
    "url",
    [
        "reference://x",
        "simplecache::https://u:secret@host/a.parquet",
        "ssh://u:secret@host/a.parquet",
        "github://a:b@/x.parquet",
        "zip://a.parquet",
        "data://x?token=secret",
        "reference://u:sec/secret@x",
    ],
)
def test_schemes_that_are_no_files_are_refused_without_credentials(url: str) -> None:
    with pytest.raises(DataError, match="no path that Parquet is read from") as caught:
        load(unchecked(url), 0)
    assert "secret" not in str(caught.value)


def test_credentials_do_not_reach_messages_about_urls() -> None:
    for url in ("memory://u:secret@host/absent.parquet", "s3://u:secret@host/absent.parquet"):
        with pytest.raises(DataError) as caught:
            load(unchecked(url), 0)
        assert "secret" not in str(caught.value) and "***@host" in str(caught.value)
    assert masked("/home/a@b/x?y") == "/home/a@b/x?y", "no URL"
    assert masked("s3://b/x, https://u@h/y") == "s3://b/x, https://***@h/y"
    assert masked("at 'az://c/x?sig=secret' and 's3://b'") == "at 'az://c/x?***' and 's3://b'"


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(X.tolist()), pa.array(Y), pa.array(Y)], names=["x", "y", "y"])
    pq.write_table(table, tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "duplicate field names", "parquet")


def test_many_columns_are_counted_not_listed(tmp_path: Path) -> None:
    table = pa.table({f"column-{i}": [0] for i in range(500)})
    pq.write_table(table, tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "column-9 and 490 more", "parquet")


def damaged_pictures() -> dict[str, bytes]:
    found = {}
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        stream = io.BytesIO()
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(stream, kind)
        found[kind] = stream.getvalue()
    return found


def test_flipped_bytes_of_pictures_end_in_one_line_or_a_picture(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for content in damaged_pictures().values():
        for _ in range(20):
            changed = bytearray(content)
            for place in generator.integers(0, len(content), 3):
                changed[place] ^= int(generator.integers(1, 256))
            pictures = [bytes(changed)] * 10
            table = pa.table({"image": pictures, "label": [0, 1] * 5})
            pq.write_table(table, tmp_path / "a.parquet")
            try:
                load(DataConfig(source="parquet", path=str(tmp_path / "a.parquet")), 0)
            except DataError as error:
                assert "\n" not in str(error)


REQUESTS = {
    "a head past 128 KiB": ("r.csv", LONG_CELL + "\n1\n", "its first line is no line of CSV"),
    "a cell past a block": ("r.csv", "unit\n" + "x" * 3_000_000 + "\n", "not a CSV file|unit"),
    "a torn head": ("r.csv", '"unit\n1\n2\n', "expected one column|not a CSV"),
    "many columns": ("r.csv", ",".join(f"c{i}" for i in range(500)) + "\n", "c9 and 490 more"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_request_files_of_strange_shape_are_refused(case: str, tmp_path: Path) -> None:
    name, text, message = REQUESTS[case]
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match=message) as caught:
        read_request_file(tmp_path / name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


WEIGHTS: dict[str, tuple[torch.Tensor, str]] = {
    "NaN": (torch.tensor([[1.0, float("nan")]] * 2), "'weight' holds NaN or infinite values"),
    "infinite": (torch.tensor([[1.0, float("inf")]] * 2), "'weight' holds NaN or infinite"),
    "past float32": (torch.tensor([[1.0, 1e300]] * 2, dtype=torch.float64), "holds NaN or inf"),
    "whole numbers": (torch.ones(2, 2, dtype=torch.int64), "'weight' is of type torch.int64"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_no_training_can_start_from_are_refused(case: str, tmp_path: Path) -> None:
    tensor, message = WEIGHTS[case]
    path = tmp_path / "w.safetensors"
    save_file({"weight": tensor, "bias": torch.zeros(2)}, path)
    module = nn.Linear(2, 2)
    before = module.weight.detach().clone()
    with pytest.raises(ModelError, match=message):
        load_weights(module, str(path))
    assert torch.equal(module.weight, before)
    save_file({"weight": torch.ones(2, 2, dtype=torch.bfloat16), "bias": torch.zeros(2)}, path)
    load_weights(module, str(path))
    assert torch.equal(module.weight, torch.ones(2, 2))
