"""The clients of the load: processes that delete from one run at once, and the kills that end them."""

import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import RunConfig, delete, precompute, train
from pipeline.deletion.requests import DeletionRequest, Receipt
from storage.errors import WriterConflictError
from tests.torture.base_run import values_of, write_data

# Units of one request, at most; a few of them belong to other clients' requests as well.
MOST_UNITS = 5
# Deletions that are timed before the first kill.
UNDISTURBED = 5


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
