"""Data files that are damaged, hostile, or odd and yet good: `.npz`, IDX, CSV and Parquet."""

import csv
import gzip
import io
import struct
import zipfile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import yaml

from pipeline.data.mnist import FILES
from pipeline.data.obesity import COLUMNS, FILE, LEVEL
from tests.torture.case import Case, Maker, Workshop
from tests.torture.odd_configs import base, command

NUM_SAMPLES = 40


def case_of(shop: Workshop, about: str, good: bool | None, **data: Any) -> Case:
    values = base() | {"data": data}
    return Case(about, command(shop, shop.write("config.yaml", yaml.safe_dump(values))), good)


def npz(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy_header(text: str) -> bytes:
    """A `.npy` file that promises what its header says and holds a few bytes."""
    header = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)


def odd_npz(shop: Workshop) -> Case:
    x = (
        np.random.default_rng(shop.random.randrange(1000))
        .normal(size=(NUM_SAMPLES, 4))
        .astype("f4")
    )
    y = np.arange(NUM_SAMPLES) % 3
    holes = x.copy()
    holes[3, 1] = shop.pick(np.nan, np.inf)
    bad: dict[str, dict[str, Any]] = {
        "no y": {"x": x},
        "no x": {"y": y},
        "holes": {"x": holes, "y": y},
        "nothing": {},
        "text": {"x": x.astype("U8"), "y": y},
        "objects": {"x": x.astype(object), "y": y},
        "complex numbers": {"x": x + 1j, "y": y},
        "a scalar": {"x": np.float32(3), "y": y},
        "no samples": {"x": x[:0], "y": y[:0]},
        "other lengths": {"x": x, "y": y[:-1]},
        "no features": {"x": x[:, :0], "y": y},
        "fractions": {"x": x, "y": y + 0.5},
        "negative classes": {"x": x, "y": y - 1},
        "a huge class": {"x": x, "y": y * 10**12},
        "an unsigned huge class": {"x": x, "y": (y.astype("u8") << np.uint64(63))},
        "classes of text and numbers": {"x": x, "y": y.astype("U2"), "x_test": x, "y_test": y},
        "a matrix of classes": {"x": x, "y": y[:, None]},
        "half a test": {"x": x, "y": y, "x_test": x},
        "another test": {"x": x, "y": y, "x_test": x[:, :2], "y_test": y},
        "infinite in float32": {"x": x.astype("f8") * 1e300, "y": y},
        "dates": {"x": x.astype("i8").astype("M8[s]"), "y": y},
    }
    good = {
        "float64": {"x": x.astype("f8"), "y": y},
        "bytes": {"x": (x * 20).astype("u1"), "y": y.astype("u1")},
        "float16": {"x": x.astype("f2"), "y": y},
        "fortran": {"x": np.asfortranarray(x), "y": y},
        "unsigned": {"x": x, "y": y.astype("u8")},
        "big-endian": {"x": x.astype(">f4"), "y": y.astype(">i4")},
        "deep": {"x": x.reshape(NUM_SAMPLES, 1, 2, 2), "y": y},
        "more": {"x": x, "y": y, "z": x},
    }
    if shop.random.random() < 0.2:
        about, arrays = shop.random.choice(list(good.items()))
        path = shop.write("data.npz", npz(arrays))
        return case_of(shop, f"npz: {about}", True, source="arrays", path=str(path))
    about, arrays = shop.random.choice(list(bad.items()))
    path = shop.write("data.npz", npz(arrays))
    unit = {"unit": "user"} if shop.random.random() < 0.1 else {}
    return case_of(shop, f"npz: {about}", False, source="arrays", path=str(path), **unit)


