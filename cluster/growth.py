"""Clusters that grow and shrink while we use them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ray.autoscaler.sdk import request_resources

from cluster.errors import ResourcesError
from cluster.resources import Resources, place
from pipeline.config import ClusterConfig

# Clusters grow by machines, which take minutes to come.
LOOK_SECONDS = 10.0


def ask_for_room(config: ClusterConfig, num_blocks: int) -> None:
    """Tell the cluster's autoscaler, if it has one, how many workers could be busy.

    Without `gpus_per_worker` given, processors alone are asked for: nobody can tell yet what the
    machines that would come have.
    """
    wanted = num_blocks if config.num_workers == "auto" else config.num_workers
    bundle: dict[str, float] = {"CPU": config.cpus_per_worker}
    if config.gpus_per_worker != "auto" and config.gpus_per_worker > 0:
        bundle["GPU"] = config.gpus_per_worker
    request_resources(bundles=[bundle] * min(wanted, num_blocks))


def release_room() -> None:
    """Tell the autoscaler that nothing is wanted any more."""
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
