"""Ray actors: the recursion's workers, and the deletion worker."""

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from cluster import logs
from cluster.deletion_worker import DeletionWorker, Share, sum_share
from cluster.driver import NODES_SECONDS, Reference, WorkerGoneError
from cluster.errors import WorkerFailedError
from cluster.resources import Placement
from cluster.scheduler import Advance, WorkerId
from cluster.workers import BlockReport, RecursionWorker, WorkerNode
from storage.errors import WriterConflictError

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


class ActorGroup:
    """Workers that are Ray actors."""

    def __init__(self, start_actor: Callable[[], ActorHandle[Any]]) -> None:
        """Take the function that starts an actor; none is started yet."""
        self._start_actor = start_actor
        self._actors: dict[WorkerId, ActorHandle[Any]] = {}
        self._nodes: dict[WorkerId, WorkerNode] = {}
        self._worker_of: dict[Reference, WorkerId] = {}
        self._call_of: dict[WorkerId, Reference] = {}
        self._looked_at = time.monotonic()

    @property
    def workers(self) -> set[WorkerId]:
        """The workers that were started and not ended."""
        return set(self._actors)

    def node(self, worker: WorkerId) -> WorkerNode:
        """Return where a worker ran when it last answered."""
        return self._nodes[worker]

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until every actor's imports are done, at most `seconds`."""
        references: list[Any] = [actor.ready.remote() for actor in self._actors.values()]
        ray.wait(references, num_returns=len(references), timeout=seconds)

    def start(self, worker: WorkerId) -> None:
        """Start an actor."""
        self._actors[worker] = self._start_actor()

    def ready(self, worker: WorkerId) -> Reference:
        """Ask an actor to answer as soon as it has started."""
        return self._remember(worker, self._actors[worker].ready.remote())

    def advance(self, call: Advance) -> Reference:
        """Ask an actor to advance its block."""
        actor = self._actors[call.worker]
        return self._remember(call.worker, actor.advance.remote(call.block, call.start, call.stop))

    def _remember(self, worker: WorkerId, reference: Reference) -> Reference:
        self._worker_of[reference] = worker
        self._call_of[worker] = reference
        return reference

    def wait(self, references: Collection[Reference], seconds: float) -> Sequence[Reference]:
        """Return all references that have an answer as soon as one has, after at most `seconds`.

        Ray looks at every reference at each call. Were one answer taken at a time, thousands of
        workers would keep the driver busy with looking.
        """
        if not references:
            # There is no worker to wait for until the cluster has room again.
            time.sleep(seconds)
            return []
        first: Any = ray.wait(list(references), num_returns=1, timeout=seconds)
        answered, others = first
        if answered and others:
            more: Any = ray.wait(others, num_returns=len(others), timeout=0)
            answered = [*answered, *more[0]]
        found: list[Reference] = answered
        return found

    def answer(self, reference: Reference) -> WorkerNode | BlockReport:
        """Return an answer that is there; see `WorkerGroup.answer`."""
        worker = self._worker_of.pop(reference)
        self._call_of.pop(worker, None)
        try:
            got: Any = ray.get(reference)
        except RayTaskError as error:
            raise _explained(error, self._nodes.get(worker)) from error
        except RayActorError as error:
            raise WorkerGoneError(" ".join(str(error).split())[:300]) from error
        answer: WorkerNode | BlockReport = got
        self._nodes[worker] = answer if isinstance(answer, WorkerNode) else answer.node
        return answer

    def dead(self) -> Sequence[WorkerId]:
        """Return workers whose node has left; Ray may wait forever to restart them elsewhere."""
        now = time.monotonic()
        if now - self._looked_at < NODES_SECONDS:
            return []
        self._looked_at = now
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        alive = {node["NodeID"] for node in nodes if node["Alive"]}
        return [worker for worker, at in self._nodes.items() if at.node not in alive]

    def end(self, worker: WorkerId) -> None:
        """Kill the actor, unless it is dead: it must not come back to a block that moved on."""
        self._nodes.pop(worker, None)
        if worker in self._call_of:
            del self._worker_of[self._call_of.pop(worker)]
        actor = self._actors.pop(worker, None)
        if actor is not None:
            ray.kill(actor, no_restart=True)


def _explained(error: RayTaskError, at: WorkerNode | None) -> Exception:
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, WriterConflictError):
        # A worker that was given up is still writing the block: as good as lost, and soon over.
        return WorkerGoneError(str(cause))
    where = "" if at is None else f" (process {at.process} on node {at.node[:8]})"
    reason = f"{type(cause).__name__}: {cause}"
    return WorkerFailedError(
        f"{reason}{where}; finished blocks and saved states are kept. The worker's own lines are in "
        f"Ray's session folder, logs/worker-*-{at.process if at else '*'}.err"
    )
