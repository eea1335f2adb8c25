"""pipeline knows mathematics: training, the recursion, deletion, certificates. No Ray.

run = train(RunConfig.load("configs/digits.yaml"), "runs/digits")
recollect(run)
receipt = delete(run, ["3", "17"])
"""

from pipeline.approximators import recollect
from pipeline.config import RunConfig
from pipeline.forgetting import delete
from pipeline.rundir import RunDirectory
from pipeline.training import train
from pipeline.trajectory import Trajectory

__all__ = ["RunConfig", "RunDirectory", "Trajectory", "delete", "recollect", "train"]
