"""The recursion's workers as Ray actors."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from cluster.errors import WorkerFailedError
from cluster.scheduler import Advance, WorkerId
from cluster.worker_group import Reference, WorkerGoneError
from cluster.workers import BlockReport, Place
from storage.errors import WriterConflictError

# Asking for the list of nodes costs the head little, but not nothing.
NODES_SECONDS = 5.0


class ActorGroup:
    """Workers that are Ray actors."""

    def __init__(self, start_actor: Callable[[], ActorHandle[Any]]) -> None:
        """Take the function that starts an actor; none is started yet."""
        self._start_actor = start_actor
        self._actors: dict[WorkerId, ActorHandle[Any]] = {}
        self._places: dict[WorkerId, Place] = {}
        self._worker_of: dict[Reference, WorkerId] = {}
        self._looked_at = time.monotonic()

    @property
    def workers(self) -> set[WorkerId]:
        """The workers that were started and not let go."""
        return set(self._actors)

    def place(self, worker: WorkerId) -> Place:
        """Return where a worker ran when it last answered."""
        return self._places[worker]

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
        return reference

    def wait(self, references: Sequence[Reference], seconds: float) -> Sequence[Reference]:
        """Return the references that have an answer, after at most `seconds`."""
        if not references:
            # Nobody to wait for until the cluster has room again.
            time.sleep(seconds)
            return []
        waited: Any = ray.wait(list(references), num_returns=1, timeout=seconds)
        answered: list[Reference] = waited[0]
        return answered

    def answer(self, reference: Reference) -> Place | BlockReport:
        """Return an answer that is there; see `WorkerGroup.answer`."""
        worker = self._worker_of.pop(reference)
        try:
            got: Any = ray.get(reference)
        except RayTaskError as error:
            raise _explained(error, self._places.get(worker)) from error
        except RayActorError as error:
            raise WorkerGoneError(" ".join(str(error).split())[:300]) from error
        answer: Place | BlockReport = got
        self._places[worker] = answer if isinstance(answer, Place) else answer.place
        return answer

    def dead(self) -> Sequence[WorkerId]:
        """Return workers whose node has left; Ray may wait for ever to restart them elsewhere."""
        now = time.monotonic()
        if now - self._looked_at < NODES_SECONDS:
            return []
        self._looked_at = now
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        alive = {node["NodeID"] for node in nodes if node["Alive"]}
        return [worker for worker, place in self._places.items() if place.node not in alive]

    def end(self, worker: WorkerId) -> None:
        """Kill the actor, unless it is dead: it must not come back to a block that moved on."""
        self._places.pop(worker, None)
        self._worker_of = {ref: of for ref, of in self._worker_of.items() if of != worker}
        actor = self._actors.pop(worker, None)
        if actor is not None:
            ray.kill(actor, no_restart=True)


def _explained(error: RayTaskError, place: Place | None) -> Exception:
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, WriterConflictError):
        # A worker that was given up is still writing the block: as good as lost, and soon over.
        return WorkerGoneError(str(cause))
    where = "" if place is None else f" (process {place.process} on node {place.node[:8]})"
    reason = f"{type(cause).__name__}: {cause}"
    return WorkerFailedError(
        f"{reason}{where}; finished blocks and saved states are kept. The worker's own lines are in "
        f"Ray's session folder, logs/worker-*-{place.process if place else '*'}.err"
    )
