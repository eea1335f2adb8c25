"""pipeline knows mathematics: training, the recursion, deletion, certificates. No Ray.

from pipeline import RunConfig, Trajectory, train
"""

from pipeline.config import RunConfig
from pipeline.trajectory import Trajectory

__all__ = ["RunConfig", "Trajectory"]
