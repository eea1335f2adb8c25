"""Text tables to features: numbers standardised, categories one-hot."""

# n rows, F features

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.data.files import read_text
from pipeline.data.samples import Samples, require_finite
from pipeline.errors import DataError


@dataclass(frozen=True)
class Column:
    """A column of a table: a number, or one of the published categories."""

    name: str
    categories: tuple[str, ...] = ()
    """Empty: the column holds numbers."""

    @property
    def width(self) -> int:
        """Features the column becomes."""
        return len(self.categories) or 1


@dataclass(frozen=True)
class Row:
    """One line of a table, with its number in the file for messages."""

    line: int
    cells: tuple[str, ...]


def read_rows(path: Path, num_columns: int, skip_prefix: str | None = None) -> list[Row]:
    """Return the rows of a comma-separated file, blanks around cells removed.

    Args:
        path: The file, UTF-8.
        num_columns: Cells of every row.
        skip_prefix: Lines that begin with it are no rows.

    Raises:
        DataError: If a row has another number of cells, as the last of a half-downloaded file has.
    """
    rows = []
    for number, cells in enumerate(_cells_of_lines(path), start=1):
        if not cells or (skip_prefix is not None and cells[0].startswith(skip_prefix)):
            continue
        if len(cells) != num_columns:
            raise DataError(
                f"{path} line {number} has {len(cells)} cells, expected {num_columns}; the file "
                f"({path.stat().st_size} bytes) is damaged or half downloaded, fetch it again"
            )
        rows.append(Row(number, tuple(cell.strip() for cell in cells)))
    return rows


def _cells_of_lines(path: Path) -> Iterator[list[str]]:
    reader = csv.reader(read_text(path).splitlines(), skipinitialspace=True)
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(
            f"{path} line {reader.line_num} cannot be read as comma-separated cells: {error}; the "
            "file is damaged, fetch it again"
        ) from error


def encode(path: Path, rows: Sequence[Row], columns: Sequence[Column]) -> np.ndarray:
    """Return features (n, F) float64: numbers as they are, categories one-hot in published order.

    Raises:
        DataError: If a number or a category is not understood; the message names line and column.
    """
    features = np.zeros((len(rows), sum(column.width for column in columns)))
    start = 0
    for position, column in enumerate(columns):
        for i, row in enumerate(rows):
            cell = row.cells[position]
            if column.categories:
                features[i, start + _category(path, row, column, cell)] = 1
            else:
                features[i, start] = _number(path, row, column, cell)
        start += column.width
    return features


def classes_of(path: Path, rows: Sequence[Row], position: int, column: Column) -> np.ndarray:
    """Return the class numbers (n,) int64 that the cells at `position` name."""
    cells = [(row, row.cells[position]) for row in rows]
    return np.array([_category(path, row, column, cell) for row, cell in cells], dtype=np.int64)


def standardise(
    train: Samples, test: Samples, columns: Sequence[Column] = ()
) -> tuple[Samples, Samples]:
    """Return both parts with numbers less the training part's mean, over its deviation.

    One-hot features stay 0 and 1: a rare category over its small deviation would drown the rest.
    A number that never varies in the training part is centred only. Without `columns`, all
    features are numbers.
    """
    # Before a mean is taken: afterwards every sample would be at fault.
    require_finite("training", train)
    require_finite("test", test)
    is_number = np.ones(train.inputs.shape[1], dtype=bool)
    if columns:
        is_number = np.repeat([not column.categories for column in columns], _widths(columns))
    mean = np.where(is_number, train.numbers.mean(axis=0), 0)
    deviation = np.where(is_number, train.numbers.std(axis=0), 1)
    deviation[deviation == 0] = 1

    def scaled(samples: Samples) -> Samples:
        return replace(samples, inputs=(samples.inputs - mean) / deviation)

    return scaled(train), scaled(test)


def _widths(columns: Sequence[Column]) -> list[int]:
    return [column.width for column in columns]


def _category(path: Path, row: Row, column: Column, cell: str) -> int:
    try:
        return column.categories.index(cell)
    except ValueError as error:
        raise DataError(
            f"{path} line {row.line}: {column.name} is {cell!r:.80}; expected one of "
            f"{', '.join(column.categories)}: the line is damaged or cut short"
        ) from error


def _number(path: Path, row: Row, column: Column, cell: str) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise DataError(
            f"{path} line {row.line}: {column.name} is {cell!r:.80}, expected a number"
        ) from error
