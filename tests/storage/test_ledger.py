import hashlib
import sqlite3
from pathlib import Path

import pytest

from storage.errors import LedgerError, StorageFullError, WriterConflictError
from storage.ledger import Ledger
from storage.ledger_records import GENESIS, Entry, NewRequest, canonical, first_break, link
from storage.ledger_requests import unit_set_digest
from storage.ledger_summary import LedgerSummary, summarize_ledger
from storage.run_lock import RunLock
from tests.pipeline.fake_store import make_record

UNITS = tuple(f"{number:032x}" for number in range(5))


def open_ledger(folder: Path) -> Ledger:
    return Ledger(folder / "ledger.sqlite", "run", "key")


def new_request(name: str, *units: str, epsilon: float | None = None) -> NewRequest:
    delta = None if epsilon is None else 1e-5
    return NewRequest(name, unit_set_digest(units), units, 2 * len(units), epsilon, delta)


def carry_out(ledger: Ledger, *requests: NewRequest) -> int:
    accepted = [ledger.requests.accept(request) for request in requests]
    release = ledger.begin_batch(accepted)
    ledger.commit(make_record(release))
    ledger.mark_published(release)
    ledger.finish(release, [(request.request, '{"text": 1}') for request in accepted])
    return release


def test_the_life_of_a_request(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    request = ledger.requests.accept(new_request("R", *UNITS[:2], epsilon=1.0))
    assert (request.state, request.num_units, request.epsilon) == ("accepted", 2, 1.0)
    assert ledger.requests.waiting() == [request]
    assert ledger.requests.waiting_totals() == (2, 4)
    assert ledger.requests.waiting_privacy() == [(1.0, 1e-5)]
    assert ledger.begin_batch([request]) == 1
    assert ledger.requests.waiting_totals() == (0, 0)
    assert ledger.unfinished() == (1, "open")
    assert ledger.units_of(1) == list(UNITS[:2])
    assert ledger.num_suppressed() == 0
    ledger.commit(make_record(1))
    assert ledger.unfinished() == (1, "committed")
    assert ledger.suppressed() == list(UNITS[:2])
    ledger.mark_published(1)
    ledger.finish(1, [(request.request, "{}")])
    assert ledger.unfinished() is None
    done = ledger.requests.find("R")
    assert done is not None
    assert (done.state, done.release, done.receipt) == ("done", 1, "{}")
    assert ledger.releases() == [make_record(1)] == [ledger.last_release()]
    kinds = [entry.kind for entry in ledger.file.entries()]
    assert kinds == ["created", "accepted", "batched", "committed", "published", "erased"]
    assert first_break(ledger.file.entries()) is None
    ledger.close()


def test_a_batch_that_is_rolled_back_leaves_its_requests_waiting(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    request = ledger.requests.accept(new_request("R", *UNITS[:2]))
    ledger.roll_back(ledger.begin_batch([request]))
    assert ledger.requests.waiting() == [request]
    assert ledger.begin_batch([request]) == 1
    ledger.close()


def test_a_cancelled_request_keeps_its_id_and_frees_its_units(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    request = ledger.requests.accept(new_request("R", UNITS[0]))
    ledger.requests.cancel(request.request)
    found = ledger.requests.find("R")
    assert found is not None and (found.state, found.release) == ("cancelled", None)
    assert ledger.requests.waiting() == [] and ledger.requests.waiting_totals() == (0, 0)
    assert ledger.requests.named_among(list(UNITS)) == set()
    with pytest.raises(LedgerError, match="there already"):
        ledger.requests.accept(new_request("R", UNITS[0]))
    carry_out(ledger, new_request("S", UNITS[0]))
    head = ledger.file.head()
    done = ledger.requests.find("S")
    for again in (found, done):
        assert again is not None
        with pytest.raises(LedgerError, match="does not wait"):
            ledger.requests.cancel(again.request)
    assert ledger.file.head() == head
    ledger.close()
    open_ledger(tmp_path).close()  # which replays the chain


def test_a_request_id_and_a_unit_are_accepted_once(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    carry_out(ledger, new_request("R", UNITS[0]))
    ledger.requests.accept(new_request("S", UNITS[1]))
    head = ledger.file.head()
    for again in (new_request("R", UNITS[2]), new_request("T", UNITS[2], UNITS[1])):
        with pytest.raises(LedgerError, match="there already"):
            ledger.requests.accept(again)
    assert ledger.file.head() == head
    assert ledger.requests.named_among(UNITS) == {UNITS[0], UNITS[1]}
    assert ledger.requests.named_among(UNITS[1:2]) == {UNITS[1]}
    assert ledger.requests.named_among(UNITS[2:3]) == set()
    ledger.close()


def test_a_unit_cannot_be_deleted_twice(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    carry_out(ledger, new_request("R", UNITS[0]))
    # Only a caller that did not ask `named_among` gets as far as this.
    again = ledger.requests.accept(new_request("S", UNITS[0]))
    release = ledger.begin_batch([again])
    with pytest.raises(LedgerError, match="there already"):
        ledger.commit(make_record(release))
    assert ledger.unfinished() == (2, "open")
    ledger.close()


def test_a_withdrawn_request_frees_its_id_and_units(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    request = ledger.requests.accept(new_request("R", UNITS[0]))
    ledger.requests.withdraw(request.request)
    assert ledger.requests.find("R") is None
    assert carry_out(ledger, new_request("R", UNITS[0])) == 1
    with pytest.raises(LedgerError, match="cannot be withdrawn"):
        ledger.requests.withdraw(ledger.requests.of_release(1)[0].request)
    ledger.close()


def test_steps_out_of_order_are_refused(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    request = ledger.requests.accept(new_request("R", UNITS[0]))
    release = ledger.begin_batch([request])
    for step in (
        lambda: ledger.mark_published(release),
        lambda: ledger.finish(release, []),
        lambda: ledger.commit(make_record(7)),
        lambda: ledger.roll_back(7),
    ):
        with pytest.raises(LedgerError, match="expected batch"):
            step()
    with pytest.raises(LedgerError, match="under way"):
        ledger.begin_batch([])
    ledger.close()


def test_a_crash_inside_a_transaction_leaves_nothing_of_it(tmp_path: Path) -> None:
    def crash(point: str) -> None:
        if point == "accept:before-commit":
            raise KeyboardInterrupt

    ledger = Ledger(tmp_path / "ledger.sqlite", "run", "key", crash)
    with pytest.raises(KeyboardInterrupt):
        ledger.requests.accept(new_request("R", UNITS[0]))
    assert ledger.requests.find("R") is None
    assert [entry.kind for entry in ledger.file.entries()] == ["created"]
    ledger.close()


def test_removed_pseudonyms_are_overwritten(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    request = ledger.requests.accept(new_request("R", UNITS[4]))
    ledger.requests.withdraw(request.request)
    ledger.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.sqlite"]
    assert UNITS[4].encode() not in (tmp_path / "ledger.sqlite").read_bytes()


@pytest.mark.parametrize(
    ("identity", "advice"),
    [(("other", "key"), "belongs to another run"), (("run", "other"), "UNLEARN_KEY_FILE")],
)
def test_another_run_or_key_is_refused(
    tmp_path: Path, identity: tuple[str, str], advice: str
) -> None:
    open_ledger(tmp_path).close()
    with pytest.raises(LedgerError, match=advice):
        Ledger(tmp_path / "ledger.sqlite", *identity)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("UPDATE ledger SET value = '2' WHERE key = 'version'")
    db.close()
    with pytest.raises(LedgerError, match="expected version 1, found 2"):
        open_ledger(tmp_path)


@pytest.mark.parametrize(
    "content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"x" * 99]
)
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(content)
    with pytest.raises(LedgerError, match="not a ledger, or damaged"):
        open_ledger(tmp_path)


def chain(*bodies: str) -> list[Entry]:
    entries, previous = [], GENESIS
    for number, body in enumerate(bodies, start=1):
        previous = link(previous, "kind", body)
        entries.append(Entry(number, "kind", body, previous))
    return entries


def test_the_chain_shows_every_change_but_a_shorter_end() -> None:
    entries = chain("{}", '{"a":1}', '{"a":2}', "{}")
    assert first_break(entries) is None
    assert first_break(entries[:-1]) is None
    edited = Entry(2, "kind", '{"a":9}', entries[1].digest)
    assert first_break([entries[0], edited, *entries[2:]]) == 2
    assert first_break([entries[0], *entries[2:]]) == 2
    assert first_break([entries[1], entries[0], *entries[2:]]) == 1
    assert first_break([Entry(1, "other", "{}", entries[0].digest), *entries[1:]]) == 1


def test_the_chain_digest_is_what_its_docstring_says() -> None:
    by_hand = hashlib.sha256(bytes(32) + b"accepted" + b"\0" + b'{"a":1}').hexdigest()
    assert link(GENESIS, "accepted", canonical({"a": 1})) == by_hand


def test_a_set_digest_is_one_of_a_set() -> None:
    assert unit_set_digest(UNITS) == unit_set_digest((*reversed(UNITS), UNITS[0]))
    assert unit_set_digest(UNITS) != unit_set_digest(UNITS[1:])


def test_a_lock_is_held_by_one_and_freed_by_closing(tmp_path: Path) -> None:
    with RunLock(tmp_path / "lock") as lock:
        with pytest.raises(WriterConflictError, match="in use by process"):
            RunLock(tmp_path / "lock")
        lock.close()
        RunLock(tmp_path / "lock").close()


def test_a_backup_is_a_whole_ledger(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    carry_out(ledger, new_request("R", UNITS[0]))
    ledger.file.copy_to(tmp_path / "copy.sqlite")
    copy = Ledger(tmp_path / "copy.sqlite", "run", "key")
    assert copy.file.entries() == ledger.file.entries()
    assert copy.releases() == ledger.releases()
    assert copy.file.first_inconsistency() is None
    copy.close()
    ledger.close()


def test_a_summary_is_read_beside_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    assert summarize_ledger(path) is None
    ledger = open_ledger(tmp_path)
    carry_out(ledger, new_request("R", UNITS[0], UNITS[1]))
    ledger.requests.accept(new_request("S", UNITS[2]))
    ledger.begin_batch([ledger.requests.accept(new_request("T", UNITS[3]))])
    assert summarize_ledger(path) == LedgerSummary(1, 2, 1, "open", make_record(1))
    ledger.close()
    assert summarize_ledger(path) == LedgerSummary(1, 2, 1, "open", make_record(1))
    path.write_bytes(b"no ledger" * 200)
    with pytest.raises(LedgerError, match="not a ledger, or damaged"):
        summarize_ledger(path)


def test_a_full_disk_is_no_damage(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    first = ledger.requests.accept(new_request("R", UNITS[0]))
    # SQLite refuses to grow past this, as it does on a full disk.
    ledger.file.run("PRAGMA max_page_count = 1")
    names = tuple(f"{number:032x}" for number in range(10, 5_000))
    with pytest.raises(StorageFullError, match="make room"):
        ledger.requests.accept(new_request("S", *names))
    ledger.file.run("PRAGMA max_page_count = 1000000")
    assert ledger.requests.waiting() == [first]
    ledger.requests.accept(new_request("S", *names))
    assert first_break(ledger.file.entries()) is None
