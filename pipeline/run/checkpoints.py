"""A trajectory's folder as bytes and arrays: checkpoints, frozen tensors, digests. Needs no torch.

Files in the folder:

- `schedule.parquet`: one row per step: `step`, `learning_rate`, `clip_factor` (min(1, C/|g|)),
  `sample_ids` (list of int64, in the order of the minibatch).
- `checkpoint-<t>.safetensors`: the parameters *before* step t, by name; with momentum the buffers
  too, as `momentum:<name>`. The last one, t = T, is the trained model.
- `frozen.safetensors`, `features.safetensors`: what no step changes, where there is any
  (`pipeline/run/trained_part.py`).
- `settings.json`: what training fixes (`pipeline/run/settings.py`).
- `samples.safetensors`: the samples' ids and units, and which rows of the source do not train
  (`pipeline/run/sample_record.py`); not in runs of version 0.1.0.
- `digest`: the numerics (what else decides rows to the last bit: the form of the HVPs, the chunk, the
  thread count, the conventions and who owns which sample) and the trajectory's digest, then one line
  for each file: its BLAKE3 digest and its name. The trajectory's digest covers the numerics and these
  lines, so that a reader of one file needs to read no other. Runs of version 0.1.0 have the first line
  alone, and their digest covers the bytes of all files.
"""

# P parameters

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pipeline import tensor_file
from pipeline.errors import TrajectoryError
from pipeline.run.settings import SETTINGS
from storage.durable_write import file_digest, write_atomically

SCHEDULE, FROZEN, FEATURES = "schedule.parquet", "frozen.safetensors", "features.safetensors"
SAMPLES = "samples.safetensors"
# Beside the trajectory, outside its digest: large inputs in their own type.
INPUTS = "inputs"
_OPTIONAL = (FROZEN, FEATURES, SAMPLES, SETTINGS)
_CHECKPOINT = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training before some step.

    Attributes:
        names: Of the trained tensors, in `named_parameters()` order.
        shapes: Of each.
        parameters_P: w_t, float32 or float64 (P,), each tensor row-major.
        buffers: What the optimizer keeps, by name ("momentum"), like `parameters_P`.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    parameters_P: NDArray[np.floating]
    buffers: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the parameters before `step` lie."""
    return folder / f"{_CHECKPOINT}{step}.safetensors"


def checkpoint_steps(folder: Path) -> tuple[int, ...]:
    """Return the steps that a folder has checkpoints of, in order.

    Raises:
        TrajectoryError: If a file is named like a checkpoint and is none.
    """
    steps = []
    for path in folder.glob(f"{_CHECKPOINT}*.safetensors"):
        step = path.stem.removeprefix(_CHECKPOINT)
        if not step.isdecimal():
            raise TrajectoryError(f"{path} is no checkpoint of this run; move it elsewhere")
        steps.append(int(step))
    return tuple(sorted(steps))


def write_checkpoint(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    """Write the state before `step`."""
    tensors = {}
    vectors = {"": checkpoint.parameters_P}
    vectors |= {f"{buffer}:": values for buffer, values in checkpoint.buffers.items()}
    for prefix, vector_P in vectors.items():
        start = 0
        for name, shape in zip(checkpoint.names, checkpoint.shapes, strict=True):
            stop = start + int(np.prod(shape))
            tensors[prefix + name] = vector_P[start:stop].reshape(shape)
            start = stop
    tensor_file.write(checkpoint_path(folder, step), tensors, {"names": checkpoint.names})


def read_checkpoint(folder: Path, step: int) -> Checkpoint:
    """Return the state before `step`.

    Raises:
        TrajectoryError: If its file is missing or damaged.
    """
    path = checkpoint_path(folder, step)
    try:
        tensors, facts = tensor_file.read(path)
    except tensor_file.DamagedFileError as error:
        raise TrajectoryError(str(error)) from error
    if "names" not in facts:
        raise TrajectoryError(f"{path} is no checkpoint")
    names = tuple(facts["names"])
    shapes = tuple(tensors[name].shape for name in names)
    # A tensor's own name may hold a colon; no parameter is named like a buffer of another.
    prefixes = {key.removesuffix(names[0]) for key in tensors if key.endswith(":" + names[0])}
    return Checkpoint(
        names,
        shapes,
        _flat(tensors, names),
        {prefix[:-1]: _flat(tensors, names, prefix) for prefix in sorted(prefixes - set(names))},
    )


def _flat(
    tensors: Mapping[str, NDArray[np.floating]], names: tuple[str, ...], prefix: str = ""
) -> NDArray[np.floating]:
    return np.concatenate([tensors[prefix + name].reshape(-1) for name in names])


def read_frozen(folder: Path) -> dict[str, NDArray[np.generic]]:
    """Return the tensors of a recorded run that no step changes, by name; none if it has none.

    Raises:
        TrajectoryError: If the file is damaged.
    """
    return read_plain(folder / FROZEN)


def read_plain(path: Path) -> dict[str, NDArray[np.generic]]:
    """Return the tensors of a safetensors file, by name; none if there is no such file.

    Raises:
        TrajectoryError: If the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return tensor_file.read_plain(path)
    except tensor_file.DamagedFileError as error:
        raise TrajectoryError(f"{error}; restore it") from error


