"""The simulation beside a real cluster of four Ray nodes on one machine: `simulate.py --confirm`.

Eight workers compute a tiny model's real rows into a real store. Two cores cannot compute for eight, so
each step sleeps as well, and sleeping takes no processor; what is compared is the driver's part, the
order and number of calls, and what the loss of a node costs.
"""

import os
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from benchmarks.growth import MadeUpWorker
from benchmarks.growth import make_run as growth_run
from benchmarks.simulated_cluster import DriverCosts, Setting, SimulatedCluster
from cluster.actors import ActorGroup
from cluster.driver import Driver, WorkTotals
from cluster.in_process import InProcessGroup
from cluster.scheduler import Advance, Scheduler
from cluster.session import draw_token, session
from cluster.workers import RecursionWorker
from pipeline import RunConfig, train
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.run.directory import RunDirectory
from storage.local_backend import LocalBackend
from storage.store import ApproximatorStore

NODES, NODE_WORKERS = 4, 2
WORKERS = NODES * NODE_WORKERS
BLOCKS, STEPS, SAVE_EVERY = 96, 40, 5
STEP_SECONDS = 0.1
# The node goes when so many blocks are finished.
LOST_AFTER = 32


class SleepingWorker(RecursionWorker):
    """The worker; each of its steps takes a GPU's time, without a GPU."""

    def _taken_up(self, block: int) -> Any:
        recursion = super()._taken_up(block)
        if "advance" not in vars(recursion):
            compute = recursion.advance

            def advance(stop: int) -> int:
                time.sleep(STEP_SECONDS * (stop - recursion.step))
                return compute(stop)

            vars(recursion)["advance"] = advance
        return recursion


@dataclass
class Seen:
    """What a run did, real or simulated.

    Attributes:
        calls: Each as (worker, block, start, stop).
        seconds: From the first call to the last answer.
        overheads: Seconds of each call beyond what the worker says that it took.
        first, others: Seconds of each worker's first call, and of a step in the others.
    """

    calls: list[tuple[int, int, int, int]] = field(default_factory=list)
    seconds: float = 0.0
    overheads: list[float] = field(default_factory=list)
    first: dict[int, float] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)
    steps: int = 0
    workers_lost: int = 0
    noticed_seconds: float = 0.0
    driver_cpu: float = 0.0

    @property
    def per_block(self) -> dict[int, list[tuple[int, int]]]:
        """The calls of each block."""
        found: dict[int, list[tuple[int, int]]] = {}
        for _, block, start, stop in self.calls:
            found.setdefault(block, []).append((start, stop))
        return found

    @property
    def given_twice(self) -> set[int]:
        """Blocks that more than one worker held."""
        holders = {(block, worker) for worker, block, _, _ in self.calls}
        return {b for b, count in Counter(block for block, _ in holders).items() if count > 1}

    @property
    def blocks_of_workers(self) -> list[int]:
        """How many blocks each worker held, fewest first."""
        held = Counter(worker for worker, _ in {(w, b) for w, b, _, _ in self.calls})
        return sorted(held.values())


class WatchedGroup(ActorGroup):
    """The actors, with a note of every call."""

    def __init__(self, start_actor: Any) -> None:
        super().__init__(start_actor)
        self.seen, self._sent = Seen(), {}

    def advance(self, call: Advance) -> Any:
        """Note the call and when it was sent."""
        self.seen.calls.append((call.worker, call.block, call.start, call.stop))
        sent = time.perf_counter()
        reference = super().advance(call)
        self._sent[reference] = (call, sent)
        return reference

    def answer(self, reference: Any) -> Any:
        """Note how long the call took, beyond what the worker says."""
        answer = super().answer(reference)
        if reference in self._sent:
            call, sent = self._sent.pop(reference)
            self.seen.steps += answer.steps_taken
            if call.worker not in self.seen.first:
                self.seen.first[call.worker] = answer.seconds
            else:
                self.seen.overheads.append(time.perf_counter() - sent - answer.seconds)
                self.seen.others.append(answer.seconds / max(1, answer.steps_taken))
        return answer


def make_run(folder: Path) -> RunDirectory:
    """Train softmax regression on digits: one unit a block, `BLOCKS` blocks, `STEPS` steps."""
    values = {
        "name": "confirm",
        "data": {"source": "digits", "num_train": BLOCKS},
        "training": {
            "epochs": STEPS // 4,
            "batch_size": BLOCKS // 4,
            "learning_rate": 0.1,
            "l2": 0.01,
        },
        "storage": {"block": 1, "encoding": "float32"},
        "cluster": {"save_every": SAVE_EVERY},
    }
    return train(RunConfig.from_values(values), folder / "run")


