"""The fuzz, as a program: each case in a forked process whose time and memory are bounded.

    python -m tests.torture.fuzz --count 1000            numbers 0 to 999 of seed 1
    python -m tests.torture.fuzz --seed 1 --number 17    one case again, with all it printed

Forked after everything is imported, so that a case costs what its command does. It is a process of
its own because forking one that runs threads, as a test runner may, is unsafe. Exits 1 if any case
ends in another way than it should.
"""

import argparse
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import cluster.inspection
import cluster.plan_stage
import cluster.upkeep
import cluster.whole_run
import pipeline.deletion.request_files
from tests.torture.base_run import make_base
from tests.torture.case import Case
from tests.torture.outcome import CRASHED, Outcome, call, command_line, explain, make_case, wrong

# Of each case: seconds of computing, bytes at its peak, and bytes beyond which it is given no more.
CPU_SECONDS = 20
PEAK_BYTES = 2 << 30
LIMIT_BYTES = 4 << 30
# For what neither computes nor ends.
WALL_SECONDS = 180

# Children inherit what these import.
IMPORTED = (cluster.inspection, cluster.plan_stage, cluster.upkeep, cluster.whole_run)
IMPORTED_TOO = (pipeline.deletion.request_files,)


def in_child(work: Callable[[], int]) -> tuple[int, int]:
    """Run work in a forked child; return its exit code, or minus a signal, and its peak memory."""
    child = os.fork()
    if child == 0:
        os._exit(work())
    deadline = time.monotonic() + WALL_SECONDS
    while True:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def run_apart(case: Case, folder: Path) -> tuple[Outcome, int]:
    """Run a case in a child with a working folder of its own; return its outcome and peak memory."""
    out, err = folder / "standard-output", folder / "standard-error"

    def work() -> int:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.chdir(folder)
        with command_line(case.words):
            code = call()
        sys.stdout.flush()
        sys.stderr.flush()
        return code

    code, peak = in_child(work)
    printed = (path.read_text(errors="replace") for path in (out, err))
    return Outcome(code, *printed), peak


def judged(seed: int, number: int, root: Path, show: bool) -> str | None:
    """Run one case; return what is wrong with it, or nothing."""
    folder = root / f"case-{number}"
    case = make_case(seed, number, folder, root / "base")
    outcome, peak = run_apart(case, folder)
    shutil.rmtree(folder, ignore_errors=True)
    if show:
        say(f"{case}\n{outcome.out}\n{outcome.err}\nexit {outcome.code}, {peak >> 20} MiB")
    if peak > PEAK_BYTES:
        return f"{explain(seed, number, case, outcome)}\n  held {peak >> 20} MiB"
    return explain(seed, number, case, outcome) if wrong(case, outcome) else None


def say(text: str) -> None:
    """Print a line now: the program may run for minutes."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the cases that the command line names; print those that fail and a count."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.fuzz")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, help="only this case, with all it prints")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    words = parser.parse_args()
    torch.set_num_threads(1)
    numbers = range(words.start, words.start + words.count)
    if words.number is not None:
        numbers = range(words.number, words.number + 1)
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["UNLEARN_KEY_FILE"] = str(root / "key")
        (root / "base").mkdir()
        if in_child(lambda: int(make_base(root / "base") is None))[0] != 0:
            say("the base run cannot be made")
            return CRASHED
        for number in numbers:
            said = judged(words.seed, number, root, words.number is not None)
            failures += said is not None
            if said is not None:
                say(said)
    say(f"{len(numbers)} cases, {failures} wrong")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
