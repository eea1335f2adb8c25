"""A user's own Parquet data set: a file or a folder of files, on this machine or at a URL.

Columns: the input (`image` or `x`) as the bytes of a picture, a structure with such a field `bytes`,
or an array (lists of equal length, nested for more dimensions, or Arrow's fixed-shape tensors); the
class (`label` or `y`) as text or whole numbers, or the numbers that `training.loss` takes; optionally
the owner (`user`). `data.input_column`, `data.label_column` and `data.user_column` name others,
`data.weight_column` a column of weights.
"""

# n rows

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
from pyarrow import dataset as arrow

from pipeline.config import DataConfig
from pipeline.data.dataset import Dataset, assemble
from pipeline.data.images import DECODER, as_pictures, stack
from pipeline.data.input_files import IN_MEMORY, Allocate, InputFiles
from pipeline.data.lazy_inputs import OwnInputs
from pipeline.data.parquet_files import one_line, open_files, states_of
from pipeline.data.samples import (
    WHOLE,
    Samples,
    owner_names,
    require_every_class,
    sample_weights,
    split_positions,
)
from pipeline.data.targets import KINDS, as_targets
from pipeline.errors import DataError
from pipeline.suggestions import listed, nearest
from storage.masking import masked


def parquet(
    config: DataConfig,
    seed: int,
    loss: str = "cross-entropy",
    files: InputFiles = IN_MEMORY,
) -> Dataset:
    """Read `data.path`; pictures are scaled to 0..1, arrays taken as given; the split is random.

    Text classes are numbered in alphabetical order, whole numbers are class numbers. A matrix
    becomes a picture of one channel. Arrays of int32 or int64 stay whole numbers.
    """
    source = open_files(config)
    inputs = _column(source, config, config.input_column, ("image", "x"), "data.input_column")
    label = _column(source, config, config.label_column, ("label", "y"), "data.label_column")
    targets, num_classes, class_names = _targets(source, label, loss)
    weights = _weights(source, config, len(targets))
    owners = None
    if config.unit == "user":
        user = _column(source, config, config.user_column, ("user",), "data.user_column")
        owners = owner_names(np.array(_values(source, user), dtype=object), user)
    # Labels and owners are read first, so that only the chosen rows' inputs are ever held.
    train, test = (
        Samples(
            _inputs(source, inputs, rows, files),
            targets[rows],
            None if owners is None else tuple(owners[i] for i in rows),
            rows,
            len(targets),
            None if weights is None else weights[rows],
        )
        for rows in split_positions(len(targets), config, seed)
    )
    numbered = class_names == tuple(map(str, range(num_classes)))
    dataset = assemble(train, test, config, num_classes, () if numbered else class_names)
    if dataset.has_classes:
        require_every_class(train, test, class_names)
    return dataset


def _column(
    source: arrow.Dataset, config: DataConfig, wanted: str | None, usual: Sequence[str], key: str
) -> str:
    names = source.schema.names
    for name in usual if wanted is None else (wanted,):
        if name in names:
            return str(name)
    if wanted is not None:
        raise DataError(
            f"{key} {wanted!r} {nearest(wanted, names)}, the columns of {masked(config.path)}"
        )
    raise DataError(
        f"{masked(config.path)} has no column {' or '.join(usual)} (found: {listed(names)}); set {key}"
    )


def _values(source: arrow.Dataset, column: str) -> list[object]:
    with _readable(column):
        return list(source.to_table(columns=[column]).column(0).to_pylist())


@contextmanager
def _readable(column: str) -> Iterator[None]:
    """Name the column whose bytes, or whose type, cannot be read."""
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, OverflowError, ValueError) as error:
        raise DataError(
            f"column {column!r} cannot be read: {one_line(error)}; a file may be half "
            "downloaded, or the column's type is none of text, whole numbers, lists or pictures"
        ) from error


def _weights(source: arrow.Dataset, config: DataConfig, num_rows: int) -> np.ndarray | None:
    if config.weight_column is None:
        return None
    column = _column(source, config, config.weight_column, (), "data.weight_column")
    values = _values(source, column)
    _refuse_absent(values, column, "weight")
    return sample_weights(np.array(values), f"column {column!r}", num_rows)


def _targets(
    source: arrow.Dataset, column: str, loss: str
) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Return the targets (n, ...), C or D, and the classes' names."""
    values = _values(source, column)
    _refuse_absent(values, column, "class")
    if KINDS.get(loss, "classes") == "classes" and (
        loss in KINDS or all(isinstance(value, str | int) for value in values)
    ):
        targets, names = _classes(values, source, column)
        return targets, len(names), names
    name = f"column {column!r}"
    try:
        labels = np.array(values)
    except ValueError as error:
        raise DataError(
            f"{name} holds lists of different lengths; targets have one shape in all rows"
        ) from error
    found = as_targets(loss, {name: labels})
    return found.parts[name], found.num_outputs, found.class_names


def _refuse_absent(values: list[object], column: str, what: str) -> None:
    absent = [row for row, value in enumerate(values) if value is None]
    if absent:
        raise DataError(
            f"column {column!r} has no {what} in {len(absent)} rows (the first is row {absent[0]}); "
            f"{'label' if what == 'class' else 'fill'} or drop them"
        )