def _started(run: RunDirectory) -> Any:
    actor: Any = ray.remote(SleepingWorker).options(
        num_cpus=1,
        scheduling_strategy="SPREAD",
        max_restarts=5,
        max_task_retries=5,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(_paths())}},
    )
    return actor.remote(str(run.path), SAVE_EVERY, lambda: ray.get_runtime_context().get_node_id())


def _paths() -> list[str]:
    return [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]


def on_ray(loses_node: bool) -> Seen:
    """Compute a run on real nodes; check its rows; return what was seen."""
    draw_token()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder))
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": NODE_WORKERS})
        try:
            spare = [nodes.add_node(num_cpus=NODE_WORKERS) for _ in range(NODES - 1)]
            ray.init(address=nodes.address, log_to_driver=False)
            group = WatchedGroup(lambda: _started(run))
            for worker in range(WORKERS):
                group.start(worker)
            group.wait_until_ready(300)
            removed: list[float] = []

            def observe(state: Scheduler, totals: WorkTotals) -> None:
                if loses_node and not removed and len(state.finished) >= LOST_AFTER:
                    nodes.remove_node(spare[-1], allow_graceful=False)
                    removed.append(time.perf_counter())
                if removed and not group.seen.noticed_seconds and totals.workers_lost:
                    group.seen.noticed_seconds = time.perf_counter() - removed[0]

            job = PrecomputeJob.of(run)
            scheduler = Scheduler(STEPS, job.waiting(), WORKERS, set(range(WORKERS)))
            driver = Driver(scheduler, group, observe)
            began, cpu = time.perf_counter(), time.process_time()
            totals = driver.run()
            group.seen.seconds = time.perf_counter() - began
            group.seen.driver_cpu = time.process_time() - cpu
            group.seen.workers_lost = totals.workers_lost
            job.store.merge()
            assert ApproximatorStore.open(run.store_url).verify() == []
        finally:
            ray.shutdown()
            nodes.shutdown()
    return group.seen


def simulated(real: Seen, loses_node: bool) -> Seen:
    """Simulate the same run with the costs that the real one had."""
    step = statistics.mean(real.others)
    costs = DriverCosts(
        per_answer=real.driver_cpu / len(real.calls),
        latency=statistics.mean(real.overheads),
    )
    setting = Setting(
        gpus=WORKERS,
        blocks=BLOCKS,
        node_gpus=NODE_WORKERS,
        num_steps=STEPS,
        block_seconds=STEPS * step,
        save_every=SAVE_EVERY,
        # Ray tells it by the calls' answers as well, between two looks at the nodes.
        noticed_seconds=max(0.0, real.noticed_seconds - 2.5),
        start_seconds=0.0,
        load_seconds=statistics.mean(real.first.values()) - step,
        costs=costs,
    )
    cluster = SimulatedCluster(setting, keeps_log=True)
    seen, lost = Seen(), [False]

    def observe(state: Scheduler, totals: WorkTotals) -> None:
        if loses_node and not lost[0] and len(state.finished) >= LOST_AFTER:
            lost[0] = True
            cluster.lose_node(list(cluster.nodes)[-1])

    totals = cluster.driver(observe).run()
    seen.calls, seen.seconds = list(cluster.log or []), cluster.now
    seen.steps, seen.workers_lost = totals.num_steps, totals.workers_lost
    return seen


def confirm() -> None:
    """Print both runs beside their simulations."""
    heads, columns = [], []
    for loses_node in (False, True):
        real = on_ray(loses_node)
        model = simulated(real, loses_node)
        step = statistics.mean(real.others)
        same = sum(model.per_block[block] == calls for block, calls in real.per_block.items())
        for name, seen in (("Ray", real), ("simulated", model)):
            heads.append(f"{name}, a node lost" if loses_node else name)
            order = list(seen.per_block)
            columns.append(
                [
                    f"{len(seen.calls):,}",
                    f"{same} of {BLOCKS}" if name == "Ray" else "",
                    "yes" if order == sorted(order) else "no",
                    " ".join(map(str, seen.blocks_of_workers)),
                    f"{len(seen.given_twice)}",
                    f"{seen.workers_lost}",
                    f"{seen.steps:,}",
                    f"{seen.seconds:.1f}",
                    f"{BLOCKS * STEPS * step / WORKERS / seen.seconds:.1%}",
                ]
            )
        print(
            f"measured: a step {step * 1e3:.1f} ms, a worker's first call "
            f"{statistics.mean(real.first.values()):.2f} s, overhead of a call "
            f"{statistics.mean(real.overheads) * 1e3:.1f} ms, driver "
            f"{real.driver_cpu / len(real.calls) * 1e3:.2f} ms of processor a call"
            + (f", loss noticed after {real.noticed_seconds:.1f} s" if loses_node else ""),
            flush=True,
        )
    names = ["calls", "blocks with the same calls", "blocks given out in their order",
             "blocks of each worker", "blocks given to two workers", "workers lost",
             "steps in answers", "seconds", "efficiency"]  # fmt: skip
    print("\n| | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|")
    for number, name in enumerate(names):
        print(f"| {name} | " + " | ".join(column[number] for column in columns) + " |")


