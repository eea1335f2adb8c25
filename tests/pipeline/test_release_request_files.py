from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.deletion.releases import open_releases
from pipeline.deletion.request_files import read_request_file
from pipeline.deletion.requests import DeletionRequest
from pipeline.deletion.weights import DeletionRule
from pipeline.errors import RequestError, UnknownUnitsError
from tests.pipeline.fake_store import FakeStore, make_facts, use_key


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_a_text_file_has_one_id_per_line(tmp_path: Path) -> None:
    path = write(tmp_path / "r.txt", '\ufeff007\r\n\r\na,b\n"quoted"\n../x\nlast')
    assert read_request_file(path) == ["007", "a,b", '"quoted"', "../x", "last"]


def test_lines_of_a_quoted_cell_are_never_ids(tmp_path: Path) -> None:
    """Arrow reads blocks of a MiB; one that ended inside a cell made ids of the lines after it."""
    ids = [str(number) for number in range(1_000_000, 1_104_500)]
    cell = "\n".join(["please keep", *["5,keep this one"] * 400])
    lines = ["unit,comment", *(f"{unit},x" for unit in ids), f'7,"{cell}"', "8,x"]
    path = write(tmp_path / "r.csv", "\n".join(lines))
    assert read_request_file(path) == [*ids, "7", "8"]


@pytest.mark.parametrize("text", ['unit,note\n3,"a\n5,b\n', 'note,unit\n"a,3\nb,5'])
def test_a_quotation_mark_that_swallows_ids_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RequestError, match=r"never closed|not a CSV file"):
        read_request_file(write(tmp_path / "r.csv", text))


@pytest.mark.parametrize(
    ("text", "column", "ids"),
    [
        ("user_id\n3\n007\n", None, ["3", "007"]),
        ("name,User,when\nx,3,now\ny,a b,then\n", None, ["3", "a b"]),
        ('who,when\n"o\'neill, ""Jo""",now\n', "who", ['o\'neill, "Jo"']),
        ("\ufeffunit\nNA\nnull\n", None, ["NA", "null"]),
    ],
)
def test_a_csv_column_is_read_as_text(
    tmp_path: Path, text: str, column: str | None, ids: list[str]
) -> None:
    assert read_request_file(write(tmp_path / "r.csv", text), column) == ids


@pytest.mark.parametrize(
    "values",
    [
        pa.array([3, 4]),
        pa.array(["3", "4"]),
        pa.array(["3", "4"], pa.large_string()),
        pa.array(["3", "4"]).dictionary_encode(),
    ],
    ids=lambda values: str(values.type),
)
def test_a_parquet_column_is_read_as_text(tmp_path: Path, values: pa.Array) -> None:
    path = parquet(tmp_path / "r.parquet", user=values, other=pa.array([1.5, 2.5]))
    assert read_request_file(path) == ["3", "4"]
    assert read_request_file(path, "user") == ["3", "4"]


REFUSED = [
    ("r.txt", b"", "is empty"),
    ("r.txt", b"\n\n \n", "expected at least one id"),
    ("r.csv", b"unit\n", "expected at least one id"),
    ("r.csv", b"\nunit\n3\n", "found a blank"),
    ("r.csv", b"3\n17\n", "expected one column named as ids are"),
    ("r.csv", b"user,unit\n3,4\n", "found user, unit"),
    ("r.csv", b"unit,x\n3,4\n5\n", "not a CSV file that can be read"),
    ("r.csv", b'unit\n""\n4\n', "1 of 2 ids are empty"),
    ("r.csv", b"PAR1\x15\x04", "name it .parquet"),
    ("r.txt", b"PAR1\x15\x04", "name it .parquet"),
    ("r.txt", b"\xff\xfe3\x004", "expected UTF-8"),
    ("r.txt", b"3\x004\n", "found a zero byte"),
    ("r.parquet", b"unit\n3\n", "not a Parquet file"),
    ("r.parquet", b"PAR1PAR1", "not a Parquet file"),
    ("r.json", b"[3]", "expected a name ending in .parquet, .csv, .txt"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_a_file_that_is_not_what_it_should_be_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        read_request_file(write(tmp_path / name, content))
    assert message in str(refusal.value)
    assert str(tmp_path / name) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([3.0, 4.0]), "as text or whole numbers"),
        (pa.array(["3", None]), "1 of 2 ids are missing"),
        (pa.array([True]), "as text or whole numbers"),
    ],
)
def test_parquet_values_that_are_no_ids_are_refused(
    tmp_path: Path, values: pa.Array, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        read_request_file(parquet(tmp_path / "r.parquet", unit=values))


def test_a_missing_file_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no such file"):
        read_request_file(tmp_path / "r.csv")
    with pytest.raises(RequestError, match="expected a column 'who', found unit"):
        read_request_file(write(tmp_path / "r.csv", "unit\n3\n"), "who")
    with pytest.raises(RequestError, match="has no columns"):
        read_request_file(write(tmp_path / "r.txt", "3\n"), "who")


def check_one_wrong_id(folder: Path, count: int) -> None:
    (folder / "run").mkdir()
    names = [f"user-{index}" for index in range(count)]
    rule = DeletionRule("remaining", "left-out", 2 * count, 4)
    facts = make_facts(samples_per_unit=dict.fromkeys(names, 1), rule=rule)
    store = FakeStore(dict.fromkeys(names, np.ones(12)))
    asked = [*names[: count // 2], "nobody", *names[count // 2 : -1]]
    path = parquet(folder / "r.parquet", unit=pa.array(asked))
    with open_releases(folder / "run", facts, store) as releases:
        with pytest.raises(UnknownUnitsError, match="not in the training set: 'nobody'"):
            releases.delete(DeletionRequest(read_request_file(path)))
        assert not list((folder / "run" / "releases").iterdir())
    assert len(store.rows) == count


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"wave.{suffix}"
    if suffix == "csv":
        path.write_text("unit,unit\n1,2\n")
    else:
        pq.write_table(pa.table([["1"], ["2"]], names=["unit", "unit"]), path)
    with pytest.raises(RequestError, match="found 2"):
        read_request_file(path, "unit")


@pytest.mark.parametrize(
    "count", [50_000, pytest.param(1_000_000, marks=pytest.mark.torture, id="million")]
)
def test_one_wrong_id_among_many_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    use_key(monkeypatch, tmp_path)
    check_one_wrong_id(tmp_path, count)
