"""Concurrent deletions under kills: nothing lost, nothing doubled, nothing wrong.

    python -m tests.torture.load --units 10000 --processes 4 --seconds 60 --kills 500

Makes a small model of as many units as asked for, lets N processes delete units from the run at once,
each by `pipeline.delete` as any client would, and kills them at random with SIGKILL, half of the time
the one that holds the run. A client that was killed repeats its request under the same id. After
S seconds, or when all kills are spent if that takes longer, every request is repeated once more, and
the run is compared with what the clients were told:

    lost      acknowledged requests or units of which the ledger or the store knows nothing
    doubled   requests that stand in the ledger twice, were answered twice in different ways, or units
              counted twice
    wrong     differences of the last model from a sum in numpy over the rows of exactly the deleted
              units, as read before the first deletion; erased rows that nobody asked for; damage that
              the run's own check finds

Prints one line of counts and exits 1 if any of the three is not 0. A process of its own, like
crash_server.py: it forks, and kills only what it forked.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file

from pipeline import RunConfig, RunDirectory, delete, precompute, train
from pipeline.deletion.delete import opened_for_deletion
from pipeline.deletion.requests import DeletionRequest, Receipt
from storage.errors import WriterConflictError
from storage.store import ApproximatorStore
from tests.torture.base_run import values_of, write_data

# Units of one request, at most; a few of them belong to other clients' requests as well.
MOST_UNITS = 5
# Deletions that are timed before the first kill.
UNDISTURBED = 5
# A row that is missing or doubled moves the model by some thousand times as much.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Load:
    """What is asked of the run."""

    folder: Path
    units: int
    processes: int
    seconds: float
    kills: int
    seed: int

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    def log(self, client: int) -> Path:
        """What a client asked for and was told, one JSON object a line."""
        return self.folder / f"client-{client}.log"


def forked(work: Callable[[], object]) -> int:
    """Run work in a forked child and return its process id; an error ends it with status 1."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the parent must not run on in the child
            sys.stderr.write(f"a client failed: {type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    return child


def make_run(load: Load) -> None:
    """Train, precompute, and keep the rows and the trained parameters for the comparison."""
    write_data(load.folder / "data.npz", load.units)
    values = values_of(load.folder / "data.npz", load.units)
    run = train(RunConfig.from_values(values), load.run)
    store = precompute(run)
    rows_NP = store.read_rows(list(store.units))
    trained_P = run.trajectory().trained().numpy()
    np.savez(load.folder / "rows.npz", rows=rows_NP, trained=trained_P, units=store.units)


def written(path: Path, **entry: Any) -> None:
    """Append one line; a kill may cut it, and `entries` then leaves it out."""
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def entries(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a client's log."""
    found = []
    for line in path.read_text().split("\n") if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def answered(load: Load, request_id: str, units: list[str]) -> Receipt:
    """Delete, waiting for as long as another process holds the run."""
    while True:
        try:
            return delete(load.run, DeletionRequest(units, request_id, skip_invalid=True))
        except WriterConflictError:
            time.sleep(random.uniform(0.001, 0.01))


def client(load: Load, number: int, turn: int, most: float = math.inf) -> None:
    """Repeat what was not answered before the last kill, then ask for more until killed."""
    random.seed(f"{load.seed}-{number}-{turn}")
    log = load.log(number)
    asked = {e["ask"]: e["units"] for e in entries(log) if "ask" in e}
    told = {e["told"] for e in entries(log) if "told" in e}
    waiting = [request for request in asked if request not in told]
    # A new line first: the kill may have left half a line behind.
    with log.open("a") as file:
        file.write("\n")
    count = len(asked)
    while len(told) < most:
        if waiting:
            request = waiting.pop()
        else:
            count += 1
            request = f"client-{number}-{turn}-{count}"
            some = range(random.randint(1, MOST_UNITS))
            asked[request] = [str(random.randrange(load.units // 2)) for _ in some]
            written(log, ask=request, units=asked[request])
        receipt = answered(load, request, asked[request])
        written(log, told=request, release=receipt.release, units=receipt.units_deleted)
        told.add(request)


def holder(load: Load, clients: dict[int, int]) -> int | None:
    """Return which client holds the run, if one does."""
    try:
        words = (load.run / "ledger.lock").read_text().split()
    except OSError:
        return None
    return next((n for n, pid in clients.items() if words[1:2] == [str(pid)]), None)


def undisturbed_seconds(load: Load) -> float:
    """Return the time of a deletion here and now, measured by a client that is not killed."""
    began = time.monotonic()
    if os.waitpid(forked(lambda: client(load, load.processes, 0, most=UNDISTURBED)), 0)[1] != 0:
        raise RuntimeError("the undisturbed client failed")
    return (time.monotonic() - began) / UNDISTURBED


def under_kills(load: Load) -> int:
    """Keep the clients running and kill them until time and kills are spent; return the kills."""
    # At least a deletion's time between kills, so that a slow machine gets as far as a fast one.
    pause = max(load.seconds / max(1, load.kills), undisturbed_seconds(load))
    turns = dict.fromkeys(range(load.processes), 0)
    clients = {n: forked(lambda n=n: client(load, n, 0)) for n in turns}
    began, kills = time.monotonic(), 0
    while time.monotonic() - began < load.seconds or kills < load.kills:
        time.sleep(random.uniform(0, 2 * pause))
        if kills == load.kills:
            continue
        number = holder(load, clients) if random.random() < 0.5 else None
        number = random.randrange(load.processes) if number is None else number
        os.kill(clients[number], signal.SIGKILL)
        status = os.waitpid(clients[number], 0)[1]
        if not os.WIFSIGNALED(status):
            raise RuntimeError(f"client {number} ended by itself with status {status}")
        kills += 1
        turns[number] += 1
        clients[number] = forked(lambda n=number, t=turns[number]: client(load, n, t))
    for pid in clients.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return kills


def ledger_counts(load: Load) -> tuple[int, int]:
    """Return how many answered requests and how many deleted units the ledger holds, by SQL."""
    with sqlite3.connect(load.run / "ledger.sqlite") as connection:
        requests = connection.execute("SELECT count(*) FROM requests WHERE receipt IS NOT NULL")
        units = connection.execute("SELECT count(*) FROM suppressed")
        return int(requests.fetchone()[0]), int(units.fetchone()[0])


def expected_model(load: Load, deleted: set[str]) -> npt.NDArray[np.float64]:
    """Return w + (n - 1) S / (n - M) by numpy alone: S the sum of the rows, M units of one sample."""
    kept = np.load(load.folder / "rows.npz")
    gone = np.isin(kept["units"], sorted(deleted))
    sum_P = kept["rows"][gone].astype(np.float64).sum(axis=0)
    n = load.units
    model_P = kept["trained"] + (n - 1) * sum_P / (n - int(gone.sum()))
    return np.asarray(model_P, np.float64)


def published_model(load: Load, last: int) -> npt.NDArray[np.float64]:
    """Return the parameters of a release as one vector, in the network's order."""
    tensors = load_file(load.run / "releases" / str(last) / "model.safetensors")
    order = sorted(tensors, key=lambda name: (name.rsplit(".", 1)[0], name.endswith("bias")))
    return np.concatenate([tensors[name].ravel() for name in order]).astype(np.float64)


def findings(load: Load, kills: int) -> dict[str, Any]:
    """Repeat every request, then compare what the run holds with what the clients were told."""
    clients = range(load.processes + 1)
    logs = [entry for number in clients for entry in entries(load.log(number))]
    asked = {e["ask"]: e["units"] for e in logs if "ask" in e}
    told = [(e["told"], e["release"], e["units"]) for e in logs if "told" in e]
    before = ledger_counts(load)[0]
    unanswered = set(asked) - {request for request, _, _ in told}
    receipts = {request: answered(load, request, units) for request, units in asked.items()}
    # A request of which nothing was left to delete is told so, and is not kept.
    kept = {request for request, release, _ in told if release is not None}
    lost = [request for request in kept if not receipts[request].repeated]
    doubled = [
        request
        for request, release, units in told
        if (receipts[request].release, receipts[request].units_deleted) != (release, units)
    ]
    deleted = {unit for units in asked.values() for unit in units}
    in_ledger, units_in_ledger = ledger_counts(load)
    answers = sum(receipt.release is not None for receipt in receipts.values())
    counted = sum(receipt.units_deleted for receipt in receipts.values())
    with opened_for_deletion(RunDirectory.open(load.run)) as releases:
        damage = [str(item) for item in releases.verify()]
    store = ApproximatorStore.open(load.run / "approximators.zarr")
    stored = {unit for unit in store.units if unit}
    everyone = {str(unit) for unit in range(load.units)}
    last = max(int(path.name) for path in (load.run / "releases").iterdir())
    difference = np.abs(published_model(load, last) - expected_model(load, deleted)).max()
    return {
        "requests": len(asked),
        "units": len(deleted),
        "releases": last,
        "kills": kills,
        "nothing_left_to_delete": len(asked) - answers,
        "never_answered_under_kills": len(unanswered),
        "of_those_carried_out": before - len(kept),
        "largest_difference": float(difference),
        "lost": len(lost) + max(0, answers - in_ledger) + len(deleted & stored),
        "doubled": len(doubled) + max(0, in_ledger - answers) + abs(counted - len(deleted)),
        "wrong": int(not difference <= TOLERANCE)
        + len((everyone - deleted) - stored)
        + abs(units_in_ledger - len(deleted))
        + len(damage),
    }


def carry_out(load: Load) -> dict[str, Any]:
    """Make the run, load it, and return what was found."""
    os.environ["UNLEARN_KEY_FILE"] = str(load.folder / "key")
    random.seed(load.seed)
    if os.waitpid(forked(lambda: make_run(load)), 0)[1] != 0:
        raise RuntimeError("the run cannot be made")
    return findings(load, under_kills(load))


def main() -> int:
    """Carry out what the command line asks for; 1 if anything was lost, doubled or wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.load")
    for name, value in (("units", 10_000), ("processes", 4), ("kills", 500), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--keep", type=Path, help="folder to leave the run in; default: none")
    words = parser.parse_args()
    torch.set_num_threads(1)
    folder = words.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = carry_out(
            Load(folder, words.units, words.processes, words.seconds, words.kills, words.seed)
        )
    finally:
        if words.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(json.dumps(found) + "\n")
    return int(any(found[name] for name in ("lost", "doubled", "wrong")))


if __name__ == "__main__":
    sys.exit(main())
