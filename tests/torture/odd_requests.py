"""Request files and options of deletions that are bad, or odd and yet good."""

import io
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tests.torture.case import Case, Maker, Workshop

HOSTILE = (
    "99",
    "-1",
    "1.0",
    "01",
    " 1",
    "1 ",
    "",
    "é",
    "a" * 10_000,
    "\u202e",
    "'; drop table",
    "..",
    "../4",
    "4\r",
    "٤",
    "None",
    "[4]",
)


def run_copy(shop: Workshop, name: str = "fresh") -> Path:
    return Path(shutil.copytree(shop.base / name, shop.folder / "run"))


def parquet(columns: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def request(shop: Workshop, path: Path, about: str, good: bool | None, *more: str) -> Case:
    words = ("delete", str(run_copy(shop)), "--requests", str(path), *shop.pick((), ("--dry-run",)))
    return Case(about, (*words, *more), good)


def odd_file(shop: Workshop) -> Case:
    unit = shop.random.choice(HOSTILE)
    contents: dict[str, tuple[str, bytes, bool | None]] = {
        "text": ("r.txt", b"4\n\n5\n", True),
        "CRLF": ("r.txt", b"4\r\n5\r\n", True),
        "empty": (shop.pick("r.txt", "r.csv", "r.parquet"), b"", False),
        "blank": ("r.txt", b"\n \n\n", False),
        "binary": ("r.txt", shop.random.randbytes(500), False),
        "NUL": ("r.txt", b"4\0\n5\n", False),
        "latin-1": ("r.txt", b"\xe9\n", False),
        "a long line": ("r.txt", b"4" * 300_000, False),
        "unknown": ("r.txt", f"{unit}x\n".encode(), False),
        "many unknown": ("r.txt", "\n".join(f"u{i}" for i in range(5000)).encode(), False),
        "twice": ("r.txt", b"4\n4\n", None),
        "CSV": ("r.csv", b"unit\n4\n5\n", True),
        "header only": ("r.csv", b"unit\n", False),
        "no column": ("r.csv", b"a,b\n1,2\n", False),
        "two columns": ("r.csv", b"unit,user\n4,5\n", False),
        "ragged": ("r.csv", b"unit,b\n4\n5,6,7\n", False),
        "quotes": ("r.csv", b'unit\n"4\n5\n', False),
        "a long cell": ("r.csv", b"unit\n" + b"9" * 200_000, False),
        "a long header": ("r.csv", b"u" * 200_000 + b"\n4\n", False),
        "CSV of bytes": ("r.csv", shop.random.randbytes(400), False),
        "columns of a name": ("r.csv", b"unit,unit\n4,5\n", False),
        "a mark": ("r.csv", b"\xef\xbb\xbfunit\n4\n", True),
        "Parquet": ("r.parquet", parquet({"unit": ["4", "5"]}), True),
        "numbers": ("r.parquet", parquet({"unit": [4, 5]}), True),
        "fractions": ("r.parquet", parquet({"unit": [4.5, 5.0]}), False),
        "nulls": ("r.parquet", parquet({"unit": ["4", None]}), False),
        "lists": ("r.parquet", parquet({"unit": [["4"], ["5"]]}), False),
        "truths": ("r.parquet", parquet({"unit": [True]}), False),
        "no rows": ("r.parquet", parquet({"unit": pa.array([], pa.string())}), False),
        "bytes": ("r.parquet", parquet({"unit": [b"\xff\xfe"]}), False),
        "no Parquet": ("r.parquet", b"PAR1junkPAR1", False),
        "damage": ("r.parquet", shop.damage(parquet({"unit": ["4", "5"]})), None),
        "another name": ("r.json", b'["4"]', False),
        "no suffix": ("r", b"4\n", False),
        "upper case": ("r.TXT", b"4\n", True),
    }
    about = shop.random.choice(list(contents))
    name, content, good = contents[about]
    more = ("--column", shop.pick("x", "", "unit" * 999)) if shop.random.random() < 0.05 else ()
    return request(
        shop, shop.write(name, content), f"request: {about}", False if more else good, *more
    )


def no_file(shop: Workshop) -> Case:
    kind = shop.pick("missing", "folder", "below a file", "a long name")
    path = shop.folder / ("x" * 300 if kind == "a long name" else "r.txt")
    if kind == "folder":
        path.mkdir()
    if kind == "below a file":
        path = shop.write("file", "4\n") / "r.txt"
    return request(shop, path, f"request file: {kind}", False)


def odd_words(shop: Workshop) -> Case:
    run, unit = str(run_copy(shop)), shop.random.choice(HOSTILE)
    words: dict[str, tuple[tuple[str, ...], bool | None]] = {
        "name": (("--ids", unit), None),
        "names": (("--ids", ",".join(f"u{i}" for i in range(3000))), False),
        "commas": (("--ids", "4,,5"), False),
        "nothing": ((), False),
        "both": (("--ids", "4", "--requests", "x"), False),
        "epsilon": (
            (
                "--ids",
                "4",
                "--epsilon",
                shop.pick("nan", "0", "-1", "inf", "1e400", "x"),
                "--delta",
                "1e-5",
            ),
            False,
        ),
        "delta": (
            ("--ids", "4", "--epsilon", "1", "--delta", shop.pick("nan", "0", "1", "-1", "1e-400")),
            False,
        ),
        "half": (("--ids", "4", "--epsilon", "1"), False),
        "readers": (("--ids", "4", "--readers", shop.pick("0", "-1", "x", "9" * 5000)), False),
        "request id": (
            ("--ids", "4", "--request-id", shop.pick("", "x" * 100_000, "\u202e", "é\n", "..")),
            None,
        ),
        "good": (("--ids", " 4 , 5 "), True),
        "skip": (("--ids", "4,nobody", "--skip-invalid"), True),
        "queue": (("--ids", "4", "--queue", "--dry-run"), False),
        "column": (("--ids", "4", "--column", "x"), False),
    }
    about = shop.random.choice(list(words))
    more, good = words[about]
    return Case(f"delete: {about} {unit[:20]!r}", ("delete", run, *more), good)


def odd_command(shop: Workshop) -> Case:
    run, unit = str(run_copy(shop, "deleted")), shop.random.choice(HOSTILE)
    words: tuple[tuple[str, ...], ...] = (
        ("export", run, "--unit", unit + "x", "--out", str(shop.folder / "row.npy")),
        ("export", run, "--unit", "3", "--out", str(shop.folder / "row.npy")),
        ("export", run, "--unit", "4", "--out", str(shop.folder / "no" / "row.npy")),
        ("backup", run, "--to", run),
        ("restore", run, "--from", str(shop.folder / "nowhere")),
        ("restore", run, "--from", str(shop.base)),
        ("report", run),
        ("status", str(shop.folder)),
        ("verify", str(shop.folder / ("x" * 300))),
        ("delete", str(shop.base), "--ids", "4"),
        ("delete", run, "--ids", "1"),
        ("release", str(shop.folder)),
        ("data", "fetch", unit),
        ("repair", run, "--epochs", shop.pick("0", "-1", "x", "9" * 5000)),
        (
            "audit",
            run,
            "--rates",
            shop.pick("", "x", "nan", "1e400", "0", "-1", "1,,2", "9" * 5000),
        ),
        ("audit", run, "--seeds", shop.pick("0", "x")),
        ("sweep", run),
        ("train", run),
    )
    chosen = shop.random.choice(words)
    return Case(" ".join(word[:30] for word in chosen if word != run), chosen, False)


MAKERS: tuple[Maker, ...] = (odd_file, odd_file, no_file, odd_words, odd_command)
