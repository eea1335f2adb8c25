"""Checking a ledger's tables against its hash chain, column by column.

The tables are what decisions read; the chain is what happened. Everything in the tables follows from
the chain, so the chain is replayed and each column compared. A ledger that was closed in order is
sealed (`seal_of`): a keyed digest of the whole file lies beside it, and a file that agrees with its
seal needs no replay.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.durable_write import file_digest
from storage.ledger_file import LedgerFile, text_digest
from storage.ledger_records import SCHEMA, Entry, accepted_error_key, canonical, first_break
from storage.ledger_requests import unit_set_digest

Values = dict[str, Any]


@dataclass
class _Expected:
    """What the tables must hold; receipts and units by digest."""

    values: Values = field(default_factory=dict)
    requests: dict[int, Values] = field(default_factory=dict)
    batches: dict[int, str] = field(default_factory=dict)
    releases: dict[int, Values] = field(default_factory=dict)


def first_difference(file: LedgerFile) -> str | None:
    """Return the first thing in a ledger's file that does not follow from its chain, or None."""
    return next(_differences(file), None)


def seal_of(path: Path) -> str | None:
    """Return the digest that a seal is made of; None while a log of SQLite's lies beside the file."""
    log = path.with_name(f"{path.name}-wal")
    if not path.is_file() or (log.exists() and log.stat().st_size):
        return None
    return file_digest(path) if path.stat().st_size else None


def _differences(file: LedgerFile) -> Iterator[str]:
    inconsistency = file.first_inconsistency()
    if inconsistency is not None:
        yield inconsistency
    yield from _schema(file)
    entries = file.entries()
    broken = first_break(entries)
    if broken is not None:
        yield f"entry {broken} does not follow from the one before it"
        return
    try:
        expected = _replayed(entries)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        yield f"an entry does not hold what its kind does ({error!r:.80})"
        return
    yield from _compared(file, expected)


