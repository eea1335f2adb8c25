"""Everything that fixes a training run, on disk: schedule, checkpoints, digest.

The run is replayed, not stored: parameters are kept every `checkpoint_every` steps, and a replay
that reaches a checkpoint compares itself with it.

`pipeline/run/checkpoints.py` says which files lie in the folder.
"""

# P parameters, T steps

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.errors import TrajectoryError
from pipeline.models.parameters import ParameterLayout
from pipeline.run.checkpoints import SCHEDULE, check, checkpoint_steps, read_checkpoint
from pipeline.run.schedule import Schedule
from storage.durable_write import write_atomically


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
        digest = check(folder)
        schedule, clip_factors = _read_schedule(folder)
        return Trajectory(folder, schedule, clip_factors, checkpoint_steps(folder), digest)

    @property
    def num_steps(self) -> int:
        """T."""
        return self.schedule.num_steps

    def parameters_before(self, step: int) -> Tensor:
        """Return the parameters (P,) at a checkpoint, on the CPU.

        Raises:
            TrajectoryError: If there is no checkpoint before `step`, or it is damaged.
        """
        return torch.from_numpy(read_checkpoint(self.folder, step).parameters_P)

    def layout(self) -> ParameterLayout:
        """Return names and shapes of the parameters, without the model."""
        stored = read_checkpoint(self.folder, self.num_steps)
        return ParameterLayout(stored.names, stored.shapes)

    def trained(self) -> Tensor:
        """Return w_T (P,)."""
        return self.parameters_before(self.num_steps)

    def steps(self) -> Iterator[Any]:
        """Replay the run this lies in; the name in version 0.1 of `pipeline.replay_steps`."""
        from pipeline import replay_steps

        message = "Trajectory.steps is now pipeline.replay_steps"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return replay_steps(self.folder.parent)

    def nearest_checkpoint(self, step: int) -> int:
        """Return the last checkpoint at or before `step`."""
        return max(t for t in self.checkpoints if t <= step)


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
    write_atomically(folder / SCHEDULE, sink.getvalue().to_pybytes(), mode=0o600)


def scheduled_samples(folder: Path) -> np.ndarray:
    """Return the positions of the samples that the steps of a trajectory see, ascending, int64.

    Raises:
        TrajectoryError: If the schedule cannot be read.
    """
    positions: np.ndarray = torch.cat(_read_schedule(folder)[0].sample_ids).unique().numpy()
    return positions


def _read_schedule(folder: Path) -> tuple[Schedule, tuple[float, ...]]:
    try:
        table = pq.read_table(folder / SCHEDULE)
        ids = table.column("sample_ids").combine_chunks()
        rates = table.column("learning_rate").to_pylist()
        clip_factors = table.column("clip_factor").to_pylist()
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise TrajectoryError(f"{folder / 'schedule.parquet'} cannot be read: {error}") from error
    flat = torch.from_numpy(ids.flatten().to_numpy().copy())
    sizes = torch.from_numpy(ids.value_lengths().to_numpy().astype("int64"))
    return Schedule(flat.split(sizes.tolist()), tuple(rates)), tuple(clip_factors)
