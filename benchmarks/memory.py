"""What a worker on CelebA needs beside its rows: pictures in a file of the run against whole in memory.

    python benchmarks/memory.py [--photos 10000] [--steps 1] [--batch 16] [--pictures 200000] [--json]

Photos of the published size (178x218) are made up and written in the original layout. Each figure
is of a process of its own, which loads a run of ResNet-18 at 128x128 as a worker does and takes
some steps of the recursion for two units: the first makes the file, the second finds it, as workers
do. Memory is that of the process alone (unique set size, psutil): the page cache, which all
processes of a node share, is not in it. The same is measured with everything held as float32, as
version 0.1.0 did.

Then a file of `--pictures` rows, all of them black, is made, opened and read as minibatches are.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.approximators.recursion import ChunkState, Conventions, advance
from pipeline.config import RunConfig
from pipeline.data import input_files
from pipeline.data.celeba import SIDE
from pipeline.data.images import IMAGENET, as_pictures
from pipeline.data.input_files import Allocate, InputFiles
from pipeline.data.lazy_inputs import as_tensor
from pipeline.heap import keep_freed_memory
from pipeline.hessian.roperator import Pairs
from pipeline.run.problem import Problem, digest_of
from pipeline.run.trained_part import write_start
from pipeline.training.step import step_context

UNITS, MIB = 2, 2**20
# A photo of JPEG quality 75 has about the published size, 7 kB.
QUALITY = 75


def write_photos(folder: Path, num_train: int, num_test: int) -> None:
    """Write made-up photos and the three lists in CelebA's original layout."""
    generator = np.random.default_rng(0)
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, num_train + num_test + 1)]
    lists: tuple[list[str], ...] = ([str(len(names)), "Male Young"], [], [])
    for place, name in enumerate(names):
        coarse = generator.integers(0, 256, (8, 7, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((178, 218), Image.Resampling.BILINEAR)
        buffer = BytesIO()
        photo.save(buffer, "JPEG", quality=QUALITY)
        (folder / "img_align_celeba" / name).write_bytes(buffer.getvalue())
        lists[0].append(f"{name} {1 if place % 2 else -1} 1")
        lists[1].append(f"{name} {place // 20}")
        lists[2].append(f"{name} {0 if place < num_train else 2}")
    for name, lines in zip(
        ("list_attr_celeba", "identity_CelebA", "list_eval_partition"), lists, strict=True
    ):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def configuration(folder: str, batch: int) -> RunConfig:
    """Return ResNet-18 on the photos, one unit per photo."""
    return RunConfig.from_values(
        {
            "seed": 42,
            "data": {"source": "celeba", "path": folder, "test_fraction": 0.05},
            "model": {"name": "resnet18", "stem": "imagenet", "normalization": "frozen-batch"},
            "training": {"epochs": 1, "batch_size": batch, "learning_rate": 0.01},
            "recursion": {"chunk": UNITS},
            "storage": {"block": UNITS},
        }
    )


class Watch:
    """The memory of this process alone, now and at most."""

    def __init__(self) -> None:
        self._process, self._most, self._ended = psutil.Process(), 0, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            self._most = max(self._most, self.now())

    def now(self) -> int:
        """Return the unique set size in bytes."""
        return int(self._process.memory_full_info().uss)

    def most(self) -> int:
        """Return the largest since the last call."""
        most, self._most = max(self._most, self.now()), 0
        return most


def of_worker(folder: str, run: str, steps: int, batch: int, whole: bool) -> dict[str, float]:
    """Load a run as a worker does and take some steps; return MiB and seconds."""
    keep_freed_memory()
    if whole:
        input_files.LARGE_BYTES = sys.maxsize
    watch = Watch()
    found = {"imports": watch.now() / MIB}
    began = time.perf_counter()
    problem = Problem.of(configuration(folder, batch), torch.device("cpu"), Path(run, "trajectory"))
    found |= {"load_seconds": time.perf_counter() - began, "loading": watch.most() / MIB}
    began = time.perf_counter()
    digest_of(problem.data)
    found["digest_seconds"] = time.perf_counter() - began
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(problem.data.num_samples, generator=generator)
    began = time.perf_counter()
    for ids in order[: 50 * batch].split(batch):
        problem.minibatch(ids)
    found |= {
        "minibatch_ms": 1e3 * (time.perf_counter() - began) / len(order[: 50 * batch].split(batch)),
        "minibatches": watch.most() / MIB,
    }
    conventions = Conventions(
        problem.config.training, problem.config.retraining, problem.config.recursion
    )
    began = time.perf_counter()
    with problem.arithmetic():
        rows = torch.zeros(UNITS, problem.num_parameters)
        state = ChunkState(0, rows, (), UNITS)
        for ids in order.split(batch)[:steps]:
            context = step_context(
                problem.network,
                problem.initial_P,
                problem.minibatch(ids),
                0.01,
                problem.coefficients,
            )
            state = advance(
                state, context, Pairs(torch.tensor([0]), torch.tensor([0])), conventions
            )
    found |= {
        "step_ms": 1e3 * (time.perf_counter() - began) / steps,
        "steps": watch.most() / MIB,
        "rows": 2 * UNITS * problem.num_parameters * 4 / MIB,
    }
    if not whole:
        # What a training leaves, so that a worker computes no statistics again.
        assert problem.part is not None
        Path(run, "trajectory").mkdir(exist_ok=True)
        write_start(Path(run, "trajectory"), problem.part)
    return found


def of_file(folder: str, pictures: int, batch: int) -> dict[str, float]:
    """Open a file of many pictures, making it if need be, and read minibatches; MiB and seconds."""
    keep_freed_memory()

    def build(allocate: Allocate) -> np.ndarray:
        return allocate((pictures, 3, SIDE, SIDE), np.dtype(np.uint8))

    watch = Watch()
    found = {"imports": watch.now() / MIB}
    began = time.perf_counter()
    kept = InputFiles(Path(folder)).kept((pictures,), build)
    found |= {"open_seconds": time.perf_counter() - began, "opening": watch.most() / MIB}
    inputs = as_tensor(as_pictures(kept, *IMAGENET))
    ids = torch.randperm(pictures, generator=torch.Generator().manual_seed(0))
    began, parts = time.perf_counter(), ids[: 100 * batch].split(batch)
    for part in parts:
        inputs[part]
    return found | {
        "minibatch_ms": 1e3 * (time.perf_counter() - began) / len(parts),
        "minibatches": watch.most() / MIB,
        "resident": psutil.Process().memory_info().rss / MIB,
    }


def in_a_process(name: str, *arguments: Any) -> dict[str, float]:
    """Return what a function of this file gives in a process of its own, with one thread."""
    call = json.dumps([name, *arguments])
    command = [sys.executable, str(Path(__file__)), "--call", call]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


CALLS: dict[str, Callable[..., dict[str, float]]] = {"worker": of_worker, "file": of_file}


def main() -> None:
    """Make the data, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=200_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--call", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.call:
        name, *arguments = json.loads(args.call)
        torch.set_num_threads(1)
        print(json.dumps(CALLS[name](*arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data, run = str(Path(folder, "celeba")), str(Path(folder, "run"))
        write_photos(Path(data), args.photos, max(2, args.photos // 19))
        found = {
            "whole": in_a_process("worker", data, run, args.steps, args.batch, True),
            "first": in_a_process("worker", data, run, args.steps, args.batch, False),
            "worker": in_a_process("worker", data, run, args.steps, args.batch, False),
            "file, made": in_a_process("file", f"{run}/many", args.pictures, args.batch),
            "file, opened": in_a_process("file", f"{run}/many", args.pictures, args.batch),
        }
    if args.json:
        print(json.dumps(found))
        return
    print(f"{platform.machine()}, torch {torch.__version__}, one thread; MiB unless said otherwise")
    for name, values in found.items():
        print(f"{name:<13}" + ", ".join(f"{key} {value:,.4g}" for key, value in values.items()))


if __name__ == "__main__":
    main()
