"""A user's own arrays: an `.npz` with `x`, `y`, and optionally owners, weights and a test set.

These are `unit`, `sample_weight`, and `x_test` with `y_test`.
"""

# n samples

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.dataset import Dataset, assemble
from pipeline.data.samples import (
    WHOLE,
    Samples,
    owner_names,
    sample_weights,
    split,
    training_positions,
)
from pipeline.data.targets import as_targets
from pipeline.errors import DataError
from pipeline.suggestions import listed, nearest


def arrays(config: DataConfig, seed: int, loss: str = "cross-entropy") -> Dataset:
    """Read `data.path`; features are taken as given, targets are what `training.loss` takes.

    Labels of text or truth values are numbered in sorted order, those of `y_test` with those of `y`.
    Inputs of type int32 or int64 stay whole numbers.

    With `x_test` and `y_test` in the file, `test_fraction` is ignored.
    """
    contents = _read(config)
    parts: tuple[str, ...] = ("y", "y_test")
    labels = {name: contents[name] for name in parts if name in contents}
    targets = as_targets(loss, labels)
    contents = contents | targets.parts
    owners = _owners(contents, config) if config.unit == "user" else None
    samples = replace(
        _samples(contents, "x", "y", owners).numbered(), weights=_weights(contents, config)
    )
    if ("x_test" in contents) != ("y_test" in contents):
        raise DataError(f"{config.path} holds only one of x_test and y_test; give both or neither")
    if "x_test" in contents:
        train = samples.take(training_positions(len(samples), config, seed))
        test = _samples(contents, "x_test", "y_test", None)
        if test.inputs.shape[1:] != train.inputs.shape[1:]:
            raise DataError(
                f"x has samples of shape {train.inputs.shape[1:]}, x_test of "
                f"{test.inputs.shape[1:]}; they must agree"
            )
    else:
        train, test = split(samples, config, seed)
    return assemble(train, test, config, targets.num_outputs, targets.class_names)


def _weights(contents: dict[str, np.ndarray], config: DataConfig) -> np.ndarray | None:
    """Return the samples' weights (n,) float64, or None if the file has none."""
    column = config.weight_column or WEIGHTS
    if column in contents:
        return sample_weights(contents[column], column, len(contents["y"]))
    if config.weight_column is None:
        return None
    raise DataError(
        f"{config.path} has no array {column!r} (found: {listed(sorted(contents))}), which "
        "data.weight_column names; add it, or remove the key"
    )


def _owners(contents: dict[str, np.ndarray], config: DataConfig) -> tuple[str, ...]:
    column = config.user_column or "unit"
    if column not in contents:
        raise DataError(
            f"data.unit is user, but {config.path} has no array {column!r} (found: "
            f"{listed(sorted(contents))}); add it, or set data.user_column"
        )
    if contents[column].ndim != 1:
        raise DataError(
            f"{column} has shape {contents[column].shape}; expected one owner per sample"
        )
    return owner_names(contents[column], column)


# The array of weights, and names that mean one.
WEIGHTS = "sample_weight"
_LIKE_WEIGHTS = ("sample_weights", "weight", "weights")

# What zipfile, its codecs and numpy raise for damaged archives.
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError,
    EOFError, OSError, ValueError, KeyError, TypeError, SyntaxError, RuntimeError, MemoryError,
)  # fmt: skip

# Numbers of samples compress a few times. Small files that unpack to more are made to fill the memory.
_LARGEST_RATIO, _LARGEST_BOMB = 200, 1 << 28


def _read(config: DataConfig) -> dict[str, np.ndarray]:
    if config.path is None:
        raise DataError("source 'arrays' needs data.path: an .npz file with arrays x and y")
    path = Path(config.path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; data.path must name an .npz file")
    contents = _plain_arrays(path)
    for name in ("x", "y"):
        if name not in contents:
            found = listed(sorted(contents)) or "nothing"
            raise DataError(f"{path} has no array {name!r} (found: {found}); it needs x and y")
    _refuse_strange(path, contents, config)
    return contents


def _refuse_strange(path: Path, contents: dict[str, np.ndarray], config: DataConfig) -> None:
    """Refuse arrays with no meaning here: a misspelt x_test would change what trains."""
    owners, weights = config.user_column or "unit", config.weight_column or WEIGHTS
    known = ("x", "y", "x_test", "y_test", owners, weights)
    for name, array in contents.items():
        if name in _LIKE_WEIGHTS and name not in known and config.weight_column is None:
            raise DataError(
                f"{path} holds {name!r}, which training would ignore; to weigh the samples set "
                f"data.weight_column: {name}, or remove the array to weigh all alike"
            )
        # Further columns of the samples may be there; one of them may be the owners of another run.
        is_column = array.ndim == 1 and len(array) == contents["y"].size
        if name not in known and not is_column:
            raise DataError(
                f"{path} holds an array {name!r} of shape {array.shape}, which {nearest(name, known)}; "
                "rename or remove it"
            )


def _plain_arrays(path: Path) -> dict[str, np.ndarray]:
    contents: dict[str, np.ndarray] = {}
    name = ""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.lib.npyio.NpzFile):
                assert archive.zip is not None
                _refuse_bombs(path, archive.zip.infolist())
                for name in archive.files:
                    contents[name] = archive[name]
    except DataError:
        raise
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} is not a readable .npz of plain arrays: {f'array {name!r}: ' * bool(name)}{reason}"
        ) from error
    if isinstance(archive, np.ndarray):
        raise DataError(f"{path} is a single array; save x and y with numpy.savez")
    for name, value in contents.items():
        # numpy hands out a member that is no .npy as its bytes.
        if not isinstance(value, np.ndarray):
            raise DataError(f"{path} is not a readable .npz of plain arrays: {name!r} is none")
    return contents


def _refuse_bombs(path: Path, members: Iterable[zipfile.ZipInfo]) -> None:
    for member in members:
        size, packed = member.file_size, max(1, member.compress_size)
        if size > _LARGEST_BOMB and size > _LARGEST_RATIO * packed:
            raise DataError(
                f"{path} unpacks {member.filename!r} from {packed} to {size} bytes, which no data of "
                "samples does; save them anew with numpy.savez"
            )


def _samples(
    contents: dict[str, np.ndarray], x_name: str, y_name: str, owners: tuple[str, ...] | None
) -> Samples:
    x, y = contents[x_name], contents[y_name]
    if x.ndim < 2 or 0 in x.shape[1:] or x.dtype.kind not in "biuf":
        raise DataError(
            f"{x_name} has shape {x.shape} and type {x.dtype}; expected numbers of shape "
            "(samples, features) or (samples, channels, height, width)"
        )
    if len(x) != len(y):
        raise DataError(f"{x_name} holds {len(x)} samples, {y_name} {len(y)} labels")
    if owners is not None and len(owners) != len(y):
        raise DataError(f"there are {len(owners)} owners for {len(y)} samples")
    with np.errstate(over="ignore"):
        # What overflows becomes infinite, and infinite values are refused by name.
        return Samples(x.astype(np.int64 if x.dtype.name in WHOLE else np.float32), y, owners)
