"""Deciding whether a precomputation uses Ray: `cluster.address` and its `auto`."""

import os
from dataclasses import dataclass

from cluster.planner import LAUNCH_SECONDS
from cluster.workload import workload_of
from pipeline.config import ClusterConfig
from pipeline.run.problem import Problem

NO_RAY, LOCAL = "none", "local"
# From `ray.init` to the first answer of a worker that has imported torch (measured, two cores).
RAY_START_SECONDS = 12.0


@dataclass(frozen=True)
class Speed:
    """What a machine sustains in this kind of work.

    Attributes:
        flops: Floating-point operations per second.
        step_seconds: What a step of a chunk takes besides.
    """

    flops: float
    step_seconds: float


# Stated, not measured, so that a command chooses alike whatever else the machine does. On a quiet core
# configs/digits.yaml took 6.3 s (7.8 s by these), wine 1.2 s (0.6 s); being wrong costs some seconds.
CORE = Speed(4e10, 5e-4)
GPU = Speed(1e13, LAUNCH_SECONDS)


def chosen_address(config: ClusterConfig, problem: Problem, num_blocks: int) -> str:
    """Return "none", "local", or the address of a cluster to join.

    `auto` joins the cluster that RAY_ADDRESS names, as it does inside a Ray job. Otherwise it takes
    no Ray where one process alone has finished before Ray's workers would begin. So
    `num_workers` does not matter here: it says how many workers Ray starts, if it is started.

    Args:
        config: What was asked for.
        problem: The run.
        num_blocks: Blocks that wait.
    """
    if config.address != "auto":
        return config.address
    cluster = cluster_of_environment()
    if cluster is not None:
        return cluster
    if config.gpus_per_worker != "auto" and (
        config.gpus_per_worker > 0 or problem.device.type == "cuda"
    ):
        # Ray alone gives each worker a share of a GPU, or hides the GPUs from it.
        return LOCAL
    return NO_RAY if estimated_seconds(problem, num_blocks) < RAY_START_SECONDS else LOCAL


def cluster_of_environment() -> str | None:
    """Return the cluster that RAY_ADDRESS names, None if it names none or a dashboard."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if not address or address.startswith("http") else address


def estimated_seconds(problem: Problem, num_blocks: int) -> float:
    """Return how long one worker takes for so many blocks: the run's counts at a stated speed."""
    if num_blocks == 0:
        return 0.0
    work = workload_of(problem)
    if problem.device.type == "cuda":
        speed = GPU
    else:
        speed = Speed(CORE.flops * problem.num_threads, CORE.step_seconds)
    chunks = sum(-(-size // work.chunk) for size in work.block_sizes)
    whole = work.flops / speed.flops + chunks * work.num_steps * speed.step_seconds
    return min(1.0, num_blocks / work.num_blocks) * whole
