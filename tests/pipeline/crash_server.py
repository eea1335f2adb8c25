"""A fork server for crash tests: imports once, then forks children that it kills.

    python crash_server.py FOLDER COMMAND...

    points              die at every named point, each in a fresh run
    all-points          the same at every occurrence of every point
    kills:N:REQUESTS    N SIGKILLs at random times over one run
    noise               draw noise in two children of a process that has drawn some

Prints one JSON object with an entry for each command. It is a process of its own because forking one
that runs threads, as a test runner may, is unsafe. Clients are the children: each sends its
requests again until it is answered, as clients do whose connection broke.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from pipeline.certificates.privacy import sigma_for, standard_normals
from pipeline.certificates.sensitivity import Declaration, UnitsBound
from pipeline.deletion.context import DeletionContext
from pipeline.deletion.releases import Releases, open_releases
from pipeline.deletion.requests import DeletionRequest
from pipeline.deletion.staging import Dependencies
from pipeline.deletion.weights import DeletionRule, Float64Array
from pipeline.errors import NotWaitingError, RequestCancelledError
from storage.durable_write import no_faults
from tests.pipeline.fake_store import FileStore, make_facts, make_rows

SIZE = 12
EPSILON, DELTA, SENSITIVITY = 1.0, 1e-5, 0.5


def facts_of(num_units: int) -> DeletionContext:
    declaration = Declaration("calibrated", (UnitsBound(num_units, SENSITIVITY),))
    rule = DeletionRule("batch", "left-out", num_units, 4)
    return make_facts(num_units, SIZE, rule=rule, declaration=declaration)


def new_run(folder: Path, num_units: int) -> None:
    folder.mkdir()
    FileStore(folder / "rows", num_units, SIZE).write(make_rows(num_units, SIZE))


def logged_draw(folder: Path) -> Callable[[int], Float64Array]:
    """Noise of one number on every parameter, written down when it is drawn."""

    def draw(count: int) -> Float64Array:
        value = int.from_bytes(os.urandom(4), "little") / 2**32
        with (folder.parent / "draws").open("a") as log:
            log.write(f"{value!r}\n")
        return np.full(count, value)

    return draw


def opened(folder: Path, num_units: int, faults: Callable[[str], None] = no_faults) -> Releases:
    store = FileStore(folder / "rows", num_units, SIZE)
    dependencies = Dependencies(faults=faults, normals=logged_draw(folder))
    return open_releases(folder, facts_of(num_units), store, dependencies=dependencies)


def client_request(number: int) -> DeletionRequest:
    """Request r names its own two units and, with its neighbour, a third one."""
    units = [3 * number, 3 * number + 1, 3 * (number // 2) + 2]
    return DeletionRequest(
        units, f"request-{number}", epsilon=EPSILON, delta=DELTA, skip_invalid=True
    )


def cancelled_request(number: int, num_units: int) -> DeletionRequest:
    """A request of one unit that nobody else names, counted from the last, to be cancelled."""
    return DeletionRequest(
        [num_units - 1 - number], f"cancelled-{number}", epsilon=EPSILON, delta=DELTA
    )


def accept_and_cancel(releases: Releases, number: int, num_units: int) -> None:
    """Ask for a deletion and take it back, as a client does who repeats both until answered."""
    request = cancelled_request(number, num_units)
    with suppress(RequestCancelledError):
        releases.accept(request)
    with suppress(NotWaitingError):  # another client may have carried it out meanwhile
        releases.cancel(str(request.request_id))


def in_child(work: Callable[[], object], kill_after: float | None = None) -> int:
    """Run work in a forked child, killed after some seconds if it lasts; return its wait status."""
    child = os.fork()
    if child == 0:
        work()  # an error ends the child with a traceback and another status than a kill
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def models(folder: Path) -> dict[str, bytes]:
    if not (folder / "releases").exists():
        return {}
    paths = sorted((folder / "releases").iterdir())
    return {path.name: (path / "model.safetensors").read_bytes() for path in paths}


def flat(model: Path) -> Float64Array:
    tensors = load_file(model)
    return np.concatenate([tensors["weight"].ravel(), tensors["bias"]])


def findings(folder: Path, num_units: int, num_requests: int, num_cancelled: int) -> dict[str, Any]:
    """Finish every request, then compare the run with a replay on paper."""
    facts, rows = facts_of(num_units), make_rows(num_units, SIZE)
    with opened(folder, num_units) as releases:
        for number in range(num_cancelled):
            accept_and_cancel(releases, number, num_units)
        for number in range(num_requests):
            releases.accept(client_request(number))
        receipts = [releases.delete(client_request(r)) for r in range(num_requests)]
        damages = [str(damage) for damage in releases.verify()]
        taken_back = [cancelled_request(r, num_units) for r in range(num_cancelled)]
        states = [releases.find(str(each.request_id)).state for each in taken_back]
    asked = {str(unit) for r in range(num_requests) for unit in client_request(r).units}
    # One that was carried out before it could be cancelled is deleted, and any other is not.
    late = [
        each.units[0] for each, state in zip(taken_back, states, strict=True) if state == "done"
    ]
    asked |= set(map(str, late))
    kept = {unit for unit in FileStore(folder / "rows", num_units, SIZE).units if unit}
    numbers = sorted(int(path.name) for path in (folder / "releases").iterdir())
    total_P = np.sum([rows[unit] for unit in sorted(asked, key=int)], axis=0)
    sums = load_file(folder / "internal" / f"weighted-sum-{numbers[-1]}.safetensors")
    # The last model must be the noise-free one plus one logged draw, rounded once.
    sigma = sigma_for(SENSITIVITY, EPSILON, DELTA)
    draws = [float(line) for line in (folder.parent / "draws").read_text().split()]
    clean_P = facts.trained_P.astype(np.float64) + total_P
    last_P = flat(folder / "releases" / str(numbers[-1]) / "model.safetensors")
    fitting = [d for d in set(draws) if np.array_equal((clean_P + sigma * d).astype("f4"), last_P)]
    return {
        "units_deleted": sum(receipt.units_deleted for receipt in receipts) + len(late),
        "cancelled": states.count("cancelled"),
        "states": sorted(set(states)),
        "units_asked": len(asked),
        "erased_as_asked": kept == set(rows) - asked,
        "requests_answered": sum(receipt.release is not None for receipt in receipts),
        "releases": numbers,
        "sum_equals_replay": bool(np.array_equal(sums["weighted_sum"], total_P)),
        "draws_in_last_model": len(fitting),
        "damages": damages,
        "leftovers": [path.name for path in (folder / "internal").iterdir()],
    }


def die_at(name: str, occurrence: int) -> Callable[[str], None]:
    seen = 0

    def faults(point: str) -> None:
        nonlocal seen
        seen += point == name
        if point == name and seen == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)

    return faults


def run_points(root: Path, every_occurrence: bool) -> dict[str, Any]:
    """Die at every named point of two deletions: at its last occurrence, or once at each."""
    num_requests, num_units = 2, 8

    def work(folder: Path, faults: Callable[[str], None]) -> None:
        with opened(folder, num_units, faults) as releases:
            for number in range(num_requests):
                accept_and_cancel(releases, number, num_units)
                releases.delete(client_request(number))

    (root / "recorded").mkdir()
    points: list[str] = []
    new_run(root / "recorded" / "run", num_units)
    work(root / "recorded" / "run", points.append)
    trials = [(name, points.count(name)) for name in sorted(set(points))]
    if every_occurrence:
        trials = [(name, points[: i + 1].count(name)) for i, name in enumerate(points)]
    results = []
    for index, (name, occurrence) in enumerate(trials):
        (root / f"trial-{index}").mkdir()
        folder = root / f"trial-{index}" / "run"
        new_run(folder, num_units)
        status = in_child(lambda f=folder, n=name, o=occurrence: work(f, die_at(n, o)))
        before = models(folder)
        result = findings(folder, num_units, num_requests, num_requests)
        after = models(folder)
        result |= {
            "point": name,
            "killed": os.WIFSIGNALED(status),
            "republished": [k for k in before if before[k] != after[k]],
        }
        results.append(result)
    return {"points": sorted(set(points)), "trials": results}


def run_kills(root: Path, num_kills: int, num_requests: int) -> dict[str, Any]:
    """SIGKILL clients at random times until all have been killed, then let one finish."""
    num_cancelled = num_requests // 10
    num_units = 3 * num_requests + 2 + num_cancelled
    folder = root / "run"
    new_run(folder, num_units)
    generator = random.Random(1)
    published: dict[str, bytes] = {}
    changed: list[str] = []

    def work(seed: int, rounds: int) -> None:
        order = random.Random(seed)
        with opened(folder, num_units) as releases:
            for _ in range(rounds):
                for _ in range(order.choice([1, 1, num_requests // 20])):
                    releases.accept(client_request(order.randrange(num_requests)))
                accept_and_cancel(releases, order.randrange(num_cancelled), num_units)
                if order.random() < 0.5:
                    releases.process_waiting()
                else:
                    releases.delete(client_request(order.randrange(num_requests)))

    # Kills come within the time that a few undisturbed rounds take here and now, so a slow machine
    # is killed at the same places as a fast one.
    started = time.perf_counter()
    if in_child(lambda: work(-1, rounds=3)) != 0:
        return {"failed": "the undisturbed client failed"}
    longest = time.perf_counter() - started
    for trial in range(num_kills):
        status = in_child(
            lambda t=trial: work(t, rounds=1000), kill_after=generator.uniform(0.0, longest)
        )
        if not os.WIFSIGNALED(status):
            return {"failed": f"trial {trial} ended by itself with status {status}"}
        found = models(folder)
        changed += [k for k, model in published.items() if found.get(k) != model]
        published |= found
    result = findings(folder, num_units, num_requests, num_cancelled)
    return result | {"kills": num_kills, "changed": changed, "published": len(published)}


def forked_draws() -> list[list[float]]:
    """Draw noise here and in two children, with numpy's global seed set."""
    np.random.seed(3)
    standard_normals(4)
    read, write = os.pipe()
    for _ in range(2):
        in_child(lambda: os.write(write, f"{standard_normals(4).tolist()}\n".encode()))
    os.close(write)
    lines = os.read(read, 10_000).decode().splitlines()
    return [*map(json.loads, lines), standard_normals(4).tolist()]


def carried_out(command: str, root: Path) -> Any:
    root.mkdir()
    if command == "noise":
        return forked_draws()
    if command.startswith("kills:"):
        _, num_kills, num_requests = command.split(":")
        return run_kills(root, int(num_kills), int(num_requests))
    return run_points(root, every_occurrence=command == "all-points")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    os.environ["UNLEARN_KEY_FILE"] = str(folder / "key")
    sigma_for(1.0, 1.0, 1e-5)  # children inherit what this imports
    found = {name: carried_out(name, folder / str(i)) for i, name in enumerate(sys.argv[2:])}
    sys.stdout.write(json.dumps(found))