def damaged_npz(shop: Workshop) -> Case:
    kind = shop.pick(
        "damage", "damage", "header", "header", "bomb", "junk", "text", "empty", "folder", "missing"
    )
    path = shop.folder / "data.npz"
    good: bool | None = False
    if kind == "damage":
        x, y = np.ones((NUM_SAMPLES, 4), "f4"), np.arange(NUM_SAMPLES) % 3
        shop.write("data.npz", shop.damage(npz({"x": x, "y": y})))
        good = None
    elif kind == "header":
        shape = shop.pick("(10000000000,)", "(-1,)", "(2, 2**99)", "((((", "'x'", f"({'1,' * 40})")
        descr = shop.pick("'<f4'", "'|O'", "[('a', '<f4')]", "'<f4' * 9", "None", "'|V9'")
        header = npy_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", header)
            archive.writestr("y.npy", header)
    elif kind == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(
                "x.npy",
                npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (16,), }")
                + bytes(50 << 20),
            )
            archive.writestr(
                "y.npy",
                npy_header("{'descr': '<i8', 'fortran_order': False, 'shape': (9,), }")
                + bytes(50 << 20),
            )
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        content = {"text": b"hello", "empty": b""}.get(kind, shop.random.randbytes(999))
        shop.write("data.npz", content)
    return case_of(shop, f"npz: {kind}", good, source="arrays", path=str(path))


