"""A trained run of seconds: real digits, softmax regression, blocks smaller than the run."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.approximators.precompute import precompute
from pipeline.config import RunConfig
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.training.train import record
from storage.store import ApproximatorStore

NUM_UNITS = 22
BLOCK = 6
NUM_BLOCKS = 4
# 22 samples in minibatches of 5: 5 steps an epoch.
NUM_STEPS = 20

PLAIN: dict[str, Any] = {
    "name": "small",
    "data": {"source": "digits", "num_train": 40, "sample_ids": "position"},
    "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.1, "l2": 0.01},
}
"""Of a run that leaves everything else as it is by default."""


def config(**changes: dict[str, Any]) -> RunConfig:
    """The run's configuration; `changes` replace or extend whole sections."""
    values: dict[str, Any] = {
        "name": "small",
        # Units are named 0 to 21, as tests expect.
        "data": {"source": "digits", "num_train": NUM_UNITS, "sample_ids": "position"},
        "training": {"epochs": 4, "batch_size": 5, "learning_rate": 0.1, "l2": 0.01},
        "recursion": {"chunk": 4},
        "storage": {"block": BLOCK, "encoding": "float32"},
        "cluster": {"save_every": 3},
    }
    for section, content in changes.items():
        values[section] = values.get(section, {}) | content
    return RunConfig.from_values(values)


def trained_run(folder: Path, **changes: dict[str, Any]) -> RunDirectory:
    """Train into `folder`, without Ray."""
    problem = Problem.of(config(**changes))
    run = RunDirectory.create(folder, problem)
    record(problem, run.trajectory_folder)
    return run


def rows_of(run: RunDirectory) -> npt.NDArray[np.float32]:
    """All stored rows, (N, P)."""
    store = ApproximatorStore.open(run.store_url)
    return store.read_rows_at(range(len(store.units)))


def rows_of_remaining(run: RunDirectory) -> npt.NDArray[np.float32]:
    """The stored rows of all units that are not erased."""
    store = ApproximatorStore.open(run.store_url)
    return store.read_rows([unit for unit in store.units if unit])


def serial_rows(folder: Path, **changes: dict[str, Any]) -> npt.NDArray[np.float32]:
    """The rows of the same run computed in this process."""
    run = trained_run(folder, **changes)
    precompute(run)
    return rows_of(run)