def _schema(file: LedgerFile) -> Iterator[str]:
    """Tables, indexes and nothing else: a trigger or a view would change what a statement does."""
    wanted = {" ".join(statement.split()) for statement in SCHEMA.split(";")} - {""}
    rows = file.rows("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
    found = {" ".join(str(sql).split()) for (sql,) in rows}
    for sql in sorted(found ^ wanted):
        yield f"the schema is not a ledger's: {sql:.80}"


def _replayed(entries: list[Entry]) -> _Expected:
    """Return what the tables hold after the events of a chain."""
    expected = _Expected()
    for entry in entries:
        body = json.loads(entry.body)
        _EVENTS[entry.kind](expected, body)
    return expected


def _created(expected: _Expected, body: Values) -> None:
    expected.values |= body


def _declared(expected: _Expected, body: Values) -> None:
    expected.values[f"declaration-{body['generation']}"] = body["digest"]


def _settings(expected: _Expected, body: Values) -> None:
    expected.values["settings"] = body["settings"]


def _pruned(expected: _Expected, body: Values) -> None:
    expected.values["pruned"] = "yes"


def _accepted(expected: _Expected, body: Values) -> None:
    expected.requests[body["request"]] = {
        "request_id": body["request_id"],
        "set_digest": body["set"],
        "num_units": body["num_units"],
        "num_samples": body["num_samples"],
        "epsilon": body["epsilon"],
        "delta": body["delta"],
        "state": "accepted",
        "release": None,
        "receipt": None,
        "units": body["units"],
    }
    if "accepted_error" in body:
        accepted = canonical({"error": body["accepted_error"]})
        expected.values[accepted_error_key(body["request"])] = accepted


def _withdrawn(expected: _Expected, body: Values) -> None:
    del expected.requests[body["request"]]
    expected.values.pop(accepted_error_key(body["request"]), None)


def _cancelled(expected: _Expected, body: Values) -> None:
    expected.requests[body["request"]] |= {"state": "cancelled", "units": unit_set_digest([])}
    expected.values.pop(accepted_error_key(body["request"]), None)


def _batched(expected: _Expected, body: Values) -> None:
    expected.batches[body["release"]] = "open"
    for request in body["requests"]:
        expected.requests[request] |= {"state": "batched", "release": body["release"]}


def _retraining(expected: _Expected, body: Values) -> None:
    _batched(expected, body)
    kept = {key: value for key, value in body.items() if key != "requests"}
    expected.values["retraining"] = canonical(kept)


def _rolled_back(expected: _Expected, body: Values) -> None:
    del expected.batches[body["release"]]
    expected.values.pop("retraining", None)
    for request in _of_release(expected, body["release"]):
        request |= {"state": "accepted", "release": None}


def _committed(expected: _Expected, body: Values) -> None:
    release = body["release"]
    expected.batches[release] = "committed"
    expected.values.pop("retraining", None)
    expected.releases[release] = {key: value for key, value in body.items() if key != "units"}
    for request in _of_release(expected, release):
        request["state"] = "committed"


def _published(expected: _Expected, body: Values) -> None:
    expected.batches[body["release"]] = "published"


def _erased(expected: _Expected, body: Values) -> None:
    expected.batches[body["release"]] = "erased"
    for request, receipt in body["receipts"]:
        expected.requests[request] |= {"state": "done", "receipt": receipt}
    if body.get("recovered"):
        known = json.loads(expected.values.get("unanswered", "[]"))
        expected.values["unanswered"] = json.dumps([*known, body["release"]])


def _answered(expected: _Expected, body: Values) -> None:
    known = json.loads(expected.values["unanswered"])
    left = [release for release in known if release != body["release"]]
    expected.values["unanswered"] = json.dumps(left)


def _replay_noted(expected: _Expected, body: Values) -> None:
    """Rows that came back were erased again; no table changes."""


_EVENTS = {
    "created": _created,
    "declared": _declared,
    "bound": _settings,
    "configured": _settings,
    "pruned": _pruned,
    "accepted": _accepted,
    "withdrawn": _withdrawn,
    "cancelled": _cancelled,
    "batched": _batched,
    "retraining": _retraining,
    "rolled-back": _rolled_back,
    "committed": _committed,
    "published": _published,
    "erased": _erased,
    "answered": _answered,
    "replayed": _replay_noted,
}


def _of_release(expected: _Expected, release: int) -> list[Values]:
    return [request for request in expected.requests.values() if request["release"] == release]


def _compared(file: LedgerFile, expected: _Expected) -> Iterator[str]:
    yield from _differing(
        "value", dict(file.rows("SELECT key, value FROM ledger")), expected.values
    )
    found: dict[Any, Any] = {}
    columns = [name for name in _REQUEST_COLUMNS if name != "units"]
    for number, *values in file.rows(f"SELECT request, {', '.join(columns)} FROM requests"):
        found[number] = dict(zip(columns, values, strict=True))
        receipt = found[number]["receipt"]
        found[number]["receipt"] = None if receipt is None else text_digest(str(receipt))
    units, releases = _units(file)
    for number, request in found.items():
        request["units"] = unit_set_digest(units.pop(number, []))
    yield from _differing("request", found, expected.requests)
    for number in units:
        yield f"units of request {number} are listed, and no such request was accepted"
    for number, release in sorted(releases):
        if number in found and found[number]["release"] != release:
            yield f"units of request {number} are listed as deleted by release {release}"
    yield from _differing("batch", dict(file.rows("SELECT * FROM batches")), expected.batches)
    records = {key: str(text) for key, text in file.rows("SELECT * FROM releases")}
    wanted = {key: canonical(body) for key, body in expected.releases.items()}
    yield from _differing("release", records, wanted)


_REQUEST_COLUMNS = (
    "request_id",
    "set_digest",
    "num_units",
    "num_samples",
    "epsilon",
    "delta",
    "state",
    "release",
    "receipt",
    "units",
)


def _units(file: LedgerFile) -> tuple[dict[int, list[str]], set[tuple[int, int]]]:
    """Return the units of each request, deleted or waiting, and (request, release) of the deleted."""
    units: dict[int, list[str]] = {}
    releases = set()
    for unit, request, release in file.rows("SELECT unit, request, release FROM suppressed"):
        units.setdefault(request, []).append(str(unit))
        releases.add((request, release))
    query = "SELECT request FROM requests WHERE state IN ('accepted', 'batched')"
    waiting = {number for (number,) in file.rows(query)}
    for unit, request in file.rows("SELECT unit, request FROM request_units"):
        # Units of a request that is carried out stand among the deleted alone.
        marked = str(unit) if request in waiting else f"{unit} again"
        units.setdefault(request, []).append(marked)
    for request in {request for request, _ in releases} & waiting:
        units[request].append("deleted while waiting")
    return units, releases


def _differing(what: str, found: dict[Any, Any], expected: dict[Any, Any]) -> Iterator[str]:
    for key in sorted(found.keys() | expected.keys(), key=str):
        mine, theirs = found.get(key), expected.get(key)
        if mine == theirs and type(mine) is type(theirs):
            continue
        if isinstance(mine, dict) and isinstance(theirs, dict):
            for column in mine:
                if mine[column] != theirs[column]:
                    yield f"{column} of {what} {key} was changed"
        else:
            yield f"{what} {key} is not what the chain of entries says"
