"""The small finished runs that cases copy: fresh, after a deletion, and the backup of the latter."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from cluster.upkeep import back_up
from pipeline import RunConfig, RunDirectory, delete, precompute, train

NUM_UNITS = 12
DELETED = ["1", "3"]


def write_data(path: Path, num_units: int, num_features: int = 4) -> None:
    """Write an `.npz` whose rows are the units, with test samples of its own."""
    generator = np.random.default_rng(5)
    x = generator.normal(size=(num_units + 10, num_features)).astype(np.float32)
    y = np.arange(num_units + 10) % 3
    n = num_units
    np.savez(path, x=x[:n], y=y[:n], x_test=x[n:], y_test=y[n:])


def values_of(data: Path, num_units: int) -> dict[str, Any]:
    """The configuration of a run of one pass over the data."""
    return {
        "data": {"source": "arrays", "path": str(data)},
        "training": {
            "epochs": 1,
            "batch_size": max(4, num_units // 20),
            "learning_rate": 0.1,
            "l2": 0.01,
        },
        "storage": {"encoding": "float32"},
    }


def make_base(folder: Path) -> Path:
    """Make the runs in a folder and return it; the environment says where the key lies."""
    write_data(folder / "data.npz", NUM_UNITS)
    run = train(RunConfig.from_values(values_of(folder / "data.npz", NUM_UNITS)), folder / "fresh")
    precompute(run)
    shutil.copytree(folder / "fresh", folder / "deleted")
    deleted = RunDirectory.open(folder / "deleted")
    delete(deleted, DELETED)
    back_up(deleted, folder / "backup")
    return folder
