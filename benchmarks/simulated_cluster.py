"""A cluster of simulated workers on a simulated clock, for the real Driver and the real Scheduler.

    cluster = SimulatedCluster(Setting(gpus=64, blocks=2000), seed=0)
    totals = cluster.driver().run()

It implements the driver's `WorkerGroup`, its clock and its capacity. Nothing is computed and nobody
waits: `wait` moves the clock to the next event. What a worker does is what `cluster/workers.py` and
Ray do: it starts on a free GPU, loads the data at its first call, saves its block's state when that is
due, and is given up when Ray has noticed that its node is gone; a worker whose node goes before it was
ready is started elsewhere by Ray, and one without room waits for a node. The same setting and the same
seed give the same run, event by event.

Every GPU-second that a node offers is counted in one of the fields of `Spent`.
"""

import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields, replace

from cluster.driver import NODES_SECONDS, Driver, Observe
from cluster.resources import Growth, Resources
from cluster.scheduler import Advance, Scheduler, WorkerId
from cluster.workers import SAVE_SECONDS, BlockReport, WorkerNode
from pipeline.config import ClusterConfig

Reference = int


@dataclass(frozen=True)
class DriverCosts:
    """What the driver's process takes for its part on Ray, in seconds of the simulated clock.

    Measured with `simulate.py --ray-costs`; docs/scaling.md has the figures.

    Attributes:
        per_answer: Taking an answer, handling it, sending the next call.
        per_wait: One look at what has been answered.
        per_reference: The same, for each call that is under way.
        latency: From a worker's end of a call to the driver and from there to the worker, together.
    """

    per_answer: float = 0.5e-3
    per_wait: float = 0.16e-3
    per_reference: float = 0.6e-6
    latency: float = 3e-3


