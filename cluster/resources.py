"""What a cluster has, and what each worker gets of it."""

from dataclasses import dataclass

from cluster.errors import ResourcesError
from cluster.memory import worker_bytes
from pipeline.config import ClusterConfig
from pipeline.problem import Problem


@dataclass(frozen=True)
class Resources:
    """Totals of a cluster.

    Attributes:
        cpus: Processors of all nodes.
        gpus: GPUs of all nodes.
        memory_bytes: Free memory of each node.
    """

    cpus: float
    gpus: float
    memory_bytes: tuple[float, ...] = ()

    def room_for(self, needed_bytes: float) -> int:
        """Return how many workers that need so much memory the nodes can hold."""
        return sum(int(node // needed_bytes) for node in self.memory_bytes)


@dataclass(frozen=True)
class Placement:
    """One worker's share."""

    cpus: int
    gpus: float


def place(
    config: ClusterConfig, available: Resources, num_blocks: int, needed_bytes: float = 0.0
) -> tuple[int, Placement]:
    """Return how many workers to start and what each gets.

    Args:
        config: What was asked for.
        available: What the cluster has.
        num_blocks: Blocks to compute; more workers than that would be idle.
        needed_bytes: Memory of one worker; limits how many are started where `num_workers` is
            "auto". 0 leaves memory out of account.

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
    if fitting < 1 or wanted > fitting:
        raise ResourcesError(
            f"{max(1, wanted)} workers with {cpus} CPUs and {gpus:g} GPUs each were asked for, but the "
            f"cluster has {available.cpus:g} CPUs and {available.gpus:g} GPUs; lower "
            "cluster.num_workers, cpus_per_worker or gpus_per_worker, or add machines"
        )
    if config.num_workers == "auto" and needed_bytes and available.memory_bytes:
        wanted = min(wanted, available.room_for(needed_bytes))
    return max(1, min(wanted, num_blocks)), Placement(cpus, gpus)


def check_block_fits(problem: Problem, available: Resources) -> None:
    """Refuse a block whose worker needs more memory than the largest node has.

    Raises:
        ResourcesError: The message names the largest block that fits.
    """
    largest = max(available.memory_bytes, default=float("inf"))
    block = min(problem.config.storage.units_per_block, len(problem.data.units))
    needed, empty = worker_bytes(problem, block), worker_bytes(problem, 0)
    if needed <= largest:
        return
    fitting = int((largest - empty) / (needed - empty) * block)
    advice = f"set storage.block to at most {fitting}" if fitting > 0 else "use larger machines"
    raise ResourcesError(
        f"a block of {block} units needs {needed / 2**30:.1f} GiB in its worker, but the largest node "
        f"has {largest / 2**30:.1f} GiB free; {advice}"
    )
