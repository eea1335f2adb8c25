"""Everything that fixes a training run, on disk: schedule, checkpoints, digest.

The run is replayed, not stored: parameters are kept every `checkpoint_every` steps, and a replay
that reaches a checkpoint compares itself with it.

Files in the folder:

- `schedule.parquet`: one row per step: `step`, `learning_rate`, `clip_factor` (min(1, C/|g|)),
  `sample_ids` (list of int64, in the order of the minibatch).
- `checkpoint-<t>.safetensors`: the parameters *before* step t, by name; with momentum the buffers
  too, as `momentum:<name>`. The last one, t = T, is the trained model.
- `frozen.safetensors`, `features.safetensors`: what no step changes, where there is any
  (`pipeline/trained_part.py`).
- `digest`: blake3 (hex) over all of these and over what else decides rows to the last bit: the form
  of the HVPs, the chunk, the thread count, the conventions and who owns which sample.
"""

# P parameters, T steps

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from blake3 import blake3
from torch import Tensor

from pipeline import tensor_file
from pipeline.errors import TrajectoryError
from pipeline.objective import SgdState
from pipeline.parameters import ParameterLayout
from pipeline.schedule import Schedule
from storage.files import write_atomically

_MOMENTUM = "momentum:"
_START = ("frozen.safetensors", "features.safetensors")


@dataclass(frozen=True)
class RecordedStep:
    """One step as it was taken.

    Attributes:
        step: t.
        sample_ids: Positions in the training set (B,), int64.
        learning_rate: eta_t.
        parameters: w_t (P,), float32, detached, *before* the step, in `named_parameters()` order,
            each tensor row-major.
    """

    step: int
    sample_ids: Tensor
    learning_rate: float
    parameters: Tensor


@dataclass(frozen=True)
class Trajectory:
    """A recorded run in a folder."""

    folder: Path
    schedule: Schedule
    clip_factors: tuple[float, ...]
    checkpoints: tuple[int, ...]
    digest: str

    @staticmethod
    def open(folder: str | Path) -> "Trajectory":
        """Read a finished trajectory.

        Raises:
            TrajectoryError: If the folder holds none, or a file is missing or damaged.
        """
        folder = Path(folder)
        if not (folder / "digest").is_file():
            raise TrajectoryError(
                f"{folder} holds no finished trajectory; run `unlearn train` first"
            )
        stored = (folder / "digest").read_bytes().split()
        if len(stored) != 2 or stored[1].decode(errors="replace") != _digest(folder, stored[0]):
            raise TrajectoryError(
                f"{folder} does not agree with its digest: a file was changed after training; "
                "restore it from a backup, or train again"
            )
        schedule, clip_factors = _read_schedule(folder)
        digest = stored[1].decode("ascii")
        return Trajectory(folder, schedule, clip_factors, _checkpoints(folder), digest)

    @property
    def num_steps(self) -> int:
        """T."""
        return self.schedule.num_steps

    def state_before(self, step: int) -> SgdState:
        """Return the parameters (and momentum buffer) at a checkpoint."""
        return read_checkpoint(self.folder, step)[0]

    def layout(self) -> ParameterLayout:
        """Return names and shapes of the parameters, without the model."""
        return read_checkpoint(self.folder, self.num_steps)[1]

    def trained(self) -> Tensor:
        """Return w_T (P,)."""
        return self.state_before(self.num_steps).parameters_P

    def nearest_checkpoint(self, step: int) -> int:
        """Return the last checkpoint at or before `step`."""
        return max(t for t in self.checkpoints if t <= step)

    def steps(self) -> Iterator[RecordedStep]:
        """Replay the run from its beginning and yield every step, parameters before it.

        Reads `config.yaml` beside the folder for model and data.
        """
        # The replay needs data and model, which need this module for their own type hints only.
        from pipeline.replay import Replay
        from pipeline.rundir import RunDirectory

        problem = RunDirectory.open(self.folder.parent).problem()
        with problem.arithmetic():
            for step, context in Replay.start(problem, self).steps(self.num_steps):
                yield RecordedStep(
                    step,
                    self.schedule.sample_ids[step],
                    self.schedule.learning_rates[step],
                    context.parameters_P.detach().to("cpu", torch.float32).clone(),
                )


