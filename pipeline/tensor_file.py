"""Named arrays in safetensors files: the one writer, and files that notice damage.

Arrays are written in the order given, which safetensors' own writer does not keep, and chunk by
chunk, so that no second copy of them is ever in memory. Files with facts hold a single entry of
metadata, and equal content gives equal bytes.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from storage.durable_write import Bytes, write_atomically

Facts = dict[str, Any]
Array = NDArray[Any]

# numpy's name of a data type -> safetensors' name
_TENSOR_TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


class DamagedFileError(ValueError):
    """The file cannot be read, or its content does not agree with its digest."""


def header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """Return the head of a safetensors file whose tensors follow in this order.

    Args:
        tensors: Name, numpy data type and shape of each.
        metadata: Texts to keep in the file.

    Raises:
        ValueError: If a data type has no name in safetensors.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, dtype, shape in tensors:
        if dtype not in _TENSOR_TYPES:
            raise ValueError(
                f"tensor {name!r} has type {dtype}; expected {', '.join(_TENSOR_TYPES)}"
            )
        start, end = end, end + int(np.prod(shape)) * np.dtype(dtype).itemsize
        entries[name] = {
            "dtype": _TENSOR_TYPES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write(path: Path, arrays: Mapping[str, Array], facts: Facts) -> None:
    """Write arrays and facts that JSON can hold; `read` notices any change."""
    entry = json.dumps({"facts": facts, "digest": _digest(arrays, facts)}, sort_keys=True)
    _write(path, arrays, {"entry": entry})


def write_plain(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays alone, for a file that another digest covers."""
    _write(path, arrays, {})


def _write(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # ascontiguousarray makes a scalar a vector; the shape is that of the array given.
    specs = [(name, array.dtype.name, arrays[name].shape) for name, array in whole.items()]
    parts: list[Bytes] = [header(specs, metadata), *map(_bytes, whole.values())]
    # Parameters and rows describe people: their owner alone reads them.
    write_atomically(path, parts, mode=0o600)


def read(path: Path) -> tuple[dict[str, Array], Facts]:
    """Return what `write` was given.

    Raises:
        DamagedFileError: If the file is missing, is none of ours, or was altered.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            entry = json.loads(file.metadata()["entry"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts, stored = entry["facts"], entry["digest"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from error
    if stored != _digest(arrays, facts):
        raise DamagedFileError(f"{path} is damaged: its digest does not agree")
    return arrays, facts


def read_plain(path: Path) -> dict[str, Array]:
    """Return the arrays of a safetensors file.

    Raises:
        DamagedFileError: If the file cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from error


def _digest(arrays: Mapping[str, Array], facts: Facts) -> str:
    hasher = blake3(json.dumps(facts, sort_keys=True).encode("ascii"))
    for name in sorted(arrays):
        hasher.update(name.encode())
        hasher.update(_bytes(np.ascontiguousarray(arrays[name])))
    return hasher.hexdigest()


def _bytes(array: Array) -> Bytes:
    """Return the bytes of a contiguous array; the view copies nothing."""
    view: Bytes = array.reshape(-1).view(np.uint8).data
    return view
