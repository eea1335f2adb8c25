"""pipeline knows mathematics: training, the recursion, deletion, certificates. No Ray.

run = train(RunConfig.load("configs/digits.yaml"), "runs/digits")
recollect(run)
receipt = delete(run, ["3", "17"])
model = load_release(run.path)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.forgetting import delete
    from pipeline.passage import recollect
    from pipeline.recorder import Recorder
    from pipeline.releases.released_model import load_release
    from pipeline.repairing import repair
    from pipeline.rundir import RunDirectory
    from pipeline.training import train
    from pipeline.trajectory import Trajectory

# Said here, not asked of the installation: a cluster is sent the packages as a folder.
__version__ = "0.1.0"

__all__ = [
    "Recorder",
    "RunConfig",
    "RunDirectory",
    "Trajectory",
    "delete",
    "load_release",
    "recollect",
    "repair",
    "train",
]

_MODULES = {
    "Recorder": "recorder",
    "RunConfig": "config",
    "RunDirectory": "rundir",
    "Trajectory": "trajectory",
    "delete": "forgetting",
    "load_release": "releases.released_model",
    "recollect": "passage",
    "repair": "repairing",
    "train": "training",
}


def __getattr__(name: str) -> object:
    """Import on first use, so that the recursion alone needs neither Zarr nor Arrow."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