def write_schedule(folder: Path, schedule: Schedule, clip_factors: list[float]) -> None:
    """Write `schedule.parquet`."""
    table = pa.table(
        {
            "step": pa.array(range(schedule.num_steps), pa.int64()),
            "learning_rate": pa.array(schedule.learning_rates, pa.float64()),
            "clip_factor": pa.array(clip_factors, pa.float64()),
            "sample_ids": pa.array(
                [ids.tolist() for ids in schedule.sample_ids], pa.list_(pa.int64())
            ),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomically(folder / "schedule.parquet", sink.getvalue().to_pybytes(), mode=0o600)


def _read_schedule(folder: Path) -> tuple[Schedule, tuple[float, ...]]:
    try:
        table = pq.read_table(folder / "schedule.parquet")
        ids = table.column("sample_ids").combine_chunks()
        rates = table.column("learning_rate").to_pylist()
        clip_factors = table.column("clip_factor").to_pylist()
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise TrajectoryError(f"{folder / 'schedule.parquet'} cannot be read: {error}") from error
    flat = torch.from_numpy(ids.flatten().to_numpy().copy())
    sizes = torch.from_numpy(ids.value_lengths().to_numpy().astype("int64"))
    return Schedule(flat.split(sizes.tolist()), tuple(rates)), tuple(clip_factors)


def write_checkpoint(folder: Path, step: int, state: SgdState, layout: ParameterLayout) -> None:
    """Write the parameters before `step` as safetensors."""
    tensors = layout.unflatten(state.parameters_P.cpu())
    if state.buffer_P is not None:
        buffers = layout.unflatten(state.buffer_P.cpu())
        tensors |= {_MOMENTUM + name: value for name, value in buffers.items()}
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    tensor_file.write(checkpoint_path(folder, step), contiguous, {"names": layout.names})


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the parameters before `step` lie."""
    return folder / f"checkpoint-{step}.safetensors"


def read_checkpoint(folder: Path, step: int) -> tuple[SgdState, ParameterLayout]:
    """Return state and layout of a checkpoint, on the CPU.

    Raises:
        TrajectoryError: If it is missing or damaged.
    """
    try:
        tensors, facts = tensor_file.read(checkpoint_path(folder, step))
    except tensor_file.DamagedFileError as error:
        raise TrajectoryError(str(error)) from error
    if "names" not in facts:
        raise TrajectoryError(f"{checkpoint_path(folder, step)} is no checkpoint")
    names = tuple(facts["names"])
    layout = ParameterLayout(names, tuple(tuple(tensors[name].shape) for name in names))
    parameters_P = torch.cat([tensors[name].reshape(-1) for name in names])
    buffers = [
        tensors[_MOMENTUM + name].reshape(-1) for name in names if _MOMENTUM + name in tensors
    ]
    return SgdState(parameters_P, torch.cat(buffers) if buffers else None), layout


def _checkpoints(folder: Path) -> tuple[int, ...]:
    steps = []
    for path in folder.glob("checkpoint-*.safetensors"):
        step = path.stem.removeprefix("checkpoint-")
        if not step.isdecimal():
            raise TrajectoryError(f"{path} is no checkpoint of this run; move it elsewhere")
        steps.append(int(step))
    return tuple(sorted(steps))


def finish(folder: Path, numerics: str) -> str:
    """Write the digest over the folder and `numerics`, one word of ASCII; return it."""
    digest = _digest(folder, numerics.encode("ascii"))
    write_atomically(folder / "digest", f"{numerics} {digest}\n".encode("ascii"))
    return digest


def recorded_digest(folder: Path) -> str | None:
    """Return the digest that a folder bears, unchecked; None if it bears none."""
    try:
        words = (folder / "digest").read_bytes().split()
    except FileNotFoundError:
        return None
    return words[1].decode("ascii", "replace") if len(words) == 2 else None


def _digest(folder: Path, numerics: bytes) -> str:
    hasher = blake3(numerics)
    names = [f"checkpoint-{t}.safetensors" for t in _checkpoints(folder)]
    names += [name for name in _START if (folder / name).is_file()]
    for name in ["schedule.parquet", *names]:
        hasher.update(name.encode("ascii"))
        try:
            hasher.update_mmap(folder / name)
        except OSError as error:
            raise TrajectoryError(f"{folder / name} cannot be read: {error}") from error
    return hasher.hexdigest()
