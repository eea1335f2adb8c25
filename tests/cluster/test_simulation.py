"""The real driver on simulated clusters: what it completes, and what an answer costs it."""

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

import pytest

from benchmarks.simulate import CASES, PARTS, setting_of
from benchmarks.simulated_cluster import Setting, SimulatedCluster, Spent
from cluster.driver import Driver
from cluster.scheduler import Advance, BlockAdvanced, Scheduler, WorkerLost, WorkerReady
from cluster.workers import BlockReport, WorkerNode


def run_of(setting: Setting, seed: int = 0) -> tuple[SimulatedCluster, Spent]:
    cluster = SimulatedCluster(setting, seed, keeps_log=True)
    cluster.driver().run()
    return cluster, cluster.close()


@pytest.mark.parametrize("case", CASES)
def test_every_block_is_stored_once_and_every_second_is_accounted_for(case: str) -> None:
    setting = setting_of(case, gpus=64, blocks=400, losses=0.5)
    cluster, spent = run_of(setting)
    assert cluster.stored == dict.fromkeys(range(400), 1)
    assert (cluster.blocks_lost > 0) == (case in ("losses", "autoscaling", "all"))
    assert (cluster.steps_repeated > 0) == (spent.lost > 0) == (cluster.blocks_lost > 0)
    # What was kept is the work itself; all together is what the nodes offered.
    assert spent.useful == pytest.approx(400 * setting.block_seconds)
    sizes = [*cluster.size_by_time, (cluster.now, 0)]
    offered = sum(
        count * setting.node_gpus * (after - at) for (at, count), (after, _) in pairwise(sizes)
    )
    assert spent.offered == pytest.approx(offered)


def test_a_seed_fixes_the_run_to_the_last_event() -> None:
    setting = setting_of("all", gpus=32, blocks=100, losses=0.5)
    (first, spent), (again, same), (other, _) = (run_of(setting, seed) for seed in (3, 3, 4))
    assert (first.log, first.now, spent) == (again.log, again.now, same)
    assert first.log != other.log


def test_a_cluster_that_is_offered_machines_grows_shrinks_and_gives_idle_ones_back() -> None:
    setting = Setting(
        gpus=64, blocks=600, first_nodes=1, shrinks=True, slow_share=0.1, slow_factor=8
    )
    cluster, spent = run_of(setting)
    # Nodes of a growing cluster come one by one, so each size stands there once at least.
    sizes = [count for _, count in cluster.size_by_time]
    top = sizes.index(8)
    assert sizes[: top + 1] == list(range(1, 9))
    half = sizes.index(4, top)
    assert 8 in sizes[half:]
    assert sizes[-1] < 8
    assert spent.useful == pytest.approx(600 * setting.block_seconds)


def driver_of(num_workers: int, num_blocks: int) -> tuple[Scheduler, "CountedGroup", Driver]:
    group = CountedGroup()
    scheduler = CountedScheduler(4, range(num_blocks), num_workers, set(range(num_workers)))
    return scheduler, group, Driver(scheduler, group, lambda state, totals: state.steps_done)


class Counted(dict[Any, Any]):
    """A mapping that counts how often it is walked through."""

    walked = 0

    def _count(self) -> None:
        Counted.walked += len(self)

    def __iter__(self) -> Any:
        self._count()
        return super().__iter__()

    def items(self) -> Any:
        self._count()
        return super().items()

    def values(self) -> Any:
        self._count()
        return super().values()


class CountedScheduler(Scheduler):
    """The scheduler, whose tables count how often they are walked through."""

    def __post_init__(self, blocks: Any) -> None:
        super().__post_init__(blocks)
        self.held, self.positions = Counted(), Counted()


class CountedGroup:
    """Workers that answer at once, one at a time; it counts walks through the driver's calls."""

    def __init__(self) -> None:
        self.open: dict[int, Any] = {}
        self.made = self.waits = 0
        self.die: set[int] = set()

    def start(self, worker: int) -> None:
        pass

    def _call(self, answer: Any) -> int:
        self.made += 1
        self.open[self.made] = answer
        return self.made

    def ready(self, worker: int) -> int:
        return self._call(WorkerNode("node", worker))

    def advance(self, call: Advance) -> int:
        at = WorkerNode("node", call.worker)
        return self._call(
            BlockReport(call.block, call.stop, call.stop - call.start, 1, 1.0, 0, 0.0, at)
        )

    def wait(self, references: Any, seconds: float) -> Sequence[int]:
        self.waits += 1
        # A view, not a copy of every call that is under way.
        assert not isinstance(references, (list, tuple, set))
        return [next(iter(self.open))]

    def answer(self, reference: int) -> Any:
        return self.open.pop(reference)

    def dead(self) -> Sequence[int]:
        lost, self.die = self.die, set()
        return sorted(lost)

    def end(self, worker: int) -> None:
        pass


@pytest.mark.parametrize(("num_workers", "num_blocks"), [(2, 40), (200, 400)])
def test_an_answer_walks_through_no_table(num_workers: int, num_blocks: int) -> None:
    _, group, driver = driver_of(num_workers, num_blocks)
    driver._pending = Counted()
    Counted.walked = 0
    driver.run()
    assert group.waits == num_workers + num_blocks * 4
    assert Counted.walked == 0


def test_a_lost_worker_costs_no_walk_through_the_others_calls() -> None:
    scheduler, _, driver = driver_of(50, 60)
    driver._pending = Counted()
    for worker in range(50):
        driver._expect(worker, driver.group.ready(worker))
        scheduler.handle(WorkerReady(worker))
    Counted.walked = 0
    for worker in range(25):
        driver._lose(worker, "its node left the cluster")
    assert Counted.walked == 0
    assert len(driver._pending) == 50


def test_the_steps_done_are_those_of_the_positions() -> None:
    scheduler = Scheduler(10, range(3), 2, {0, 1})
    for event in (
        WorkerReady(0),
        WorkerReady(1),
        BlockAdvanced(0, 0, 4),
        BlockAdvanced(1, 1, 3),
        WorkerLost(1),
        BlockAdvanced(0, 0, 10),
        BlockAdvanced(0, 1, 7),
    ):
        scheduler.handle(event)
        expected = 10 * len(scheduler.finished) + sum(scheduler.positions.values())
        assert scheduler.steps_done == expected
    assert scheduler.steps_done == 17
    assert list(scheduler.waiting) == [2]


def test_the_looks_of_the_driver_do_not_outgrow_its_answers() -> None:
    calls = {}
    for gpus in (16, 128):
        cluster, _ = run_of(Setting(gpus=gpus, blocks=3 * gpus))
        calls[gpus] = cluster.calls / (3 * gpus)
        assert cluster.waits <= cluster.calls + gpus + cluster.now
    # CALLS_PER_BLOCK, and a short first call of each worker.
    assert calls[128] == pytest.approx(calls[16], rel=0.02)


def test_all_parts_of_the_time_are_named() -> None:
    assert {"useful", *PARTS} == {part.name for part in fields(Spent)}
