"""The scheduler under every order of answers, deaths and growth: each block committed once."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.scheduler import (
    MAX_LOSSES,
    Action,
    Advance,
    BlockAdvanced,
    CapacityChanged,
    GiveUp,
    Retire,
    Scheduler,
    Start,
    WorkerLost,
    WorkerReady,
)


@dataclass
class Cluster:
    """Workers, saved states and a store as they really are, whatever the scheduler believes.

    `calls` are in flight; `saved` is what a restarted worker finds; `commits` counts real writes.
    """

    scheduler: Scheduler
    starting: list[int] = field(default_factory=list)
    calls: list[Advance] = field(default_factory=list)
    abandoned: list[Advance] = field(default_factory=list)
    saved: dict[int, int] = field(default_factory=dict)
    commits: dict[int, int] = field(default_factory=dict)
    gave_up: bool = False

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Start(worker):
                    self.starting.append(worker)
                case Advance():
                    assert action.block not in {call.block for call in self.calls}
                    assert action.worker not in {call.worker for call in self.calls}
                    assert 0 <= action.start < action.stop <= self.scheduler.num_steps
                    self.calls.append(action)
                case Retire(worker):
                    assert worker not in self.starting
                    assert worker not in {call.worker for call in self.calls}
                case GiveUp():
                    self.gave_up = True

    def compute(self, call: Advance) -> int:
        """What a worker does: take up, advance, save, and at the end commit, unless it was done."""
        if call.block in self.commits:
            return self.scheduler.num_steps
        stands = max(self.saved.get(call.block, 0), call.stop)
        self.saved[call.block] = stands
        if stands == self.scheduler.num_steps:
            self.commits[call.block] = self.commits.get(call.block, 0) + 1
        return stands

    def answer(self, number: int) -> None:
        call = self.calls.pop(number % len(self.calls))
        step = self.compute(call)
        event = BlockAdvanced(call.worker, call.block, step, call.stop - call.start, 0.25)
        self.carry_out(self.scheduler.handle(event))

    def die(self, number: int, after_commit: bool) -> None:
        """A worker dies before its answer, perhaps after its work; or its node only seems dead."""
        call = self.calls.pop(number % len(self.calls))
        if after_commit:
            self.compute(call)
        else:
            self.abandoned.append(call)
        self.carry_out(self.scheduler.handle(WorkerLost(call.worker)))

    def late_answer(self, number: int) -> None:
        """A worker that was given up finishes its call after all."""
        call = self.abandoned.pop(number % len(self.abandoned))
        step = self.compute(call)
        before = self.scheduler.steps_done
        assert self.scheduler.handle(BlockAdvanced(call.worker, call.block, step)) == []
        assert self.scheduler.steps_done == before

    def start_or_fail(self, number: int, works: bool) -> None:
        worker = self.starting.pop(number % len(self.starting))
        event = WorkerReady(worker) if works else WorkerLost(worker)
        self.carry_out(self.scheduler.handle(event))

    def check(self) -> None:
        scheduler = self.scheduler
        held = sorted(scheduler.held.values())
        assert len(set(held)) == len(held)
        everything = [*scheduler.waiting, *held, *scheduler.finished]
        assert sorted(everything) == list(range(len(everything)))
        assert set(self.starting) == scheduler.starting
        assert all(self.commits.get(block) == 1 for block in scheduler.finished)
        assert all(count == 1 for count in self.commits.values())


def cluster_of(num_blocks: int, num_steps: int, num_workers: int) -> Cluster:
    workers = range(min(num_workers, num_blocks))
    scheduler = Scheduler(num_steps, list(range(num_blocks)), len(workers), set(workers))
    return Cluster(scheduler, starting=list(workers))


@given(
    num_blocks=st.integers(1, 4),
    num_steps=st.integers(1, 5),
    num_workers=st.integers(1, 3),
    events=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=60),
)
def test_each_block_is_committed_once_under_every_order_of_failures(
    num_blocks: int, num_steps: int, num_workers: int, events: list[tuple[int, int]]
) -> None:
    cluster = cluster_of(num_blocks, num_steps, num_workers)
    for kind, number in events:
        if cluster.gave_up:
            break
        if kind in (0, 1) and cluster.starting:
            cluster.start_or_fail(number, works=kind == 0)
        elif kind in (2, 3) and cluster.calls:
            cluster.die(number, after_commit=kind == 2)
        elif kind == 4 and cluster.abandoned:
            cluster.late_answer(number)
        elif kind == 5 and cluster.calls:
            cluster.answer(number)
        elif kind == 6:
            cluster.carry_out(cluster.scheduler.handle(CapacityChanged(number)))
        cluster.check()
    if not cluster.gave_up:
        finish(cluster)
        assert cluster.commits == dict.fromkeys(range(num_blocks), 1)


def finish(cluster: Cluster) -> None:
    """From here on nothing fails, and there is room for one worker at least."""
    room = max(1, cluster.scheduler.capacity)
    cluster.carry_out(cluster.scheduler.handle(CapacityChanged(room)))
    while not cluster.scheduler.done:
        assert cluster.starting or cluster.calls, "no worker is busy and a block waits"
        if cluster.starting:
            cluster.start_or_fail(0, works=True)
        if cluster.calls:
            cluster.answer(0)
        cluster.check()


def test_a_lost_workers_block_goes_to_the_next_one_from_where_it_stood() -> None:
    scheduler = Scheduler(40, [0, 1], 2, {0, 1})
    scheduler.handle(WorkerReady(0))
    assert scheduler.handle(WorkerReady(1)) == [Advance(1, 1, 0, 1)]
    assert scheduler.handle(BlockAdvanced(1, 1, 1, 1, 1.0)) == [Advance(1, 1, 1, 3)]
    assert scheduler.handle(WorkerLost(1)) == [Start(2)]
    assert scheduler.handle(WorkerReady(2)) == [Advance(2, 1, 1, 3)]


def test_a_worker_that_starts_late_finds_nothing_and_is_retired() -> None:
    scheduler = Scheduler(1, [0], 1, {0, 1})
    scheduler.handle(WorkerReady(0))
    assert scheduler.handle(WorkerReady(1)) == [Retire(1)]
    assert scheduler.handle(BlockAdvanced(0, 0, 1)) == [Retire(0)]
    assert scheduler.done


def test_calls_are_cut_to_a_span_of_time_and_never_pass_the_end() -> None:
    scheduler = Scheduler(1000, [0], 1, {0})
    scheduler.handle(WorkerReady(0))
    slow = scheduler.handle(BlockAdvanced(0, 0, 1, steps_taken=1, seconds=2.0))
    assert slow == [Advance(0, 0, 1, 6)]
    fast = scheduler.handle(BlockAdvanced(0, 0, 6, steps_taken=5, seconds=0.001))
    assert fast == [Advance(0, 0, 6, 56)]
    assert scheduler.handle(BlockAdvanced(0, 0, 990)) == [Advance(0, 0, 990, 1000)]


@pytest.mark.parametrize("moves_on", [True, False])
def test_a_block_that_kills_its_workers_is_given_up_unless_it_moves_on(moves_on: bool) -> None:
    scheduler = Scheduler(100, [0], 1, {0})
    worker, actions = 0, []
    for step in range(1, MAX_LOSSES + 2):
        scheduler.handle(WorkerReady(worker))
        if moves_on:
            scheduler.handle(BlockAdvanced(worker, 0, step))
        actions = scheduler.handle(WorkerLost(worker))
        worker += 1
    assert actions == ([Start(worker)] if moves_on else [GiveUp(0)])


def test_workers_that_never_start_are_given_up() -> None:
    scheduler = Scheduler(100, [0], 1, {0})
    actions = [scheduler.handle(WorkerLost(worker)) for worker in range(MAX_LOSSES + 1)]
    assert actions[-1] == [GiveUp(None)]


def test_a_cluster_that_grows_takes_waiting_blocks_and_no_more_workers_than_blocks() -> None:
    scheduler = Scheduler(10, [0, 1, 2], 1, {0})
    scheduler.handle(WorkerReady(0))
    assert scheduler.handle(CapacityChanged(8)) == [Start(1), Start(2)]
    assert scheduler.handle(CapacityChanged(9)) == []
