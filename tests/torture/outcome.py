"""What came of a case, and whether it should have."""

import io
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random

from cluster import cli
from tests.torture import odd_configs, odd_data, odd_requests, odd_runs
from tests.torture.case import Case, Workshop

FAMILIES = (odd_configs.MAKERS, odd_data.MAKERS, odd_requests.MAKERS, odd_runs.MAKERS)
# One line is read by a person: ten names, a path or two, a reason.
LONGEST_LINE = 4_000
CRASHED = 99


@dataclass(frozen=True)
class Outcome:
    """How a command ended; a negative code is the signal that killed it."""

    code: int
    out: str
    err: str


def make_case(seed: int, number: int, folder: Path, base: Path) -> Case:
    """Return the case that a seed and a number stand for, its files written into a new folder."""
    folder.mkdir()
    random = Random(f"{seed}-{number}")
    maker = random.choice(FAMILIES[number % len(FAMILIES)])
    return maker(Workshop(random, folder, base))


@contextmanager
def command_line(words: tuple[str, ...]) -> Iterator[None]:
    """Have `sys.argv` say what a case says."""
    before, sys.argv = sys.argv, ["unlearn", *words]
    try:
        yield
    finally:
        sys.argv = before


def call() -> int:
    """Run the command line that `sys.argv` holds; a traceback is printed and has a code of its own."""
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - any traceback is the failure that is sought
        traceback.print_exc()
        return CRASHED
    return 0


def run_here(case: Case) -> Outcome:
    """Run a case in this process."""
    out, err = io.StringIO(), io.StringIO()
    printed = redirect_stdout(out), redirect_stderr(err)
    with printed[0], printed[1], command_line(case.words), warnings.catch_warnings():
        # A warning is printed, as a process of its own would, and is then one line too many.
        warnings.simplefilter("default")
        code = call()
    return Outcome(code, out.getvalue(), err.getvalue())


def wrong(case: Case, outcome: Outcome) -> list[str]:
    """Return what is wrong with how a case ended; nothing if all is well."""
    found = []
    if outcome.code not in (0, 1, 2):
        found.append(f"ended with {outcome.code}")
    if case.good is not None and case.good != (outcome.code == 0):
        found.append(f"ended with {outcome.code}, though it is {'good' if case.good else 'bad'}")
    if "Traceback" in outcome.err or "Traceback" in outcome.out:
        found.append("printed a traceback")
    lines = [line for line in outcome.err.split("\n") if line and not line.startswith("warning: ")]
    errors = [line for line in lines if line.startswith("error: ")]
    # Damage is a finding of `verify`, not a failure of it.
    reported = case.words[0] == "verify" and outcome.code == 1 and bool(outcome.out) and not lines
    if outcome.code in (1, 2) and not reported and (len(errors) != 1 or lines != errors):
        found.append(f"printed {len(lines)} lines on standard error, {len(errors)} of them errors")
    if any(len(line) > LONGEST_LINE for line in lines):
        found.append(f"printed a line of {max(map(len, lines)):,} characters")
    return found


def explain(seed: int, number: int, case: Case, outcome: Outcome) -> str:
    """Return how a case failed and how to see it again."""
    return (
        f"python -m tests.torture.fuzz --seed {seed} --number {number}: {case.about}\n"
        f"  {' '.join(word[:200] for word in case.words)}\n"
        f"  {'; '.join(wrong(case, outcome))}\n  {outcome.err[-1500:]}"
    )
