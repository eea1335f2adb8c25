"""Who computes which block: a pure state machine over events, without clocks or Ray.

    actions = scheduler.handle(event)

A block is waiting, held by one worker, or finished. A worker holds one block at a time and advances
it by short calls with explicit step ranges; when a worker is lost its block waits again, from the
state it saved last. A block is finished once, by the worker that holds it, whatever else happens.
"""

from dataclasses import dataclass, field

WorkerId = int


@dataclass(frozen=True)
class WorkerReady:
    """A worker has started."""

    worker: WorkerId


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone for good: its process, its node or its restarts are used up."""

    worker: WorkerId


@dataclass(frozen=True)
class BlockAdvanced:
    """A worker's call returned: its block stands before `step`; at the end its rows are stored."""

    worker: WorkerId
    block: int
    step: int


Event = WorkerReady | WorkerLost | BlockAdvanced


@dataclass(frozen=True)
class Advance:
    """Ask a worker to bring its block from before `start` to before `stop`."""

    worker: WorkerId
    block: int
    start: int
    stop: int


@dataclass(frozen=True)
class Retire:
    """A worker is not needed any more."""

    worker: WorkerId


Action = Advance | Retire


@dataclass
class Scheduler:
    """Blocks, workers and who holds what.

    Attributes:
        num_steps: T; a block that reaches it is finished.
        stride: Steps of one call.
        waiting: Blocks nobody holds, in the order they will be given out.
        held: The block of each busy worker.
        positions: The step before which each block was last known to stand.
        finished: Blocks whose rows are stored.
    """

    num_steps: int
    stride: int
    waiting: list[int]
    held: dict[WorkerId, int] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"a call must take at least 1 step, found {self.stride}")

    @property
    def done(self) -> bool:
        """Whether every block is finished."""
        return not self.waiting and not self.held

    @property
    def steps_done(self) -> int:
        """Steps that blocks have taken, counting those of lost calls once."""
        return len(self.finished) * self.num_steps + sum(self.positions.values())

    @property
    def useful_workers(self) -> int:
        """How many workers can be busy: one for each block that is not finished."""
        return len(self.waiting) + len(self.held)

    def handle(self, event: Event) -> list[Action]:
        """Take in an event; return what is to be done."""
        match event:
            case WorkerReady(worker):
                return self._give(worker)
            case WorkerLost(worker):
                return self._take_back(worker)
            case BlockAdvanced(worker, block, step):
                return self._advanced(worker, block, step)

    def _give(self, worker: WorkerId) -> list[Action]:
        if worker in self.held:
            return []
        if not self.waiting:
            return [Retire(worker)]
        block = self.waiting.pop(0)
        self.held[worker] = block
        return [self._next_call(worker, block)]

    def _take_back(self, worker: WorkerId) -> list[Action]:
        block = self.held.pop(worker, None)
        if block is not None:
            # At the front: its saved state is fresh, and the run ends no later than it must.
            self.waiting.insert(0, block)
        return []

    def _advanced(self, worker: WorkerId, block: int, step: int) -> list[Action]:
        if self.held.get(worker) != block:
            # The answer of a worker that was given up: its block belongs to somebody else now.
            return []
        if step < self.num_steps:
            self.positions[block] = step
            return [self._next_call(worker, block)]
        del self.held[worker]
        self.positions.pop(block, None)
        self.finished.add(block)
        return self._give(worker)

    def _next_call(self, worker: WorkerId, block: int) -> Advance:
        start = self.positions.get(block, 0)
        # Calls end on multiples of the stride, wherever a block is taken up.
        stop = min(self.num_steps, (start // self.stride + 1) * self.stride)
        return Advance(worker, block, start, stop)
