"""Files of deletion requests: one id per line, or a column of a CSV or Parquet file.

Ids are matched by their text, so they are read as text: `007` stays `007`.
"""

import csv
import io
import uuid
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipeline.errors import RequestError
from pipeline.suggestions import listed

# Names under which a column of ids is found when none was named.
_ID_COLUMNS = ("unit", "user", "user_id", "id", "sample", "sample_id")
_PARQUET_MAGIC = b"PAR1"


def read_request_file(path: Path, column: str | None = None) -> list[str]:
    """Return the ids that a file asks to delete, in its order, repetitions included.

    Args:
        path: A `.parquet`, `.csv` (UTF-8, the first line names the columns) or `.txt` file (UTF-8,
            one id per line, blank lines are skipped).
        column: The column of ids; by default the only one of a usual name, such as `unit`.

    Raises:
        RequestError: The file is missing, empty, or not what its name says; the column is not
            there, or does not hold ids.
    """
    if not path.is_file():
        raise RequestError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise RequestError(f"{path}: the file is empty; expected at least one id")
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".txt": _read_text}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RequestError(f"{path}: expected a name ending in {', '.join(readers)}")
    ids = reader(path, column)
    if not ids:
        raise RequestError(f"{path}: expected at least one id, found none")
    return ids


def _read_text(path: Path, column: str | None) -> list[str]:
    if column is not None:
        raise RequestError(f"{path}: a text file has no columns; leave out the column {column!r}")
    lines = (line.removesuffix("\r") for line in _decoded(path).split("\n"))
    return [line for line in lines if line.strip()]


def _read_csv(path: Path, column: str | None) -> list[str]:
    text, header = _decoded(path), _header(path)
    name = _chosen_column(path, header, column)
    # A last line of our own: an open quotation mark, which would swallow ids, swallows it as well.
    end = uuid.uuid4().hex
    content = f"{text}\n{','.join([end] * len(header))}\n".encode()
    # A quoted cell may hold lines; where a block of Arrow's ends in one, they are no ids.
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    convert = pyarrow.csv.ConvertOptions(
        include_columns=[name],
        column_types={name: pa.string()},
        strings_can_be_null=False,
    )
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(content), parse_options=parse, convert_options=convert
        )
    except (pa.ArrowException, KeyError) as error:
        # Arrow quotes the line at fault, which may be megabytes long.
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{path}: not a CSV file that can be read: {reason}") from error
    values = table.column(name)
    if len(values) == 0 or values[-1].as_py() != end:
        raise RequestError(
            f"{path}: a quotation mark is never closed; the ids after it would be lost"
        )
    return _ids(path, values.slice(0, len(values) - 1))


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            names = next(csv.reader(file), [])
        except csv.Error as error:
            raise RequestError(f"{path}: its first line is no line of CSV: {error}") from error
    if not any(names):
        raise RequestError(f"{path}: expected the first line to name the columns, found a blank")
    return names


def _read_parquet(path: Path, column: str | None) -> list[str]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            name = _chosen_column(path, file.schema_arrow.names, column)
            return _ids(path, file.read(columns=[name]).column(name))
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{path}: not a Parquet file: {reason}") from error


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(_PARQUET_MAGIC):
        raise RequestError(f"{path}: this is a Parquet file; name it .parquet")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: expected UTF-8 text: {error}") from error
    if "\0" in text:
        raise RequestError(f"{path}: expected text, found a zero byte: not what its name says")
    return text


def _chosen_column(path: Path, names: Sequence[str], column: str | None) -> str:
    """Return the column of ids; a header is never taken for an id, nor an id for a header."""
    if column is not None:
        if column not in names:
            raise RequestError(f"{path}: expected a column {column!r}, found {listed(names)}")
        if names.count(column) > 1:
            raise RequestError(
                f"{path}: expected one column {column!r}, found {names.count(column)}; the ids of the "
                "others would be left out"
            )
        return column
    usual = [name for name in names if name.lower() in _ID_COLUMNS]
    if len(usual) != 1:
        raise RequestError(
            f"{path}: expected one column named as ids are ({', '.join(_ID_COLUMNS)}), found "
            f"{listed(names)}; name the column, or use a .txt file with one id per line"
        )
    return usual[0]


def _ids(path: Path, values: pa.ChunkedArray) -> list[str]:
    kind = values.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (texts or pa.types.is_integer(kind)):
        raise RequestError(f"{path}: expected ids as text or whole numbers, found {values.type}")
    if values.null_count:
        raise RequestError(f"{path}: {values.null_count} of {len(values)} ids are missing")
    ids: list[str] = values.cast(pa.string()).to_pylist()
    if "" in ids:
        raise RequestError(f"{path}: {ids.count('')} of {len(ids)} ids are empty")
    return ids
