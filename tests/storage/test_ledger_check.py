"""Every column of every table is covered by the chain: no edit of a ledger passes unnoticed."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage.errors import LedgerError
from storage.ledger import Ledger, seal_path
from storage.ledger_records import Retraining
from storage.pseudonym import PseudonymKey
from tests.storage.test_ledger import UNITS, carry_out, make_record, new_request

KEY = PseudonymKey(bytes(32))


def opened(path: Path, sealed: bool = True) -> Ledger:
    seal = KEY.seal if sealed else None
    return Ledger(path, "run", KEY.check_value(), seal=seal)


@pytest.fixture(params=["closed", "under way"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A ledger with a row in every table, and requests in every state."""
    path = tmp_path / "ledger.sqlite"
    ledger = opened(path)
    ledger.declare(0, "declared")
    ledger.bind('{"seed":1}')
    carry_out(ledger, new_request("R1", UNITS[0], epsilon=1.0))
    interrupted = ledger.requests.accept(new_request("R5", UNITS[3]))
    release = ledger.begin_batch([interrupted])
    ledger.commit(make_record(release))
    ledger.mark_published(release)
    ledger.finish(release, [(interrupted.request, "{}")], recovered=True)
    ledger.mark_answered(release)
    accepting = replace(new_request("R2", UNITS[1]), accepted_error=0.8)
    withdrawn = ledger.requests.accept(accepting)
    ledger.requests.withdraw(withdrawn.request)
    cancelled = ledger.requests.accept(replace(accepting, request_id="R6"))
    ledger.requests.cancel(cancelled.request)
    batched = ledger.requests.accept(new_request("R3", UNITS[1]))
    ledger.roll_back(ledger.begin_batch([batched]))
    if request.param == "under way":
        ledger.commit(make_record(ledger.begin_batch([batched])))
    accepting = replace(new_request("R4", UNITS[2], epsilon=2.0), accepted_error=0.9)
    ledger.requests.accept(accepting)
    ledger.close()
    return path


def changed(value: Any) -> list[Any]:
    """Other values of a cell, a small change among them."""
    if value is None:
        return [0, "x", 1.5]
    if isinstance(value, str):
        return [value + "x", value[:-1], "", None, 7]
    return [value + 1, -value - 1, None, "x", value + 0.5]


def edits(path: Path) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Statements that change one cell, remove one row or double one, of every table."""
    with closing(sqlite3.connect(path)) as db:
        tables = [
            name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        for table in tables:
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            key, rows = columns[0], db.execute(f"SELECT * FROM {table}").fetchall()
            assert rows or table == "request_units", table
            for row in rows:
                for column, value in zip(columns, row, strict=True):
                    for other in changed(value):
                        statement = f"UPDATE {table} SET {column} = ? WHERE {key} = ?"
                        yield statement, (other, row[0])
                yield f"DELETE FROM {table} WHERE {key} = ?", (row[0],)
                places = ", ".join("?" for _ in columns)
                first = row[0] + "x" if isinstance(row[0], str) else row[0] + 1
                yield f"INSERT INTO {table} VALUES ({places})", (first, *row[1:])
    yield "CREATE TRIGGER t AFTER INSERT ON suppressed BEGIN DELETE FROM suppressed; END", ()
    yield "CREATE TABLE more (x)", ()
    yield "DROP INDEX requests_by_state", ()


@pytest.mark.parametrize("sealed", [True, False])
def test_no_edit_of_any_cell_passes_unnoticed(path: Path, sealed: bool) -> None:
    whole, seal = path.read_bytes(), seal_path(path).read_bytes()
    opened(path, sealed).close()
    unnoticed, tried = [], 0
    for statement, values in list(edits(path)):
        path.write_bytes(whole)
        seal_path(path).write_bytes(seal)
        db = sqlite3.connect(path)
        # An edit need not outlive a power cut; its waiting for the disk would be most of this test.
        db.execute("PRAGMA synchronous = OFF")
        try:
            with db:
                count = db.execute(statement, values).rowcount
        except sqlite3.IntegrityError:
            continue  # the schema itself refuses it
        finally:
            db.close()
        if count == 0:
            continue
        tried += 1
        try:
            opened(path, sealed).close()
        except LedgerError:
            continue
        unnoticed.append((statement, values))
    assert tried > 150
    assert unnoticed == []


@pytest.mark.parametrize("end", ["open", "rolled back", "committed"])
def test_the_life_of_a_retraining_follows_from_the_chain(tmp_path: Path, end: str) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = opened(path, sealed=False)
    carry_out(ledger, new_request("R1", UNITS[0]))
    waiting = ledger.requests.accept(new_request("R2", UNITS[1]))
    begun = ledger.begin_retraining([waiting], 1, "before", final=True)
    assert begun == ledger.retraining() == Retraining(2, 1, True, "before")
    assert ledger.unfinished() == (2, "open")
    with pytest.raises(LedgerError, match="a batch is under way"):
        ledger.begin_retraining([], 1, "before")
    later = ledger.requests.accept(replace(new_request("R3", UNITS[2]), accepted_error=0.7))
    assert later.accepted_error == 0.7
    if end == "rolled back":
        ledger.roll_back(2)
        assert len(ledger.requests.waiting()) == 2
    elif end == "committed":
        ledger.commit(make_record(2, kind="retrained", deleted_ever=2))
    assert (ledger.retraining() is None) == (end != "open")
    ledger.close()
    opened(path, sealed=False).close()
    if end == "open":
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE ledger SET value = replace(value, 'true', 'false')")
        with pytest.raises(LedgerError, match="retraining"):
            opened(path, sealed=False)


def test_a_seal_is_made_with_the_key_alone(path: Path) -> None:
    other = PseudonymKey(bytes([1]) * 32)
    assert other.seal("digest") != KEY.seal("digest")
    assert KEY.seal("digest") != KEY.seal("another")


def test_a_ledger_left_by_a_crash_is_checked_and_opened(path: Path) -> None:
    seal_path(path).unlink()
    ledger = opened(path)
    assert len(ledger.suppressed()) >= 1
    ledger.close()
    assert seal_path(path).is_file()
