"""The only place that makes Ray actors and tasks of our classes and functions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.actor import ActorHandle

from cluster import logs
from cluster.deletion_worker import DeletionWorker, Share, sum_share
from cluster.resources import Placement
from cluster.workers import RecursionWorker

# A restarted worker finds its block's saved state, so restarts cost little; but a worker that dies
# again and again has a reason.
MAX_RESTARTS = 5
# Reading is repeated on another node when one dies; a row that cannot be read stays unreadable.
READER_RETRIES = 3


def start_recursion_worker(
    run_path: Path, save_every: int | None, placement: Placement
) -> ActorHandle[Any]:
    """Start a worker that restarts, and repeats the interrupted call, when its process dies."""
    actor: Any = ray.remote(RecursionWorker).options(
        **_options(placement), max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS
    )
    handle: ActorHandle[Any] = actor.remote(str(run_path), save_every, this_node)
    return handle


def start_deletion_worker(run_path: Path, num_threads: int, num_readers: int) -> ActorHandle[Any]:
    """Start the actor that sums rows, itself or with the help of reader tasks.

    It claims no processor: it works while the recursion's workers are done, and must start while
    they still hold theirs.
    """
    actor: Any = ray.remote(DeletionWorker).options(
        **_options(Placement(0, 0.0)), max_restarts=MAX_RESTARTS, max_task_retries=1
    )
    handle: ActorHandle[Any] = actor.remote(str(run_path), num_threads, num_readers, _read_on_tasks)
    return handle


def this_node() -> str:
    """Return Ray's name of the node that this process runs on."""
    name: str = ray.get_runtime_context().get_node_id()
    return name


def _read_on_tasks(
    store_url: str | Path, shares: Sequence[Share], add: Callable[[npt.NDArray[np.float64]], None]
) -> None:
    """Have each share summed by a task; add the sums in the order of the shares."""
    reader: Any = ray.remote(sum_share).options(
        **_options(Placement(1, 0.0)), max_retries=READER_RETRIES
    )
    references = [reader.remote(store_url, share) for share in shares]
    for reference in references:
        add(ray.get(reference))


def _options(placement: Placement) -> dict[str, Any]:
    # Ray would set one thread; the run's thread count is part of what fixes the last bits.
    threads = str(max(1, placement.cpus))
    return {
        "num_cpus": placement.cpus,
        "num_gpus": placement.gpus,
        "scheduling_strategy": "SPREAD",
        "runtime_env": {
            "env_vars": {
                "OMP_NUM_THREADS": threads,
                "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
                **logs.wanted(),
            }
        },
    }