def idx(array: np.ndarray) -> bytes:
    return (
        b"\0\0\x08"
        + bytes([array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def odd_idx(shop: Workshop) -> Case:
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (NUM_SAMPLES, 28, 28), np.uint8)
    labels = (np.arange(NUM_SAMPLES) % 10).astype("u1")
    contents = [idx(images), idx(labels), idx(images), idx(labels)]
    which = shop.random.randrange(4)
    whole = contents[which]
    kinds: dict[str, bytes] = {
        "cut": whole[: shop.random.randrange(len(whole))],
        "empty": b"",
        "junk": shop.random.randbytes(50),
        "65 dimensions": b"\0\0\x08\x41" + struct.pack(">65I", *[1] * 65) + b"\1",
        "many dimensions": b"\0\0\x08\xff" + struct.pack(">255I", *[1] * 255) + b"\1",
        "no dimensions": b"\0\0\x08\0\1",
        "a zero": b"\0\0\x08\3" + struct.pack(">3I", 0, 2**32 - 1, 2**32 - 1),
        "a huge count": b"\0\0\x08\1" + struct.pack(">I", 2**32 - 1),
        "more": whole + b"\0",
        "another type": b"\0\0\x0d" + whole[3:],
        "another length": idx(labels[:-1]) if which % 2 else idx(images[:-1]),
        "a label of 200": idx(labels + 200) if which % 2 else idx(images[:, :0]),
        "others": contents[3 - which],
    }
    good: bool | None = False
    about = shop.pick(
        "gzip", "gzip cut", "gzip of nothing", "gzip bomb", "whole", "missing", *kinds
    )
    name = f"raw/{FILES[which]}"
    for other, content in zip(FILES, contents, strict=True):
        shop.write(f"raw/{other}", content)
    if about in kinds:
        shop.write(name, kinds[about])
        # Features of one missing row, or of no pixels, are refused; the damage may also be whole.
        good = None if about in ("cut", "junk") else False
    elif about == "whole":
        good = True
    else:
        (shop.folder / name).unlink()
        bomb = gzip.compress(bytes(300 << 20)) if about == "gzip bomb" else b""
        packed = {
            "gzip": gzip.compress(whole),
            "gzip cut": gzip.compress(whole)[:-9],
            "gzip bomb": bomb,
        }
        good = about == "gzip"
        if about != "missing":
            shop.write(f"{name}.gz", packed.get(about, b""))
    return case_of(
        shop, f"IDX {FILES[which]}: {about}", good, source="mnist", path=str(shop.folder / "raw")
    )


def obesity_rows() -> list[list[str]]:
    rows = [[*(column.name for column in COLUMNS), LEVEL.name]]
    for i in range(10 * len(LEVEL.categories)):
        cells = [c.categories[i % len(c.categories)] if c.categories else f"{i}.5" for c in COLUMNS]
        rows.append([*cells, LEVEL.categories[i % len(LEVEL.categories)]])
    return rows


def odd_csv(shop: Workshop) -> Case:
    rows = obesity_rows()
    row, column = shop.random.randrange(1, len(rows)), shop.random.randrange(len(rows[0]))
    strange = (
        "x" * 200_000,
        "nan",
        "inf",
        "1e999",
        "",
        " ",
        "\0",
        "é",
        '"',
        "a\nb",
        "1,5",
        "9" * 5000,
        "-",
        "=1+1",
    )
    about = shop.pick(
        "cell",
        "cell",
        "cell",
        "damage",
        "row",
        "no header",
        "empty",
        "header only",
        "whole",
        "latin-1",
    )
    good: bool | None = False
    if about == "cell":
        rows[row][column] = shop.random.choice(strange)
        about, good = f"cell {rows[row][column]!r:.20}", None
    if about == "row":
        rows[row] = rows[row][: shop.random.randrange(1, 17)]
    file = io.StringIO()
    csv.writer(file).writerows({"no header": rows[1:], "header only": rows[:1]}.get(about, rows))
    content = file.getvalue().encode()
    if about == "damage":
        content, good = shop.damage(content), None
    if about == "latin-1":
        content = content.replace(b"Male", b"M\xe4le")
    if about == "empty":
        content = b""
    if about == "whole":
        good = True
    path = shop.write(FILE, content)
    return case_of(shop, f"CSV: {about}", good, source="obesity", path=str(path.parent))


def odd_parquet(shop: Workshop) -> Case:
    n = NUM_SAMPLES
    x = [[float(i), 1.0, 2.0] for i in range(n)]
    y = [i % 3 for i in range(n)]
    bad: dict[str, dict[str, Any]] = {
        "no y": {"x": x},
        "no x": {"y": y},
        "ragged": {"x": [*x[:-1], [1.0]], "y": y},
        "null row": {"x": [*x[:-1], None], "y": y},
        "null class": {"x": x, "y": [*y[:-1], None]},
        "null value": {"x": [*x[:-1], [1.0, None, 2.0]], "y": y},
        "holes": {"x": [*x[:-1], [1.0, float("nan"), 2.0]], "y": y},
        "text": {"x": ["a"] * n, "y": y},
        "no pictures": {"image": [b"junk"] * n, "label": y},
        "empty pictures": {"image": [b""] * n, "label": y},
        "fractions": {"x": x, "y": [i + 0.5 for i in y]},
        "negative classes": {"x": x, "y": [-i - 1 for i in y]},
        "a huge class": {"x": x, "y": [i * 10**12 for i in y]},
        "no rows": {"x": [], "y": []},
        "truths": {"x": [True] * n, "y": y},
        "lists of classes": {"x": x, "y": [[i] for i in y]},
        "deep": {"x": [[[[[[[[[[1.0]]]]]]]]]] * (n - 1) + [[[[[[[[[[]]]]]]]]]], "y": y},
    }
    about = shop.pick("whole", "damage", "damage", "junk", "empty folder", "missing", "a URL", *bad)
    good: bool | None = False
    path = shop.folder / "data.parquet"
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(bad.get(about, {"x": x, "y": y})), file)
    content = file.getvalue()
    if about == "damage":
        content, good = shop.damage(content), None
    if about == "junk":
        content = shop.random.randbytes(300)
    if about == "whole":
        good = True
    if about == "empty folder":
        path.mkdir()
    elif about != "missing":
        shop.write(path.name, content)
    place = (
        shop.pick("reference://x", "nowhere://x", "file:///nowhere/x", "http://[::1", "memory://x")
        if about == "a URL"
        else str(path)
    )
    return case_of(
        shop,
        f"Parquet: {about} {place if about == 'a URL' else ''}",
        good,
        source="parquet",
        path=place,
    )


MAKERS: tuple[Maker, ...] = (odd_npz, odd_npz, damaged_npz, odd_idx, odd_csv, odd_parquet)
