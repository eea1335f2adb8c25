"""What a cluster has, and what each worker gets of it."""

from dataclasses import dataclass

from cluster.errors import ResourcesError
from pipeline.config import ClusterConfig


@dataclass(frozen=True)
class Resources:
    """Totals of a cluster."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Placement:
    """One worker's share."""

    cpus: int
    gpus: float


def place(config: ClusterConfig, available: Resources, num_blocks: int) -> tuple[int, Placement]:
    """Return how many workers to start and what each gets.

    Args:
        config: What was asked for.
        available: What the cluster has.
        num_blocks: Blocks to compute; more workers than that would be idle.

    Raises:
        ResourcesError: If more is asked for than exists; the message says what exists.

    >>> place(ClusterConfig(), Resources(cpus=8, gpus=0), num_blocks=3)
    (3, Placement(cpus=1, gpus=0.0))
    """
    cpus = config.cpus_per_worker
    if config.gpus_per_worker == "auto":
        gpus = 1.0 if available.gpus >= 1 else 0.0
    else:
        gpus = float(config.gpus_per_worker)
    fitting = int(available.cpus // cpus)
    if gpus:
        fitting = min(fitting, int(available.gpus / gpus + 1e-9))
    wanted = fitting if config.num_workers == "auto" else config.num_workers
    if fitting < 1 or (config.num_workers != "auto" and wanted > fitting):
        raise ResourcesError(
            f"{max(1, wanted)} workers with {cpus} CPUs and {gpus:g} GPUs each were asked for, but the "
            f"cluster has {available.cpus:g} CPUs and {available.gpus:g} GPUs; lower "
            "cluster.num_workers, cpus_per_worker or gpus_per_worker"
        )
    return max(1, min(wanted, num_blocks)), Placement(cpus, gpus)