@dataclass(frozen=True)
class Setting:
    """What is simulated. Times are seconds of the simulated clock.

    Attributes:
        gpus: GPUs of the cluster when it is whole, one worker each.
        blocks: Blocks to compute.
        node_gpus: GPUs of a node.
        num_steps: T.
        block_seconds: Time of one block on a GPU that is not slow.
        save_every: Steps between saved states; None saves as workers do by default, by time.
        losses_per_minute: Nodes lost in the whole cluster, while it is whole.
        back_seconds: Until another node comes in a lost one's place, on average.
        noticed_seconds: Until Ray knows that a node is gone.
        slow_share: Share of GPUs that are slow.
        slow_factor: How many times slower they are on average: 1 + an exponential variable.
        first_nodes: Nodes at the start of a cluster that grows; None: it is whole from the start.
        nodes_per_minute: How fast a cluster that grows gets nodes.
        shrinks: Whether half of the nodes are taken away for a third of the time that the work would
            take, and whether nodes that are idle for `idle_seconds` are given back.
        idle_seconds: Ray's default of five minutes.
        start_seconds: A worker's start: its process and its imports.
        load_seconds: Loading data and model, at a worker's first call.
        costs: Of the driver.
    """

    gpus: int = 64
    blocks: int = 2000
    node_gpus: int = 8
    num_steps: int = 1000
    block_seconds: float = 200.0
    save_every: int | None = None
    losses_per_minute: float = 0.0
    back_seconds: float = 300.0
    noticed_seconds: float = 20.0
    slow_share: float = 0.0
    slow_factor: float = 2.0
    first_nodes: int | None = None
    nodes_per_minute: float = 64.0
    shrinks: bool = False
    idle_seconds: float = 300.0
    start_seconds: float = 20.0
    load_seconds: float = 30.0
    costs: DriverCosts = field(default_factory=DriverCosts)

    @property
    def num_nodes(self) -> int:
        """Nodes of the whole cluster."""
        return -(-self.gpus // self.node_gpus)

    @property
    def work_seconds(self) -> float:
        """What the work takes if every GPU computes all the time."""
        return self.blocks * self.block_seconds / self.gpus


@dataclass
class Spent:
    """GPU-seconds by what they went to; together, those that nodes offered.

    Attributes:
        useful: Steps that were kept, at the speed of a GPU that is not slow.
        slow: What slow GPUs took beyond that.
        lost: Steps that were lost with their worker, from the last saved state on.
        driver: Workers between two calls: the way to the driver, its queue, and back.
        start: Workers that start or load data.
        vacant: GPUs without a worker while blocks wait.
        tail: GPUs without a worker while no block waits.
    """

    useful: float = 0.0
    slow: float = 0.0
    lost: float = 0.0
    driver: float = 0.0
    start: float = 0.0
    vacant: float = 0.0
    tail: float = 0.0

    @property
    def offered(self) -> float:
        """All of it."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(eq=False)
class Node:
    """A machine; gone for good once it is lost: another comes in its place."""

    name: str
    slots: "list[Slot]" = field(default_factory=list)
    alive: bool = True
    noticed: bool = False


@dataclass(eq=False)
class Slot:
    """A GPU: how slow it is, what it has been doing since when, and for whom."""

    node: Node
    slowness: float
    doing: str
    since: float
    worker: "Worker | None" = None


@dataclass(eq=False)
class Worker:
    """A worker: where it is, its call, and what it would lose."""

    number: WorkerId
    slot: Slot | None = None
    is_ready: bool = False
    has_loaded: bool = False
    block: int | None = None
    step: int = 0
    saved_at: float = 0.0
    unsaved_nominal: float = 0.0
    unsaved_seconds: float = 0.0
    call: Advance | None = None
    reference: Reference | None = None
    began: float = 0.0


class SimulatedCluster:
    """Nodes, GPUs and workers on a clock of their own; a `WorkerGroup` for the driver.

    Attributes:
        now: The simulated time, seconds.
        spent: GPU-seconds by what they went to.
        stored: How often each block's rows were stored.
        calls: How many calls were sent.
        waits: How often the driver looked.
        nodes_lost, blocks_lost, steps_repeated: What losses did.
        driver_busy_seconds: Simulated time for which the driver was at work.
        size_by_time: The time and the number of nodes whenever that changed.
        own_cpu_seconds: Processor time that the simulation itself took, really.
        nodes: The nodes that are there, by name.
        log: Every call as (worker, block, start, stop), if `keeps_log`.
    """

    def __init__(self, setting: Setting, seed: int = 0, keeps_log: bool = False) -> None:
        """Set up the nodes of the start, and the losses to come."""
        self.setting, self._random = setting, random.Random(seed)
        self.now, self.spent = 0.0, Spent()
        self.stored: dict[int, int] = {}
        self.log: list[tuple[WorkerId, int, int, int]] | None = [] if keeps_log else None
        self.calls = self.waits = self.nodes_lost = self.blocks_lost = self.steps_repeated = 0
        self.driver_busy_seconds = self.own_cpu_seconds = 0.0
        self.size_by_time: list[tuple[float, int]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers, self._references = itertools.count(), itertools.count()
        self.nodes: dict[str, Node] = {}
        self._workers: dict[WorkerId, Worker] = {}
        self._callers: dict[Reference, Worker] = {}
        self._answers: dict[Reference, WorkerNode | BlockReport] = {}
        self._answered: deque[Reference] = deque()
        self._free: deque[Slot] = deque()
        self._placeless: deque[Worker] = deque()
        self._saved: dict[int, int] = {}
        self._target = setting.num_nodes
        self._is_out = False
        self._looked_at = 0.0
        self._set_up()

    # Nodes -------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        setting = self.setting
        for _ in range(setting.first_nodes or setting.num_nodes):
            self._add_node()
        if setting.first_nodes is not None:
            self._at(60 / setting.nodes_per_minute, self._grow)
        if setting.losses_per_minute:
            self._at(self._until_loss(), self._lose_some_node)
        if setting.shrinks:
            self._at(setting.work_seconds / 3, self._take_half)

    def _at(self, after: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + after, next(self._numbers), act))

    def _until_loss(self) -> float:
        return self._random.expovariate(self.setting.losses_per_minute / 60)

    def _add_node(self) -> None:
        setting = self.setting
        node = Node(f"node-{next(self._numbers)}")
        for _ in range(setting.node_gpus):
            slow = self._random.random() < setting.slow_share
            extra = self._random.expovariate(1 / (setting.slow_factor - 1)) if slow else 0.0
            slot = Slot(node, 1 + extra, "tail" if self._is_out else "vacant", self.now)
            node.slots.append(slot)
            self._free.append(slot)
        self.nodes[node.name] = node
        self.size_by_time.append((self.now, len(self.nodes)))
        self._place()

    def _grow(self) -> None:
        """The provider sends one node after the other, as long as they are missing and wanted."""
        if len(self.nodes) < self._target and (self._placeless or not self._is_out):
            self._add_node()
        self._at(60 / self.setting.nodes_per_minute, self._grow)

    def _take_half(self) -> None:
        """The provider takes nodes back, and offers them again later."""
        self._target = self.setting.num_nodes // 2
        for node in list(self.nodes.values())[self._target :]:
            self._remove(node)
        self._at(self.setting.work_seconds / 3, self._offer_all)

    def _offer_all(self) -> None:
        self._target = self.setting.num_nodes

    def _lose_some_node(self) -> None:
        self._at(self._until_loss(), self._lose_some_node)
        # A cluster that is half as large loses half as many.
        number = self._random.randrange(self.setting.num_nodes)
        if number < len(self.nodes):
            self.nodes_lost += 1
            self.lose_node(list(self.nodes)[number])
            if self.setting.first_nodes is None:
                self._at(self._random.expovariate(1 / self.setting.back_seconds), self._add_node)

    def lose_node(self, name: str) -> None:
        """Take a node away with all that its workers hold."""
        self._remove(self.nodes[name])

    def _remove(self, node: Node) -> None:
        del self.nodes[node.name]
        node.alive = False
        self.size_by_time.append((self.now, len(self.nodes)))
        for slot in node.slots:
            self._become(slot, "gone")
            if (worker := slot.worker) is not None:
                self._strand(worker)
        self._at(self.setting.noticed_seconds, lambda: setattr(node, "noticed", True))
        self._place()

    def _strand(self, worker: Worker) -> None:
        """A worker's process is gone: Ray starts it elsewhere unless it was ready before."""
        if not worker.is_ready:
            worker.slot = None
            self._placeless.append(worker)
            return
        if worker.block is None:
            return
        self.blocks_lost += 1
        self.spent.useful -= worker.unsaved_nominal
        self.spent.slow -= worker.unsaved_seconds - worker.unsaved_nominal
        self.spent.lost += worker.unsaved_seconds

    def _give_back(self, node: Node, since: float) -> None:
        """An idle node goes, if it has been idle ever since and nothing waits."""
        idle = all(slot.worker is None and slot.since <= since for slot in node.slots)
        if node.alive and self._is_out and idle:
            self._remove(node)

    def resources_now(self) -> Resources:
        """What Ray would count."""
        gpus = float(len(self.nodes) * self.setting.node_gpus)
        return Resources(cpus=gpus, gpus=gpus)

    # GPUs and workers ---------------------------------------------------------------------------

    def _become(self, slot: Slot, doing: str) -> None:
        """Count what a GPU has been doing, and from now on something else.

        Computing is counted when a call ends, since only then it is known what it was good for.
        """
        seconds = self.now - slot.since
        if slot.doing == "computing":
            # Reached where a call is cut off; `_end_call` counts whole ones.
            self.spent.lost += seconds
        elif slot.doing != "gone":
            setattr(self.spent, slot.doing, getattr(self.spent, slot.doing) + seconds)
        slot.doing, slot.since = doing, self.now

    def _place(self) -> None:
        while self._placeless and self._free:
            slot = self._free.popleft()
            if not slot.node.alive or slot.worker is not None:
                continue
            worker = self._placeless.popleft()
            if worker.number not in self._workers:
                self._free.appendleft(slot)
                continue
            worker.slot, slot.worker = slot, worker
            self._become(slot, "start")
            wait = self.setting.start_seconds * self._random.uniform(0.8, 1.2)
            self._at(wait, lambda worker=worker, slot=slot: self._started(worker, slot))

    def _started(self, worker: Worker, slot: Slot) -> None:
        if worker.slot is slot and slot.node.alive and slot.worker is worker:
            worker.is_ready = True
            self._become(slot, "driver")
            self._answer(worker, WorkerNode(slot.node.name, worker.number))

    def _answer(self, worker: Worker, answer: WorkerNode | BlockReport) -> None:
        if worker.reference is None:
            return
        self._answers[worker.reference] = answer
        self._answered.append(worker.reference)

    def _begin_call(self, worker: Worker, call: Advance) -> None:
        """The call has reached the worker."""
        slot, setting = worker.slot, self.setting
        if slot is None or not slot.node.alive or worker.call is not call:
            return
        if not worker.has_loaded:
            worker.has_loaded = True
            self._become(slot, "start")
            self._at(setting.load_seconds, lambda: self._begin_call(worker, call))
            return
        if worker.block != call.block:
            worker.block, worker.step = call.block, self._saved.get(call.block, 0)
            worker.saved_at = self.now
            worker.unsaved_nominal = worker.unsaved_seconds = 0.0
            self.steps_repeated += call.start - worker.step
        self._become(slot, "computing")
        steps = max(0, call.stop - worker.step)
        nominal = steps * setting.block_seconds / setting.num_steps
        self._at(nominal * slot.slowness, lambda: self._end_call(worker, call, steps, nominal))

    def _end_call(self, worker: Worker, call: Advance, steps: int, nominal: float) -> None:
        slot = worker.slot
        if slot is None or not slot.node.alive or worker.call is not call:
            return
        seconds = self.now - slot.since
        self.spent.useful += nominal
        self.spent.slow += seconds - nominal
        slot.doing, slot.since = "driver", self.now
        worker.step += steps
        worker.unsaved_nominal += nominal
        worker.unsaved_seconds += seconds
        if worker.step == self.setting.num_steps:
            self.stored[call.block] = self.stored.get(call.block, 0) + 1
            self._saved.pop(call.block, None)
            worker.block = None
        elif self._is_due(worker, steps):
            self._saved[call.block] = worker.step
            worker.saved_at, worker.unsaved_nominal, worker.unsaved_seconds = self.now, 0.0, 0.0
        at = WorkerNode(slot.node.name, worker.number)
        self._answer(
            worker, BlockReport(call.block, worker.step, steps, steps, seconds, 0, 0.0, at)
        )

    def _is_due(self, worker: Worker, steps: int) -> bool:
        if self.setting.save_every is None:
            return self.now - worker.saved_at > SAVE_SECONDS
        return (
            worker.step // self.setting.save_every
            > (worker.step - steps) // self.setting.save_every
        )

    # What the driver calls ----------------------------------------------------------------------

    def start(self, worker: WorkerId) -> None:
        """Start a worker on a free GPU, or as soon as one is free."""
        self._workers[worker] = Worker(worker)
        self._placeless.append(self._workers[worker])
        self._place()

    def ready(self, worker: WorkerId) -> Reference:
        """Ask a worker to answer as soon as it has started."""
        return self._remember(self._workers[worker])

    def _remember(self, worker: Worker) -> Reference:
        worker.reference = next(self._references)
        self._callers[worker.reference] = worker
        return worker.reference

    def advance(self, call: Advance) -> Reference:
        """Ask a worker to advance its block."""
        began = time.thread_time()
        self.calls += 1
        if self.log is not None:
            self.log.append((call.worker, call.block, call.start, call.stop))
        worker = self._workers[call.worker]
        worker.call = call
        reference = self._remember(worker)
        self._at(self.setting.costs.latency, lambda: self._begin_call(worker, call))
        self.own_cpu_seconds += time.thread_time() - began
        return reference

    def wait(self, references: Collection[Reference], seconds: float) -> Sequence[Reference]:
        """Move the clock to the next answer, at most by `seconds`; return all that are there."""
        began = time.thread_time()
        self.waits += 1
        costs = self.setting.costs
        self._work(costs.per_wait + costs.per_reference * len(references))
        self._advance_clock(self.now)
        deadline = self.now + seconds
        while not self._answered and self._events and self._events[0][0] <= deadline:
            self._advance_clock(self._events[0][0])
        if not self._answered:
            self.now = deadline
        answered = [ref for ref in self._answered if ref in self._callers]
        self._answered.clear()
        self.own_cpu_seconds += time.thread_time() - began
        return answered

    def _work(self, seconds: float) -> None:
        """The driver is busy meanwhile."""
        self.driver_busy_seconds += seconds
        self.now += seconds

    def _advance_clock(self, until: float) -> None:
        """Let everything happen that happens up to `until`, each at its time."""
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()
        self.now = until

    def answer(self, reference: Reference) -> WorkerNode | BlockReport:
        """Return an answer that is there."""
        began = time.thread_time()
        self._work(self.setting.costs.per_answer)
        del self._callers[reference]
        answer = self._answers.pop(reference)
        self.own_cpu_seconds += time.thread_time() - began
        return answer

    def dead(self) -> Sequence[WorkerId]:
        """Return workers whose node Ray knows to be gone, as often as `ActorGroup` looks."""
        if self.now - self._looked_at < NODES_SECONDS:
            return []
        self._looked_at = self.now
        began = time.thread_time()
        gone = [
            worker.number
            for worker in self._workers.values()
            if worker.is_ready and worker.slot is not None and worker.slot.node.noticed
        ]
        self.own_cpu_seconds += time.thread_time() - began
        return gone

    def end(self, worker: WorkerId) -> None:
        """End a worker; its GPU is free."""
        ended = self._workers.pop(worker)
        if ended.reference is not None:
            self._callers.pop(ended.reference, None)
        slot, ended.slot, ended.call = ended.slot, None, None
        if slot is None:
            return
        slot.worker = None
        if slot.node.alive:
            self._become(slot, "tail" if self._is_out else "vacant")
            self._free.append(slot)
            self._place()
            if self.setting.shrinks:
                since = self.now
                self._at(self.setting.idle_seconds, lambda: self._give_back(slot.node, since))

    # Running --------------------------------------------------------------------------------------

    def driver(self, observe: Observe | None = None) -> Driver:
        """Return the driver of a run on this cluster, with its first workers started."""
        setting = self.setting
        num_workers = min(len(self.nodes) * setting.node_gpus, setting.gpus, setting.blocks)
        for worker in range(num_workers):
            self.start(worker)
        scheduler = Scheduler(
            setting.num_steps, range(setting.blocks), num_workers, set(range(num_workers))
        )
        changes = setting.first_nodes is not None or setting.losses_per_minute > 0
        growth = Growth(ClusterConfig(), self.resources_now, setting.blocks, clock=lambda: self.now)

        def watch(state: Scheduler, totals: object) -> None:
            if not state.waiting and not self._is_out:
                self._is_out = True
                for slot in self._free:
                    if slot.node.alive and slot.worker is None:
                        self._become(slot, "tail")
            if observe is not None:
                observe(state, totals)

        return Driver(scheduler, self, watch, growth if changes else None, clock=lambda: self.now)

    def close(self) -> Spent:
        """Count what each GPU did up to now; return all of it."""
        for node in self.nodes.values():
            for slot in node.slots:
                self._become(slot, slot.doing)
        return replace(self.spent)
