"""A fork server for crash tests of retrainings: imports once, then forks children that it kills.

    python retrain_crash_server.py FOLDER EVERY [class-terms] [delete]

A deletion that the gate refuses falls back on a retraining; with `delete` the gate lets it through. A
child dies before every EVERY-th of the operations that make something durable or remove something:
fsync, rename, unlink, and the ledger's commits. Another child then sends the request again, as a client
does whose connection broke. Prints one JSON object: the number of operations, and what was found after
each death.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cluster.inspection import verify_run
from pipeline import DeletionRequest, RunDirectory, delete, precompute
from pipeline.approximators.retrain import delete_or_retrain
from pipeline.run.error_curve import ErrorCurve, ErrorPoint
from storage.ledger_file import LedgerFile
from storage.store import ApproximatorStore
from tests.cluster.small_run import rows_of_remaining, trained_run

EARLIER, ASKED = [0, 1], DeletionRequest([2, 3], "R")
OPERATIONS = ("fsync", "replace", "rename", "unlink", "rmdir")


def make_run(folder: Path, words: Sequence[str]) -> None:
    """A run of which two samples may be deleted, and no more; with `delete` any."""
    run = trained_run(folder, recursion={"chunk": 4, "class_terms": "class-terms" in words})
    precompute(run)
    if "delete" in words:
        delete(run, EARLIER)
        return
    points = (
        ErrorPoint(2, 2, 0.1, 0.1, 0.1, 1, "measured"),
        ErrorPoint(3, 3, 2, 2, 2, 1, "measured"),
    )
    ErrorCurve("trials", "hvp", points).write(run)
    delete(run, EARLIER)


def hooked(hook: Callable[[str], None]) -> None:
    """Call `hook` before each operation of this process that a crash could come between."""
    for name in OPERATIONS:
        original = getattr(os, name)

        def operation(*args: Any, _name: str = name, _original: Any = original, **more: Any) -> Any:
            hook(_name)
            return _original(*args, **more)

        setattr(os, name, operation)
    begin = LedgerFile.__init__

    def begun(self: LedgerFile, path: Path, identity: Any, faults: Any) -> None:
        begin(self, path, identity, hook)

    LedgerFile.__init__ = begun  # type: ignore[method-assign]


def die_at(number: int) -> Callable[[str], None]:
    seen = 0

    def hook(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def in_child(work: Callable[[], object]) -> int:
    """Run work in a forked child and return its wait status."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        work()  # an error ends the child with a traceback and another status than a kill
        os._exit(0)
    return os.waitpid(child, 0)[1]


def models(folder: Path) -> dict[str, bytes]:
    paths = sorted((folder / "releases").iterdir())
    return {path.name: (path / "model.safetensors").read_bytes() for path in paths}


def work(folder: Path, hook: Callable[[str], None]) -> None:
    hooked(hook)
    delete_or_retrain(RunDirectory.open(folder), ASKED)


def findings(folder: Path, expected: Path) -> dict[str, Any]:
    """Look at a run as a crash left it, send the request again, and compare with an undisturbed run."""
    before, run = models(folder), RunDirectory.open(folder)
    opened = verify_run(run).damage
    receipt = delete_or_retrain(run, ASKED)
    after, whole = models(folder), RunDirectory.open(expected)
    names = ApproximatorStore.open(run.store_url).units
    return {
        "damage": [*opened, *verify_run(run).damage],
        "receipt": [receipt.release, receipt.units_deleted],
        "republished": [name for name in before if before[name] != after[name]],
        "same_models": after == models(expected),
        "same_rows": bool((rows_of_remaining(run) == rows_of_remaining(whole)).all()),
        "erased_as_asked": [bool(name) for name in names] == [n > 3 for n in range(len(names))],
        "left_over": [path.name for path in (folder / "internal").glob("staged-*")],
    }


def written(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values))


def main(root: Path, every: int, words: Sequence[str]) -> dict[str, Any]:
    base, expected = root / "base", root / "expected"
    if in_child(lambda: make_run(base, words)):
        return {"failed": "the run could not be made"}
    shutil.copytree(base, expected)
    recorded: list[str] = []

    def record() -> None:
        work(expected, recorded.append)
        written(root / "recorded", recorded)

    if in_child(record):
        return {"failed": "the undisturbed client failed"}
    operations = json.loads((root / "recorded").read_text())
    trials = []
    for number in range(1, len(operations) + 1, every):
        folder, answer = root / f"run-{number}", root / f"answer-{number}"
        shutil.copytree(base, folder)
        status = in_child(lambda f=folder, n=number: work(f, die_at(n)))  # type: ignore[misc]
        failed = in_child(lambda f=folder, a=answer: written(a, findings(f, expected)))  # type: ignore[misc]
        trial = {"failed": "findings"} if failed else json.loads(answer.read_text())
        trials.append({"operation": number, "killed": os.WIFSIGNALED(status), **trial})
        shutil.rmtree(folder)
    return {"operations": operations, "trials": trials}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    os.environ["UNLEARN_KEY_FILE"] = str(folder / "key")
    sys.stdout.write(json.dumps(main(folder, int(sys.argv[2]), sys.argv[3:])))
