"""Workers in the driver's process: its calls are executed one after the other, without Ray."""

import itertools
from collections.abc import Callable, Collection, Sequence

from cluster.driver import Reference
from cluster.errors import WorkerFailedError
from cluster.scheduler import Advance, WorkerId
from cluster.workers import BlockReport, RecursionWorker, WorkerNode
from storage.errors import WriterConflictError

Call = Callable[[], WorkerNode | BlockReport]


class InProcessGroup:
    """A `WorkerGroup` whose workers are plain objects.

    A call is carried out when its answer is asked for. States are saved and blocks stored as by
    actors, so a run that was killed on Ray can be continued here and the other way round.
    """

    def __init__(self, make_worker: Callable[[], RecursionWorker]) -> None:
        """Take the function that makes a worker; none is made yet."""
        self._make_worker = make_worker
        self._workers: dict[WorkerId, RecursionWorker] = {}
        self._calls: dict[Reference, Call] = {}
        self._references = itertools.count()

    @property
    def workers(self) -> set[WorkerId]:
        """The workers that were made and not ended."""
        return set(self._workers)

    def wait_until_ready(self, seconds: float) -> None:
        """Return at once: what a worker imports is imported here."""

    def start(self, worker: WorkerId) -> None:
        """Make a worker."""
        self._workers[worker] = self._make_worker()

    def ready(self, worker: WorkerId) -> Reference:
        """Ask a worker where it runs."""
        return self._remember(self._workers[worker].ready)

    def advance(self, call: Advance) -> Reference:
        """Ask a worker to advance its block."""
        worker = self._workers[call.worker]
        return self._remember(lambda: worker.advance(call.block, call.start, call.stop))

    def _remember(self, call: Call) -> Reference:
        reference = next(self._references)
        self._calls[reference] = call
        return reference

    def wait(self, references: Collection[Reference], seconds: float) -> Sequence[Reference]:
        """Return the oldest reference: the driver observes between any two calls."""
        return list(itertools.islice(references, 1))

    def answer(self, reference: Reference) -> WorkerNode | BlockReport:
        """Carry out the call; see `WorkerGroup.answer`."""
        call = self._calls.pop(reference)
        try:
            return call()
        except WriterConflictError:
            # Another process writes this block; the message names it, and waiting is up to a person.
            raise
        except Exception as error:
            raise WorkerFailedError(
                f"{type(error).__name__}: {error}; finished blocks and saved states are kept"
            ) from error

    def dead(self) -> Sequence[WorkerId]:
        """Return no worker: they live as long as this process."""
        return ()

    def end(self, worker: WorkerId) -> None:
        """Drop a worker."""
        self._workers.pop(worker, None)
