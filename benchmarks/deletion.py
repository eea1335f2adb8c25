"""Time of a whole durable deletion, by its parts, against what a person would do instead.

    python benchmarks/deletion.py [--models logistic,cnn,resnet18] [--repeats 15] [--folder DIR]

Rows are random: what they say does not change what they cost. In one process, for each model:

- sum:      rows read, checked, decoded and summed (the store's work)
- noise:    drawn from the operating system's entropy, where epsilon and delta are asked for
- files:    sum, model and certificates written and fsynced
- ledger:   the five transactions, each fsynced
- erasure:  rows and names gone from the store, fsynced
- total:    from request to receipt, as a library call on an open run
- floor:    the rows' bytes read from a plain file, and the model written and fsynced
- addition: w + a alone, in memory (the paper's measure), and one pass over the same bytes

and retraining, fine-tuning and NegGrad on a training set of the paper's size (ResNet-18: one step,
times the steps of the recipe, marked ~). For ResNet-18 also one unit of a whole run with 20
checkpoints (0.9 GB): the call of `delete` with the run's folder, the command `unlearn delete`, and
reading and hashing every checkpoint once, which a deletion does not do.
"""

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.baselines import BASELINES, BaselineTask
from pipeline.certificates.privacy import sigma_for, standard_normals
from pipeline.certificates.sensitivity import Declaration, UnitsBound
from pipeline.config import RunConfig
from pipeline.deletion.context import DeletionContext, TensorShape
from pipeline.deletion.delete import delete
from pipeline.deletion.releases import open_releases
from pipeline.deletion.requests import DeletionRequest
from pipeline.deletion.staging import Dependencies
from pipeline.deletion.weights import DeletionRule, add_scaled
from pipeline.heap import keep_freed_memory
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule
from pipeline.run.store import open_store
from pipeline.training.train import train
from storage.layout import StoreSpec
from storage.store import ApproximatorStore

# P parameters, m units of one deletion

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Case:
    """A model's rows, and the training it is compared with."""

    name: str
    num_parameters: int
    num_rows: int
    encoding: str
    block: int
    units: tuple[int, ...]
    input_shape: tuple[int, ...]
    model: dict[str, Any]
    training: dict[str, Any]
    num_samples: int


CASES = (
    Case(
        "logistic",
        7_850,
        1_437,
        "float16",
        256,
        (1, 10, 100),
        (1, 28, 28),
        {"name": "logistic"},
        {"epochs": 15, "batch_size": 32, "learning_rate": 0.05, "l2": 0.5},
        1_000,
    ),
    Case(
        "cnn",
        21_840,
        1_437,
        "float16",
        256,
        (1, 10, 100),
        (1, 28, 28),
        {"name": "cnn"},
        {"epochs": 20, "batch_size": 64, "learning_rate": 0.05, "l2": 1e-6},
        1_000,
    ),
    Case(
        "resnet18",
        11_181_642,
        64,
        "int8",
        8,
        (1, 4),
        (3, 32, 32),
        {"name": "resnet18"},
        {"epochs": 40, "batch_size": 256, "learning_rate": 0.001, "l2": 0.01},
        512,
    ),
)
RECIPE_STEPS = 7_840  # ResNet-18 on CIFAR-10: 40 epochs of 50,000 in minibatches of 256


@dataclass
class Clock:
    """Sums up what passes between crash points, which stand around every fsync and transaction."""

    parts: dict[str, float] = field(default_factory=dict)
    began: float = 0.0

    def faults(self, point: str) -> None:
        """Charge the time since the last point to the part that this point ends."""
        now = time.perf_counter()
        name = point.split(":")[0]
        if point.endswith(("after-commit", "before-commit")):
            part = "ledger"
        elif name == "erase":
            part = "erasure" if point.endswith("after") else "files"
        else:
            part = "files"
        self.parts[part] = self.parts.get(part, 0.0) + now - self.began
        self.began = now

    def normals(self, count: int) -> Any:
        """Draw noise and keep its time apart from the writing around it."""
        began = time.perf_counter()
        values = standard_normals(count)
        spent = time.perf_counter() - began
        self.parts["noise"] = self.parts.get("noise", 0.0) + spent
        self.parts["files"] = self.parts.get("files", 0.0) - spent
        return values

    def restart(self) -> None:
        """Forget everything and start now."""
        self.parts.clear()
        self.began = time.perf_counter()


