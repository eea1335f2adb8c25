"""Resources of a cluster and of a worker, and clusters that grow and shrink in use."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.errors import ResourcesError
from pipeline.bounds import MAX_WORKERS
from pipeline.config import ClusterConfig
from pipeline.run.problem import Problem
from pipeline.training.step import buffer_names

# A process that has imported torch, Ray, Arrow and Zarr and holds nothing (resident, measured).
BASE_BYTES = 620 << 20


def worker_bytes(problem: Problem, num_units: int) -> float:
    """Return the main memory that a worker needs at least for a block of at most `num_units`.

    What the arithmetic of a minibatch takes is not in it: `unlearn plan` measures that.
    """
    num_units = min(num_units, len(problem.data.units))
    width = problem.num_parameters * problem.initial_P.element_size()
    buffers = 1 + len(buffer_names(problem.config.training))
    data = problem.data.inputs.nelement() + problem.data.test_inputs.nelement()
    # A state that is saved stands beside the bytes of its file.
    rows = 2 * num_units * buffers
    return BASE_BYTES + data * problem.data.inputs.element_size() + rows * width


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


# Clusters grow by machines, which take minutes to come.
LOOK_SECONDS = 10.0


def ask_for_room(config: ClusterConfig, num_blocks: int) -> None:
    """Tell the cluster's autoscaler, if it has one, how many workers could be busy.

    Without `gpus_per_worker` given, only processors are asked for: it is not known yet what the
    machines that would come have.
    """
    from ray.autoscaler.sdk import request_resources

    wanted = num_blocks if config.num_workers == "auto" else config.num_workers
    bundle: dict[str, float] = {"CPU": config.cpus_per_worker}
    if config.gpus_per_worker != "auto" and config.gpus_per_worker > 0:
        bundle["GPU"] = config.gpus_per_worker
    # The autoscaler packs every bundle anew at each of its looks, so there are no more of them than
    # a driver can have workers.
    request_resources(bundles=[bundle] * min(wanted, num_blocks, MAX_WORKERS))


def release_room() -> None:
    """Tell the autoscaler that nothing is wanted any more."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[])


def wait_until_grown(
    config: ClusterConfig, resources_now: Callable[[], Resources], num_blocks: int
) -> None:
    """Return as soon as the cluster has room for one worker, or for as many as were asked for.

    Raises:
        ResourcesError: If it has not grown so far within `config.grow_seconds`.
    """
    deadline = time.monotonic() + config.grow_seconds
    while True:
        try:
            place(config, resources_now(), num_blocks)
        except ResourcesError:
            if time.monotonic() >= deadline:
                raise
        else:
            return
        time.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))


@dataclass
class Growth:
    """How many workers a cluster that grows and shrinks has room for.

    Attributes:
        config: What each worker gets.
        resources_now: Asks the cluster.
        num_blocks: More workers than that would be idle.
        needed_bytes: Memory of one worker.
        clock: Seconds; tests put their own.
    """

    config: ClusterConfig
    resources_now: Callable[[], Resources]
    num_blocks: int
    needed_bytes: float = 0.0
    clock: Callable[[], float] = time.monotonic
    _asked_at: float = float("-inf")
    _answer: int = field(default=0)

    def __call__(self) -> int:
        """Return the room, asked for anew every `LOOK_SECONDS`."""
        if self.clock() - self._asked_at >= LOOK_SECONDS:
            self._asked_at = self.clock()
            try:
                available = self.resources_now()
                self._answer, _ = place(self.config, available, self.num_blocks, self.needed_bytes)
            except ResourcesError:
                # Machines may come back; the driver gives up when none does for some minutes.
                self._answer = 0
        return self._answer
