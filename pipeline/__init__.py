"""pipeline knows mathematics: training, the recursion, deletion, certificates. No Ray.

run = train(RunConfig.load("configs/digits.yaml"), "runs/digits")
recollect(run)
receipt = delete(run, ["3", "17"])
model = load_release(run.path)
"""

from pipeline.approximators import recollect
from pipeline.config import RunConfig
from pipeline.forgetting import delete
from pipeline.recorder import Recorder
from pipeline.released_model import load_release
from pipeline.repair import repair
from pipeline.rundir import RunDirectory
from pipeline.training import train
from pipeline.trajectory import Trajectory

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