def make_store(folder: Path, case: Case) -> ApproximatorStore:
    """Fill a store with random rows."""
    spec = StoreSpec(case.num_parameters, case.encoding, block=case.block)  # type: ignore[arg-type]
    names = [str(row) for row in range(case.num_rows)]
    store = ApproximatorStore.create(
        folder / "approximators.zarr", names, [1] * case.num_rows, spec
    )
    generator = np.random.default_rng(0)
    for block in range(store.num_blocks):
        shape = (len(store.block_units(block)), case.num_parameters)
        store.write_rows(block, generator.standard_normal(shape, np.float32) * 1e-4)
    store.merge()
    return store


def make_facts(case: Case) -> DeletionContext:
    """A run with one flat tensor; the number of tensors costs nothing."""
    generator = np.random.default_rng(1)
    return DeletionContext(
        run_digest="benchmark",
        trained_P=generator.standard_normal(case.num_parameters, np.float32),
        tensors=(TensorShape("weight", (case.num_parameters,)),),
        samples_per_unit={str(row): 1 for row in range(case.num_rows)},
        rule=DeletionRule("remaining", "left-out", case.num_rows, 32),
        declaration=Declaration("calibrated", (UnitsBound(case.num_rows, 0.1),)),
    )


def deletions(folder: Path, case: Case, repeats: int) -> list[dict[str, Any]]:
    """Time deletions of each m, with and without noise, one release after another."""
    store, facts, clock = make_store(folder, case), make_facts(case), Clock()
    units = iter(range(case.num_rows))
    results = []
    with open_releases(
        folder, facts, store, dependencies=Dependencies(clock.faults, normals=clock.normals)
    ) as run:
        run.delete(DeletionRequest([next(units)]))  # the first creates what the others find
        for m in case.units:
            for private in (False, True):
                count = repeats if m < 100 else min(repeats, 5)
                rounds = [_one(run, clock, units, m, private) for _ in range(count)]
                results.append({"m": m, "noise asked": private, "rounds": rounds})
    return results


def _one(run: Any, clock: Clock, units: Any, m: int, private: bool) -> dict[str, float]:
    privacy = {"epsilon": 1.0, "delta": 1e-5} if private else {}
    request = DeletionRequest([next(units) for _ in range(m)], **privacy)
    clock.restart()
    receipt = run.delete(request)
    parts = dict(clock.parts)
    # The sum lies before the first file's fsync.
    parts["files"] -= receipt.sum_seconds
    return parts | {"sum": receipt.sum_seconds, "total": receipt.total_seconds}


def floor_seconds(folder: Path, case: Case, repeats: int) -> dict[str, list[float]]:
    """Time reading one row's bytes from a plain file, and writing and fsyncing a model."""
    row_bytes = case.num_parameters * {"float16": 2, "int8": 1}[case.encoding]
    row, model = os.urandom(row_bytes), os.urandom(4 * case.num_parameters)
    (folder / "row").write_bytes(row)
    times: dict[str, list[float]] = {"read": [], "write": []}
    for repeat in range(repeats):
        began = time.perf_counter()
        (folder / "row").read_bytes()
        read = time.perf_counter()
        with (folder / f"model-{repeat}").open("wb") as file:
            file.write(model)
            file.flush()
            os.fsync(file.fileno())
        times["read"].append(read - began)
        times["write"].append(time.perf_counter() - read)
    return times


