"""Time of whole processes of the command line, against a process that only imports torch.

    python benchmarks/startup.py [--repeats 7] [--config configs/digits.yaml] [--folder DIR]

Each round runs every command once, one after another, as a user does: a new interpreter, from its
start to its end. A run of the configuration is made once, in a temporary folder with a key file of its
own; each deletion gets a fresh copy of it, made outside of the measured time. CPU seconds are user and
system time of the process and its children. Bytecode is compiled in a round that does not count.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@dataclass
class Command:
    """One command line, what must be there before it starts, and what it took, in seconds.

    Attributes:
        name: In the table.
        words: After the interpreter's name.
        aim: Wall seconds that it should take at most; None for an alternative.
        prepare: Called before each start, outside of the measured time.
    """

    name: str
    words: list[str]
    aim: float | None = None
    prepare: Callable[[], object] = lambda: None
    wall_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def run(self, environment: dict[str, str], counts: bool) -> None:
        """Start the process, wait for its end, and note its time if this round counts."""
        self.prepare()
        before, began = _cpu_seconds(), time.perf_counter()
        subprocess.run(
            [sys.executable, *self.words], env=environment, check=True, capture_output=True
        )
        wall, cpu = time.perf_counter() - began, _cpu_seconds() - before
        if counts:
            self.wall_seconds.append(wall)
            self.cpu_seconds.append(cpu)

    def line(self) -> str:
        """Return the row of the table: medians, and the fastest round."""
        wall, cpu = statistics.median(self.wall_seconds), statistics.median(self.cpu_seconds)
        aim = "" if self.aim is None else f"{self.aim:g}"
        return f"| {self.name} | {wall:.2f} | {min(self.wall_seconds):.2f} | {cpu:.2f} | {aim} |"


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_run(config: Path, folder: Path) -> None:
    """Train and precompute in this process; what is measured starts from the finished run."""
    from pipeline import RunConfig, precompute, train

    precompute(train(RunConfig.load(config), folder))


def commands(run: Path) -> Iterator[Command]:
    """Yield what is measured; `run` is a finished run."""
    copy = run.parent / "copy"

    def fresh_copy() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)

    unlearn = ["-m", "cluster"]
    yield Command("unlearn --help", [*unlearn, "--help"], 0.4)
    yield Command("unlearn --version", [*unlearn, "--version"], 0.4)
    yield Command("unlearn status", [*unlearn, "status", str(run)], 1.5)
    yield Command("unlearn verify", [*unlearn, "verify", str(run)], 1.5)
    delete = [*unlearn, "delete", str(copy), "--ids", "3"]
    yield Command("unlearn delete, one unit", delete, 1.5, fresh_copy)
    yield Command("python -c 'import torch'", ["-c", "import torch"])
    yield Command("python -c 'import numpy'", ["-c", "import numpy"])
    yield Command("python -c pass", ["-c", "pass"])


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "digits.yaml")
    parser.add_argument("--folder", type=Path, default=None, help="where the run is made")
    options = parser.parse_args()
    if options.repeats < 5:
        parser.error("--repeats must be at least 5: medians of fewer say little")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "UNLEARN_KEY_FILE": str(Path(name) / "key"),
        }
        run = Path(name) / "run"
        make_run(options.config, run)
        measured = list(commands(run))
        for repeat in range(options.repeats + 1):
            for command in measured:
                command.run(environment, counts=repeat > 0)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"torch {version('torch')}, numpy {version('numpy')}; "
          f"load when it ended {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print(f"Seconds of whole processes, {options.repeats} interleaved rounds:\n")
    print("| process | wall, median | wall, fastest | CPU, median | aim |\n|---|---|---|---|---|")
    print("\n".join(command.line() for command in measured))


if __name__ == "__main__":
    main()
