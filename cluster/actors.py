"""The only place that makes Ray actors of our classes."""

from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from cluster.resources import Placement
from cluster.workers import DeletionWorker, RecursionWorker

# A restarted worker finds its block's saved state, so restarts cost little; but a worker that dies
# again and again has a reason.
MAX_RESTARTS = 5


def start_recursion_worker(
    run_path: Path, save_every: int | None, placement: Placement
) -> ActorHandle[Any]:
    """Start a worker that restarts, and repeats the interrupted call, when its process dies."""
    actor: Any = ray.remote(RecursionWorker).options(
        **_options(placement), max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS
    )
    handle: ActorHandle[Any] = actor.remote(str(run_path), save_every)
    return handle


def start_deletion_worker(run_path: Path, num_threads: int) -> ActorHandle[Any]:
    """Start the actor that reads and sums rows.

    It claims no processor: it works while the recursion's workers are done, and must start while
    they still hold theirs.
    """
    actor: Any = ray.remote(DeletionWorker).options(
        **_options(Placement(0, 0.0)), max_restarts=MAX_RESTARTS, max_task_retries=1
    )
    handle: ActorHandle[Any] = actor.remote(str(run_path), num_threads)
    return handle


def _options(placement: Placement) -> dict[str, Any]:
    return {
        "num_cpus": placement.cpus,
        "num_gpus": placement.gpus,
        "scheduling_strategy": "SPREAD",
        # Ray would set one thread; the run's thread count is part of what fixes the last bits.
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(max(1, placement.cpus))}},
    }