def addition_seconds(case: Case, repeats: int) -> dict[str, list[float]]:
    """Time w + a in float32, float32(w + factor S) as a release does it, and copies of the bytes."""
    generator = np.random.default_rng(2)
    w_P = generator.standard_normal(case.num_parameters, np.float32)
    sum_P = generator.standard_normal(case.num_parameters)
    out_P, other_P = np.empty_like(w_P), w_P * 2

    def one_pass() -> None:
        """Read 8 bytes and write 4 for each parameter, as an addition does."""
        np.copyto(out_P, w_P)
        np.copyto(out_P[: out_P.size // 2], other_P[: out_P.size // 2])

    runs: dict[str, Callable[[], Any]] = {
        "addition": lambda: np.add(w_P, other_P, out=out_P),
        "pass": one_pass,
        "corrected": lambda: add_scaled(w_P, sum_P, 1e-3),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(max(repeats, 15)):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return times


def alternatives(folder: Path, case: Case) -> dict[str, float]:
    """Time one retraining, fine-tuning and NegGrad without one sample, random data."""
    generator = np.random.default_rng(3)
    data = folder / "data.npz"
    inputs = generator.standard_normal((case.num_samples, *case.input_shape), np.float32)
    np.savez(data, x=inputs, y=np.arange(case.num_samples) % 10)
    whole = case.name != "resnet18"
    training = case.training if whole else {**case.training, "epochs": 1}
    config = RunConfig.from_values(
        {
            "name": case.name,
            "data": {"source": "arrays", "path": str(data), "test_fraction": 0.1},
            "model": case.model,
            "training": training,
            "cluster": {"cpus_per_worker": torch.get_num_threads()},
        }
    )
    problem = Problem.of(config)
    num_samples = problem.data.num_samples
    schedule = Schedule.draw(config.training, num_samples, 0)
    forgotten = torch.zeros(num_samples, dtype=torch.bool)
    forgotten[:32] = True
    task = BaselineTask(problem, schedule, problem.initial_P, forgotten)
    if whole:
        return {
            name: _timed(BASELINES[name], task) for name in ("retrain", "fine-tune", "neg-grad")
        }
    step = _timed(BASELINES["retrain"], task) / schedule.num_steps
    return {"retrain": step * RECIPE_STEPS, "fine-tune": step * RECIPE_STEPS * 15 / 40}


def _timed(run: Callable[[BaselineTask], Any], task: BaselineTask) -> float:
    began = time.perf_counter()
    run(task)
    return time.perf_counter() - began


def many_users(folder: Path, case: Case) -> dict[str, float]:
    """Delete 10,000 units in one batch; return seconds and the growth of peak memory in MiB."""
    case = replace(case, num_rows=10_500)
    store, facts = make_store(folder, case), make_facts(case)
    with open_releases(folder, facts, store) as run:
        run.delete(DeletionRequest([0]))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        receipt = run.delete(DeletionRequest(range(1, 10_001)))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": receipt.total_seconds, "growth": (after - before) / 1024}


def make_run(folder: Path) -> Path:
    """Make a run of ResNet-18 with 20 checkpoints by 19 steps of training; its rows are random."""
    generator = np.random.default_rng(4)
    x = generator.standard_normal((57, 3, 32, 32), np.float32)
    np.savez(folder / "few.npz", x=x, y=np.arange(57) % 10, x_test=x[:10], y_test=np.arange(10))
    config = RunConfig.from_values(
        {
            "data": {"source": "arrays", "path": str(folder / "few.npz")},
            "model": {"name": "resnet18"},
            "training": {"epochs": 1, "batch_size": 3, "learning_rate": 1e-4},
            "recursion": {"checkpoint_every": 1},
            "storage": {"block": 8},
        }
    )
    run = train(config, folder / "run")
    store = open_store(run, run.problem())
    for block in range(store.num_blocks):
        shape = (len(store.block_units(block)), run.problem().num_parameters)
        store.write_rows(block, generator.standard_normal(shape, np.float32) * 1e-6)
    store.merge()
    return run.path


def whole_calls(run: Path, repeats: int) -> dict[str, list[float]]:
    """Time deletions of one unit each from a run's folder, and hashing all checkpoints, in seconds."""
    times: dict[str, list[float]] = {"call": [], "receipt": [], "command": [], "hash": []}
    checkpoints = sorted((run / "trajectory").glob("checkpoint-*"))
    units = iter(range(57))
    delete(run, [next(units)])  # the first creates what the others find
    for _ in range(repeats):
        began = time.perf_counter()
        receipt = delete(run, [next(units)])
        times["call"].append(time.perf_counter() - began)
        times["receipt"].append(receipt.total_seconds)
        words = ["-m", "cluster", "delete", str(run), "--ids", str(next(units))]
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True, cwd=ROOT)
        times["command"].append(time.perf_counter() - began)
        began = time.perf_counter()
        for path in checkpoints:
            blake3().update_mmap(path)
        times["hash"].append(time.perf_counter() - began)
    return times


def report_whole_calls(root: Path, repeats: int) -> None:
    """Measure the run of ResNet-18 and print its lines."""
    folder = root / "whole"
    folder.mkdir()
    times = whole_calls(make_run(folder), repeats)
    print("\n## One unit of a ResNet-18 run with 20 checkpoints (ms, p50 / p95)\n")
    print(f"delete(folder, [unit]): {milliseconds(times['call'])}; its receipt says "
          f"{milliseconds(times['receipt'])}; the command, whole process: "
          f"{milliseconds(times['command'])}; hashing all checkpoints once: "
          f"{milliseconds(times['hash'])}")  # fmt: skip
    shutil.rmtree(folder)


def milliseconds(values: list[float]) -> str:
    """Show the median and the 95th percentile."""
    return f"{1e3 * statistics.median(values):.2f} / {1e3 * float(np.quantile(values, 0.95)):.2f}"


def report(case: Case, root: Path, repeats: int) -> None:
    """Measure one model and print its lines."""
    folder = root / case.name
    folder.mkdir()
    print(f"\n## {case.name}: P = {case.num_parameters:,}, {case.encoding} rows\n")
    names = ("sum", "noise", "files", "ledger", "erasure", "total")
    print(f"| m | noise | {' | '.join(names)} |  (ms, p50 / p95)\n|{'---|' * 8}")
    few = repeats if case.num_rows > 100 else min(repeats, 5)
    results = deletions(folder, case, few)
    for result in results:
        columns = [[r.get(name, 0.0) for r in result["rounds"]] for name in names]
        shown = " | ".join(milliseconds(column) for column in columns)
        print(f"| {result['m']} | {'yes' if result['noise asked'] else 'no'} | {shown} |")
    floor = floor_seconds(folder, case, few)
    lowest = [read + write for read, write in zip(floor["read"], floor["write"], strict=True)]
    total = statistics.median(r["total"] for r in results[0]["rounds"])
    print(f"\nfloor (read one row, write and fsync a model): {milliseconds(lowest)} ms; "
          f"one unit / floor: {total / statistics.median(lowest):.2f}")  # fmt: skip
    added = addition_seconds(case, repeats)
    ratio = statistics.median(a / b for a, b in zip(added["addition"], added["pass"], strict=True))
    print(f"w + a: {milliseconds(added['addition'])} ms, {ratio:.2f} of one pass over the bytes; "
          f"float32(w + factor S): {milliseconds(added['corrected'])} ms")  # fmt: skip
    others = alternatives(folder, case)
    mark = "~" if case.name == "resnet18" else ""
    print("; ".join(f"{name} {mark}{seconds:.3g} s" for name, seconds in others.items()))
    shutil.rmtree(folder)


def main() -> None:
    """Measure and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="logistic,cnn,resnet18")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=None, help="where stores are made")
    options = parser.parse_args()
    keep_freed_memory()
    sigma_for(1.0, 1.0, 1e-5)  # imported once, outside of every measurement
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"torch {torch.__version__}, numpy {np.__version__}")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        os.environ["UNLEARN_KEY_FILE"] = str(Path(name) / "key")
        for case in CASES:
            if case.name in options.models.split(","):
                report(case, Path(name), options.repeats)
        if "resnet18" in options.models:
            report_whole_calls(Path(name), min(options.repeats, 7))
        if "logistic" in options.models:
            folder = Path(name) / "many"
            folder.mkdir()
            found = many_users(folder, CASES[0])
            print(f"\n10,000 users in one batch, logistic: {found['seconds']:.2f} s, "
                  f"peak memory grew by {found['growth']:.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    main()
