"""The wait loop on fake workers: deaths, late starts, errors, and what it keeps."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from cluster.driver import READY_SECONDS, Driver, WorkerGoneError, WorkTotals
from cluster.errors import WorkerFailedError, WorkersLostError
from cluster.scheduler import MAX_LOSSES, Advance, Scheduler
from cluster.workers import BlockReport, WorkerNode

NUM_STEPS = 4


@dataclass
class FakeGroup:
    """Workers that answer at once, unless `dies` names their next call or `sleeps` names them.

    A reference is the number of a call; blocks keep their positions as saved states would.
    """

    dies: set[tuple[int, int]] = field(default_factory=set)
    sleeps: set[int] = field(default_factory=set)
    fails: dict[int, Exception] = field(default_factory=dict)
    nodes_lost: list[int] = field(default_factory=list)
    now: float = 0.0
    positions: dict[int, int] = field(default_factory=dict)
    calls: dict[int, Advance | int] = field(default_factory=dict)
    committed: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    started: list[int] = field(default_factory=list)

    def start(self, worker: int) -> None:
        self.started.append(worker)

    def _call(self, what: Advance | int) -> int:
        self.calls[len(self.calls)] = what
        return len(self.calls) - 1

    def ready(self, worker: int) -> int:
        return self._call(worker)

    def advance(self, call: Advance) -> int:
        return self._call(call)

    def wait(self, references: Sequence[int], seconds: float) -> Sequence[int]:
        self.now += 0.5 * seconds
        awake = [r for r in references if self._worker(r) not in self.sleeps]
        return awake[:1]

    def _worker(self, reference: int) -> int:
        call = self.calls[reference]
        return call if isinstance(call, int) else call.worker

    def answer(self, reference: int) -> WorkerNode | BlockReport:
        call = self.calls[reference]
        if isinstance(call, int):
            return WorkerNode("node", 100 + call)
        if call.block in self.fails:
            raise self.fails[call.block]
        if (call.worker, call.block) in self.dies:
            raise WorkerGoneError(f"worker {call.worker} was killed")
        before = self.positions.get(call.block, 0)
        self.positions[call.block] = step = max(before, call.stop)
        if step == NUM_STEPS and before < NUM_STEPS:
            self.committed.append(call.block)
        return BlockReport(call.block, step, step - before, 7, 0.1, 0, 0.0, WorkerNode("node", 1))

    def dead(self) -> Sequence[int]:
        gone, self.nodes_lost = self.nodes_lost, []
        return gone

    def end(self, worker: int) -> None:
        self.ended.append(worker)


def driver_of(group: FakeGroup, num_blocks: int = 3, num_workers: int = 2) -> Driver:
    scheduler = Scheduler(NUM_STEPS, list(range(num_blocks)), num_workers, set(range(num_workers)))
    return Driver(scheduler, group, lambda state, totals: None, clock=lambda: group.now)


def test_every_block_is_computed_and_every_worker_let_go() -> None:
    group = FakeGroup()
    totals = driver_of(group).run()
    assert sorted(group.committed) == [0, 1, 2]
    assert sorted(group.ended) == [0, 1]
    assert totals.num_products == 3 * NUM_STEPS * 7
    assert totals.num_steps == 3 * NUM_STEPS


def test_a_dead_worker_is_replaced_and_its_block_finished_by_another() -> None:
    group = FakeGroup(dies={(0, 0)})
    totals = driver_of(group).run()
    assert sorted(group.committed) == [0, 1, 2]
    assert totals.workers_lost == 1
    assert group.started == [2]


def test_workers_on_a_node_that_left_are_given_up_though_their_calls_hang() -> None:
    group = FakeGroup(sleeps={0})
    driver = driver_of(group)

    def observe(state: Scheduler, totals: WorkTotals) -> None:
        if 0 in state.starting and len(state.finished) == 1:
            group.nodes_lost = [0]

    driver.observe = observe
    assert driver.run().workers_lost == 1
    assert sorted(group.committed) == [0, 1, 2]


def test_a_worker_that_never_starts_does_not_hold_a_block() -> None:
    group = FakeGroup(sleeps={0})
    driver_of(group).run()
    assert sorted(group.committed) == [0, 1, 2]


def test_when_no_worker_starts_the_driver_says_so() -> None:
    group = FakeGroup(sleeps={0, 1})
    with pytest.raises(WorkerFailedError, match=r"no worker has started.*3 blocks wait"):
        driver_of(group).run()
    assert READY_SECONDS < group.now < 2 * READY_SECONDS


def test_a_failed_computation_is_surfaced_at_once() -> None:
    group = FakeGroup(fails={1: WorkerFailedError("DivergedError: unit '7'")})
    with pytest.raises(WorkerFailedError, match="unit '7'"):
        driver_of(group).run()


def test_a_block_that_kills_every_worker_ends_the_run_with_the_reason() -> None:
    group = FakeGroup(dies={(worker, 2) for worker in range(20)})
    with pytest.raises(WorkersLostError, match=r"compute block 2.*was killed.*storage.block"):
        driver_of(group).run()
    assert len(group.started) <= MAX_LOSSES + 1


def test_a_cluster_that_grows_is_used() -> None:
    group = FakeGroup()
    driver = driver_of(group, num_blocks=6, num_workers=1)
    driver.capacity = lambda: 1 if group.now < 3 else 3
    driver.run()
    assert group.started == [1, 2]
    assert sorted(group.committed) == list(range(6))


def test_what_the_driver_holds_does_not_grow_with_the_blocks_it_has_finished() -> None:
    held = {}
    for num_blocks in (3, 300):
        group = FakeGroup()
        driver = driver_of(group, num_blocks)
        most = [0]

        def observe(
            state: Scheduler, totals: WorkTotals, driver: Driver = driver, most: list[int] = most
        ) -> None:
            most[0] = max(most[0], len(driver._pending) + len(state.held) + len(state.positions))

        driver.observe = observe
        driver.run()
        held[num_blocks] = most[0]
    assert held[300] == held[3]
