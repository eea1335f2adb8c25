"""Named tensors and facts in one safetensors file that notices damage.

The metadata hold a single entry, because safetensors writes several in an order of its own, and
equal content must give equal bytes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from storage.files import write_atomically

Facts = dict[str, Any]


class DamagedFileError(ValueError):
    """The file cannot be read, or its content does not agree with its digest."""


def write(path: Path, tensors: dict[str, Tensor], facts: Facts) -> None:
    """Write contiguous tensors on the CPU and facts that JSON can hold."""
    entry = json.dumps({"facts": facts, "digest": _digest(tensors, facts)}, sort_keys=True)
    # Parameters and rows describe people: their owner alone reads them.
    write_atomically(path, save(tensors, metadata={"entry": entry}), mode=0o600)


def read(path: Path) -> tuple[dict[str, Tensor], Facts]:
    """Return what `write` was given.

    Raises:
        DamagedFileError: If the file is missing, is none of ours, or was altered.
    """
    try:
        with safe_open(path, framework="pt") as file:
            entry = json.loads(file.metadata()["entry"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts, stored = entry["facts"], entry["digest"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from error
    if stored != _digest(tensors, facts):
        raise DamagedFileError(f"{path} is damaged: its digest does not agree")
    return tensors, facts


def _digest(tensors: dict[str, Tensor], facts: Facts) -> str:
    hasher = blake3(json.dumps(facts, sort_keys=True).encode("ascii"))
    for name in sorted(tensors):
        hasher.update(name.encode())
        # blake3 takes bytes alone; the view copies nothing.
        hasher.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()