class Answerer:
    """Answers at once, or after a while."""

    def answer(self, seconds: float = 0.0) -> int:
        """Return a number after so many seconds."""
        time.sleep(seconds)
        return 1


def ray_costs() -> None:
    """Print what one answer and one look cost the driver, by the number of calls under way."""
    print("| calls under way | one answer at a time, ms | processor of it, ms | one look, ms |")
    print("|---|---|---|---|")
    with session("local", 2):
        busy, quick = (ray.remote(Answerer).remote() for _ in range(2))
        ray.get([busy.answer.remote(), quick.answer.remote()])
        for number in (8, 64, 512, 4096):
            others = [busy.answer.remote(30.0), *(busy.answer.remote() for _ in range(number - 1))]
            began, cpu, repeats = time.perf_counter(), time.process_time(), 200
            for _ in range(repeats):
                reference = quick.answer.remote()
                ray.wait([*others, reference], num_returns=1, timeout=5)
                ray.get(reference)
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
            began = time.perf_counter()
            for _ in range(50):
                ray.wait(others, num_returns=len(others), timeout=0)
            look = (time.perf_counter() - began) / 50
            print(f"| {number:,} | {wall / repeats * 1e3:.2f} | {cpu / repeats * 1e3:.2f} | "
                  f"{look * 1e3:.2f} |", flush=True)  # fmt: skip
            ray.kill(busy)
            busy = ray.remote(Answerer).remote()
            ray.get(busy.answer.remote())


def _counting(counted: Counter[str]) -> Any:
    """Have every local backend count what would be requests to an object store."""
    names = ("read", "open", "put", "delete", "sizes", "folders", "version", "lock")

    def wrapped(name: str, method: Any) -> Any:
        def call(self: Any, *args: Any, **options: Any) -> Any:
            counted[name] += 1
            return method(self, *args, **options)

        return call

    for name in names:
        setattr(LocalBackend, name, wrapped(name, getattr(LocalBackend, name)))


def store_costs() -> None:
    """Print the store's part: operations of a block's worker, and folding the parts at the end."""
    counted: Counter[str] = Counter()
    _counting(counted)
    print("| blocks of one unit | calls | operations of a block | of these | folding, s "
          "| its operations, a block |\n|---|---|---|---|---|---|")  # fmt: skip
    for num_blocks in (250, 1000, 4000):
        with tempfile.TemporaryDirectory() as folder:
            run = growth_run(Path(folder), num_blocks, 20, "1")
            problem = run.problem()
            job = PrecomputeJob.of_training(run, problem)
            group = InProcessGroup(
                lambda run=run, problem=problem: MadeUpWorker(run.path, problem=problem)
            )
            group.start(0)
            waiting = job.waiting()
            scheduler = Scheduler(job.trajectory.num_steps, waiting, 1, {0})
            counted.clear()
            totals = [0]

            def observe(state: Scheduler, work: WorkTotals, totals: list[int] = totals) -> None:
                totals[0] += 1

            Driver(scheduler, group, observe).run()
            of_blocks = Counter(counted)
            counted.clear()
            began = time.perf_counter()
            job.store.merge()
            seconds = time.perf_counter() - began
            kinds = ", ".join(f"{k} {v / num_blocks:.1f}" for k, v in sorted(of_blocks.items()))
            each = of_blocks.total() / num_blocks
            print(f"| {num_blocks:,} | {totals[0]:,} | {each:.1f} | {kinds} | {seconds:.1f} | "
                  f"{counted.total() / num_blocks:.2f} |", flush=True)  # fmt: skip