def _classes(
    values: list[object], source: arrow.Dataset, column: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return class numbers (n,) int64, and the classes' names."""
    if all(isinstance(value, str) for value in values):
        names, numbers = np.unique(np.array(values, dtype=np.str_), return_inverse=True)
        return numbers.astype(np.int64), tuple(names.tolist())
    # Python's numbers have any size, so that the largest can be told before it is stored.
    whole = [value for value in values if isinstance(value, int) and value >= 0]
    if len(whole) < len(values):
        raise DataError(
            f"column {column!r} is {source.schema.field(column).type}; expected text, or whole "
            "numbers from 0, since training.loss takes classes (for numbers choose squared-error, "
            "huber or poisson)"
        )
    num_classes = max(whole) + 1
    if num_classes > len(whole):
        raise DataError(
            f"column {column!r} holds class {num_classes - 1}, but there are only {len(whole)} "
            "rows; classes are numbered 0, 1, 2 and so on"
        )
    targets = np.array(whole, dtype=np.int64)
    return targets, tuple(str(number) for number in range(num_classes))


def _inputs(source: arrow.Dataset, column: str, wanted: np.ndarray, files: InputFiles) -> OwnInputs:
    """Return the inputs of the rows `wanted` (n, ...), reading batch by batch in file order."""
    order = np.argsort(wanted)
    kind = source.schema.field(column).type

    def build(allocate: Allocate) -> np.ndarray:
        with _readable(column):
            chunks = _chosen(source, column, wanted[order])
            return _stacked(chunks, column, kind, order, allocate)

    rows = hashlib.sha256(np.asarray(wanted, np.int64).tobytes()).hexdigest()
    with _readable(column):
        made_of = ("parquet", DECODER, column, rows, *states_of(source))
    kept = files.kept(made_of, build)
    return as_pictures(kept) if _is_picture(kind) else OwnInputs(kept)


def _stacked(
    chunks: Iterator[tuple[np.ndarray, pa.Array]],
    column: str,
    kind: pa.DataType,
    order: np.ndarray,
    allocate: Allocate,
) -> np.ndarray:
    if _is_picture(kind):
        pictures = (
            (f"row {row} of {column!r}", _content(value, row, column))
            for rows, chunk in chunks
            for row, value in zip(rows, chunk.to_pylist(), strict=True)
        )
        return stack(pictures, order.tolist(), allocate=allocate)
    return _stack_arrays(chunks, column, kind, order, allocate)


def _chosen(
    source: arrow.Dataset, column: str, wanted: np.ndarray
) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """Yield the rows of `wanted`, which ascends, and their values, batch by batch."""
    start = 0
    for batch in source.to_batches(columns=[column], batch_size=1024):
        rows = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + len(batch))]
        if len(rows):
            yield rows, batch.column(0).take(pa.array(rows - start))
        start += len(batch)


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _content(value: object, row: int, column: str) -> bytes:
    content = value["bytes"] if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise DataError(f"row {row} of {column!r} holds no picture; fill or drop it")
    return content


def _stack_arrays(
    chunks: Iterator[tuple[np.ndarray, pa.Array]],
    column: str,
    kind: pa.DataType,
    order: np.ndarray,
    allocate: Allocate,
) -> np.ndarray:
    """Return the arrays of all chunks (n, ...) float32, int32 or int64, the i-th at `order[i]`."""
    stacked, done = np.empty((0,), np.float32), 0
    for rows, chunk in chunks:
        values, shape = _numbers(chunk, column, kind)
        if done == 0:
            own = values.dtype if values.dtype.name in WHOLE else np.dtype(np.float32)
            stacked = allocate((len(order), *shape), own)
        if shape != stacked.shape[1:]:
            raise DataError(
                f"rows {rows[0]} to {rows[-1]} of {column!r} hold arrays of shape {shape}, earlier "
                f"ones {stacked.shape[1:]}; all must have one shape"
            )
        with np.errstate(over="ignore"):
            # What overflows becomes infinite, and infinite values are refused by name.
            stacked[order[done : done + len(rows)]] = values.reshape(len(rows), *shape)
        done += len(rows)
    return stacked


def _numbers(chunk: pa.Array, column: str, kind: pa.DataType) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return all numbers of a chunk in order, and the shape of one row."""
    shape: tuple[int, ...] = ()
    tensor_shape = getattr(kind, "shape", None)
    if tensor_shape is not None:
        chunk, shape = chunk.storage.flatten(), tuple(tensor_shape)
    rows = len(chunk) // max(1, int(np.prod(shape)))
    while pa.types.is_nested(chunk.type) and not pa.types.is_struct(chunk.type):
        lengths = chunk.value_lengths().unique() if chunk.null_count == 0 else pa.nulls(0)
        if len(lengths) != 1:
            raise DataError(
                f"column {column!r} holds lists of different lengths, or nulls, in one dimension; "
                "all arrays must have one shape"
            )
        shape = (*shape, int(lengths[0].as_py()))
        chunk = chunk.flatten()
    number = pa.types.is_integer(chunk.type) or pa.types.is_floating(chunk.type)
    if not shape or not number or chunk.null_count:
        raise DataError(
            f"column {column!r} is {kind}{' with nulls' if chunk.null_count else ''}; expected the "
            "bytes of pictures, or lists of numbers"
        )
    values = chunk.to_numpy(zero_copy_only=False)
    return values.reshape(rows, -1), (1, *shape) if len(shape) == 2 else shape
