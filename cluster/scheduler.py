"""Who computes which block: a pure state machine over events, without clocks or Ray.

    actions = scheduler.handle(event)

A block is waiting, held by one worker, or finished. A worker is starting, or holds one block and
advances it by short calls with explicit step ranges; without a block for it, it is retired. When a
worker is lost its block waits again, from the state it saved last, and another worker is started in
its place. A block is finished once, by the worker that holds it, whatever else happens.

An event takes the same time however many blocks and workers there are.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field

WorkerId = int

# A call should take about this long: short enough for progress, Ctrl-C and back-pressure, long
# enough that calls cost nothing.
CALL_SECONDS = 10.0
# However fast, a block's trajectory is cut into at least this many calls.
CALLS_PER_BLOCK = 20
# Ray restarts a worker several times before it is lost; a block that loses this many workers
# without moving on has a reason that another worker will not cure.
MAX_LOSSES = 3


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
    steps_taken: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class CapacityChanged:
    """The cluster has grown or shrunk to room for this many workers."""

    num_workers: int


Event = WorkerReady | WorkerLost | BlockAdvanced | CapacityChanged


@dataclass(frozen=True)
class Start:
    """Start one more worker."""

    worker: WorkerId


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


@dataclass(frozen=True)
class GiveUp:
    """Workers keep dying on a block, or (None) before they are ready: stop the run."""

    block: int | None


Action = Start | Advance | Retire | GiveUp


@dataclass
class Scheduler:
    """Blocks, workers and who holds what.

    Attributes:
        num_steps: T; a block that reaches it is finished.
        blocks: The blocks to compute, in the order they will be given out.
        capacity: How many workers may exist at once.
        starting: Workers that were started and are not ready yet.
        waiting: Blocks that no worker holds, the next one first.
        held: The block of each busy worker.
        positions: The step before which each block was last known to stand.
        finished: Blocks whose rows are stored.
        losses: Workers that each block lost since it last moved; None counts workers lost before
            they were ready.
    """

    num_steps: int
    blocks: InitVar[Iterable[int]]
    capacity: int
    starting: set[WorkerId] = field(default_factory=set)
    waiting: deque[int] = field(init=False)
    held: dict[WorkerId, int] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    losses: dict[int | None, int] = field(default_factory=dict)
    _next_worker: WorkerId = 0
    _stride: int = 1
    _steps_of_unfinished: int = 0

    def __post_init__(self, blocks: Iterable[int]) -> None:
        self.waiting = deque(blocks)
        self._next_worker = max(self.starting, default=-1) + 1

    @property
    def done(self) -> bool:
        """Whether every block is finished."""
        return not self.waiting and not self.held

    @property
    def steps_done(self) -> int:
        """Steps that blocks have taken, counting those of lost calls once."""
        return len(self.finished) * self.num_steps + self._steps_of_unfinished

    def handle(self, event: Event) -> list[Action]:
        """Take in an event; return what is to be done."""
        match event:
            case WorkerReady(worker):
                return self._ready(worker)
            case WorkerLost(worker):
                return self._lost(worker)
            case BlockAdvanced():
                return self._advanced(event)
            case CapacityChanged(num_workers):
                self.capacity = num_workers
                return self._refill()

    def _ready(self, worker: WorkerId) -> list[Action]:
        if worker not in self.starting:
            return []
        self.starting.remove(worker)
        self.losses.pop(None, None)
        return self._give(worker)

    def _give(self, worker: WorkerId) -> list[Action]:
        if not self.waiting:
            return [Retire(worker)]
        block = self.waiting.popleft()
        self.held[worker] = block
        return [self._next_call(worker, block)]

    def _lost(self, worker: WorkerId) -> list[Action]:
        if worker not in self.starting and worker not in self.held:
            return []
        block = self.held.pop(worker, None)
        self.starting.discard(worker)
        self.losses[block] = self.losses.get(block, 0) + 1
        if block is not None:
            # At the front: its saved state is fresh, and the run ends no later than it must.
            self.waiting.appendleft(block)
        if self.losses[block] > MAX_LOSSES:
            return [GiveUp(block)]
        return self._refill()

    def _refill(self) -> list[Action]:
        """Start workers while there is room for them and a block that they could take."""
        actions: list[Action] = []
        room = self.capacity - len(self.held) - len(self.starting)
        for _ in range(min(room, len(self.waiting) - len(self.starting))):
            self.starting.add(self._next_worker)
            actions.append(Start(self._next_worker))
            self._next_worker += 1
        return actions

    def _advanced(self, event: BlockAdvanced) -> list[Action]:
        worker, block = event.worker, event.block
        if self.held.get(worker) != block:
            # The answer of a worker that was given up: its block is another worker's now.
            return []
        before = self.positions.get(block, 0)
        if event.step > before:
            self.losses.pop(block, None)
        if event.steps_taken and event.seconds > 0:
            self._stride = int(CALL_SECONDS * event.steps_taken / event.seconds)
        if event.step < self.num_steps:
            self.positions[block] = event.step
            self._steps_of_unfinished += event.step - before
            return [self._next_call(worker, block)]
        del self.held[worker]
        self.positions.pop(block, None)
        self._steps_of_unfinished -= before
        self.finished.add(block)
        return self._give(worker)

    def _next_call(self, worker: WorkerId, block: int) -> Advance:
        start = self.positions.get(block, 0)
        longest = -(-self.num_steps // CALLS_PER_BLOCK)
        stride = max(1, min(self._stride, longest))
        return Advance(worker, block, start, min(self.num_steps, start + stride))
