"""pipeline knows mathematics: training, the recursion, deletion, certificates. No Ray.

from pipeline import RunConfig, delete, load_release, recollect, train
run = train(RunConfig.load("configs/digits.yaml"), "runs/digits")
recollect(run)
delete(run, [3, 17])
model = load_release(run.path)
"""

from pipeline.approximators import recollect
from pipeline.config import RunConfig
from pipeline.forgetting import delete
from pipeline.recorder import Recorder
from pipeline.released_model import load_release
from pipeline.training import train
from pipeline.trajectory import Trajectory

__all__ = [
    "Recorder",
    "RunConfig",
    "Trajectory",
    "delete",
    "load_release",
    "recollect",
    "train",
]
