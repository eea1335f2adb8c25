"""pipeline knows mathematics: training, the recursion, deletion, certificates. No Ray.

run = train(RunConfig.load("configs/digits.yaml"), "runs/digits")
precompute(run)
receipt = delete(run, ["3", "17"])
model = load_release(run.path)
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.approximators.precompute import precompute
    from pipeline.approximators.repair import repair
    from pipeline.approximators.retrain import retrain
    from pipeline.config import RunConfig
    from pipeline.deletion.delete import delete
    from pipeline.deletion.released_model import load_release
    from pipeline.deletion.requests import DeletionRequest
    from pipeline.run.directory import RunDirectory
    from pipeline.run.trajectory import Trajectory
    from pipeline.training.recorder import Recorder
    from pipeline.training.replay import replay_steps
    from pipeline.training.train import train

# Said here, not asked of the installation: a cluster is sent the packages as a folder.
__version__ = "0.2.0"

__all__ = [
    "DeletionRequest",
    "Recorder",
    "RunConfig",
    "RunDirectory",
    "Trajectory",
    "delete",
    "load_release",
    "precompute",
    "repair",
    "replay_steps",
    "retrain",
    "train",
]

_MODULES = {
    "DeletionRequest": "deletion.requests",
    "Recorder": "training.recorder",
    "RunConfig": "config",
    "RunDirectory": "run.directory",
    "Trajectory": "run.trajectory",
    "delete": "deletion.delete",
    "load_release": "deletion.released_model",
    "precompute": "approximators.precompute",
    "repair": "approximators.repair",
    "replay_steps": "training.replay",
    "retrain": "approximators.retrain",
    "train": "training.train",
}
# Names of version 0.1, which still work for this one.
_RENAMED = {"recollect": "precompute"}


def __getattr__(name: str) -> object:
    """Import on first use, so that the recursion alone needs neither Zarr nor Arrow."""
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(f"pipeline.{name} is now pipeline.{new}", DeprecationWarning, stacklevel=2)
        name = new
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