def finish(folder: Path, numerics: str) -> str:
    """Write `digest` over the folder's files and `numerics`, one word of ASCII; return it."""
    files = {name: file_digest(folder / name) for name in _names(folder)}
    digest = _root(numerics, files)
    lines = [f"{numerics} {digest}", *(f"{found} {name}" for name, found in files.items())]
    write_atomically(folder / "digest", "".join(f"{line}\n" for line in lines).encode("ascii"))
    return digest


def recorded_digest(folder: Path) -> str | None:
    """Return the digest that a folder bears, unchecked; None if it bears none."""
    try:
        words = (folder / "digest").read_bytes().split(b"\n")[0].split()
    except FileNotFoundError:
        return None
    return words[1].decode("ascii", "replace") if len(words) == 2 else None


def is_recorded(folder: Path, name: str) -> bool:
    """Return whether a file belongs to a trajectory: it lies there, or the digest lists it.

    A file that is listed and gone must be missed by whoever checks it, not passed over.
    """
    if (folder / name).is_file():
        return True
    return (folder / "digest").is_file() and name in (_recorded(folder)[2] or ())


def check(folder: Path, *needed: str) -> str:
    """Compare files with the folder's digest; return the digest.

    Args:
        folder: Of a finished trajectory.
        needed: Names of the files to compare; none means all of them. A folder of version 0.1.0 is
            compared whole in any case.

    Raises:
        TrajectoryError: If the folder holds no finished trajectory, or was changed.
    """
    numerics, digest, files = _recorded(folder)
    if files is None:
        if digest != _digest_of_bytes(folder, numerics):
            raise _changed(folder, "a file")
        return digest
    if digest != _root(numerics, files):
        raise _changed(folder, "the file digest")
    if not needed and sorted(files) != sorted(_names(folder)):
        raise _changed(folder, "the set of files")
    for name in needed or files:
        if name not in files or not (folder / name).is_file():
            raise _changed(folder, f"{name}, which is missing,")
        if file_digest(folder / name) != files[name]:
            raise _changed(folder, name)
    return digest


def recorded_steps(folder: Path) -> tuple[int, ...]:
    """Return the steps that a finished trajectory has checkpoints of, as its digest lists them.

    Raises:
        TrajectoryError: If the folder holds no finished trajectory, or its list is no such list.
    """
    _, _, files = _recorded(folder)
    if files is None:
        steps = checkpoint_steps(folder)
    else:
        stems = [name.partition(".")[0] for name in files if name.startswith(_CHECKPOINT)]
        numbers = [stem.removeprefix(_CHECKPOINT) for stem in stems]
        steps = tuple(sorted(int(number) for number in numbers if number.isdecimal()))
    if not steps:
        raise _changed(folder, "its list of checkpoints")
    return steps


def _recorded(folder: Path) -> tuple[str, str, dict[str, str] | None]:
    """Return numerics, digest, and the digest of each file; None in place of these in version 0.1.0."""
    if not (folder / "digest").is_file():
        raise TrajectoryError(f"{folder} holds no finished trajectory; run `unlearn train` first")
    text = (folder / "digest").read_bytes().decode("ascii", "replace")
    first, *lines = text.splitlines() or [""]
    numerics, _, digest = first.partition(" ")
    if not lines:
        return numerics, digest, None
    return (
        numerics,
        digest,
        {name: found for found, _, name in (line.partition(" ") for line in lines)},
    )


def _changed(folder: Path, what: str) -> TrajectoryError:
    return TrajectoryError(
        f"{folder} does not agree with its digest: {what} was changed after training; restore it "
        "from a backup, or train again"
    )


def _names(folder: Path) -> list[str]:
    """Return the names of the files that a digest covers, in a fixed order."""
    names = [checkpoint_path(folder, step).name for step in checkpoint_steps(folder)]
    names += [name for name in _OPTIONAL if (folder / name).is_file()]
    return [SCHEDULE, *names]


def _root(numerics: str, files: Mapping[str, str]) -> str:
    lines = [numerics, *(f"{name} {found}" for name, found in sorted(files.items()))]
    return blake3("\n".join(lines).encode("ascii", "replace")).hexdigest()


def _digest_of_bytes(folder: Path, numerics: str) -> str:
    """Return the digest as version 0.1.0 took it: over names and contents of all files."""
    hasher = blake3(numerics.encode("ascii", "replace"))
    for name in _names(folder):
        hasher.update(name.encode("ascii"))
        try:
            hasher.update_mmap(folder / name)
        except OSError as error:
            raise TrajectoryError(f"{folder / name} cannot be read: {error}") from error
    return hasher.hexdigest()
