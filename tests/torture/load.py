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
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file

from pipeline import RunDirectory
from pipeline.deletion.delete import opened_for_deletion
from storage.store import ApproximatorStore
from tests.torture.load_clients import Load, answered, entries, forked, make_run, under_kills

# What float32 rounds away; a row that is missing or doubled moves the model by hundreds of times more.
TOLERANCE = 1e-7


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
    stored = {
        unit for unit in ApproximatorStore.open(load.run / "approximators.zarr").units if unit
    }
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
        + abs(load.units - len(deleted) - len(stored))
        + abs(units_in_ledger - len(deleted))
        + num_damages(load),
    }


def num_damages(load: Load) -> int:
    """Return how much damage the run's own check finds."""
    with opened_for_deletion(RunDirectory.open(load.run)) as releases:
        return len(releases.verify())


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
