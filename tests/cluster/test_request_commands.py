"""Requests as a person sees them on the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.inspection import verify_run
from cluster.upkeep import back_up, restore_backup
from pipeline import delete
from pipeline.deletion.configure import configure
from pipeline.deletion.delete import accept, cancel, open_run, release_waiting
from pipeline.deletion.request_list import requests_of
from pipeline.deletion.requests import DeletionRequest
from pipeline.errors import (
    NotWaitingError,
    RequestCancelledError,
    RequestConflictError,
    RequestError,
    WaitingError,
)
from pipeline.run.directory import RunDirectory
from pipeline.run.error_curve import ErrorCurve, ErrorPoint
from storage.errors import LedgerError
from storage.ledger import Ledger
from storage.ledger_records import NewRequest
from storage.ledger_summary import list_requests
from storage.pseudonym import load_key
from storage.signing import load_signing_key, signing_key_file
from storage.store import ApproximatorStore
from tests.cluster.test_cli import unlearn


def listed(capsys: pytest.CaptureFixture[str], run: RunDirectory, *words: str) -> list[Any]:
    code, out, err = unlearn(capsys, "requests", str(run.path), "--json", *words)
    assert (code, err) == (0, "")
    return list(json.loads(out)["requests"])


def test_requests_are_listed_by_pseudonym_with_what_became_of_them(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unlearn(capsys, "requests", str(run.path))[:2] == (0, "no requests\n")
    delete(run, DeletionRequest(["3", "17"], "Doe, Jane"))
    accept(run, DeletionRequest(["4"], "Roe, Richard"))
    key = load_key(run.path)
    done, waits = listed(capsys, run)
    assert (done["request"], waits["request"]) == (
        key.request("Doe, Jane"),
        key.request("Roe, Richard"),
    )
    assert (done["state"], done["release"], done["units"]) == ("done", 1, 2)
    assert (waits["state"], waits["release"], waits["units"]) == ("waiting", None, 1)
    assert done["received"] <= waits["received"]
    assert listed(capsys, run, "--state", "waiting") == [waits]
    assert listed(capsys, run, "--state", "in_progress") == []
    code, out, _ = unlearn(capsys, "requests", str(run.path))
    header, *lines = out.splitlines()
    assert code == 0 and header.split() == [
        "request",
        "received",
        "due",
        "state",
        "release",
        "units",
    ]
    assert [line.split()[0] for line in lines] == [done["request"], waits["request"]]
    assert "Jane" not in out and "Roe" not in out


def test_a_list_needs_neither_key_nor_lock(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(run, DeletionRequest(["4"], "R"))
    monkeypatch.setenv("UNLEARN_KEY_FILE", "/nowhere/key")
    with run.ledger_lock_path.open("r+"):
        assert [each.state for each in requests_of(run)] == ["waiting"]


def test_an_unknown_state_is_one_line(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RequestError, match="expected a state among waiting"):
        requests_of(run, "lost")
    code, _, err = unlearn(capsys, "requests", str(run.path), "--state", "lost")
    assert (code, err.count("\n")) == (2, 1)


def test_a_deletion_is_told_in_sentences(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(run.path)
    code, out, _ = unlearn(capsys, "delete", folder, "--ids", "3,17", "--dry-run")
    assert (code, "can be deleted" in out, "nothing was changed" in out) == (0, True, True)
    code, out, _ = unlearn(capsys, "delete", folder, "--ids", "5", "--queue")
    assert (code, "1 sample" in out, f"unlearn release {folder}" in out) == (0, True, True)
    words = ("delete", folder, "--ids", "3,17", "--request-id", "R")
    code, out, _ = unlearn(capsys, *words)
    model = Path(folder) / "releases" / "2" / "model.safetensors"
    assert (code, "2 samples have been deleted" in out, str(model) in out) == (0, True, True)
    assert model.is_file()
    assert "first made" in unlearn(capsys, *words)[1]
    code, out, _ = unlearn(capsys, "delete", folder, "--ids", "3,99", "--skip-invalid")
    assert (code, "Nothing was deleted" in out) == (0, True)
    assert "1 deleted or waiting before, 1 that the run was not trained on" in out


def test_the_status_begins_with_sentences(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(run.path)
    assert (
        f"{folder} is ready for deletions: approximators of 40 units"
        in unlearn(capsys, "status", folder)[1]
    )
    delete(run, ["3", "17"])
    accept(run, DeletionRequest(["4"], "R"))
    code, out, _ = unlearn(capsys, "status", folder)
    assert (code, "approximators of 38 units" in out) == (0, True)
    assert "2 units are deleted, in 1 release" in out and "1 request waits" in out
    assert "requests_waiting: 1" in out


def test_what_the_lowered_limit_refuses_needs_a_decision(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [ErrorPoint(n, n, n / 10, n / 10, n / 10, 3, "measured") for n in (1, 4, 8)]
    ErrorCurve("trials", "hvp", tuple(points)).write(run)
    accept(run, DeletionRequest(["1", "2", "3", "4"], "R1"))
    assert [each.state for each in requests_of(run)] == ["waiting"]
    run = configure(run, ["evaluation.max_error=0.3"])
    with pytest.raises(WaitingError, match="measured error of 4 samples") as refused:
        release_waiting(run)
    (status,) = requests_of(run)
    assert (status.state, status.reason in str(refused.value)) == ("needs_decision", True)
    code, out, _ = unlearn(capsys, "requests", str(run.path), "--state", "needs_decision")
    assert (code, "4 samples" in out.splitlines()[-1]) == (0, True)
    # One release would hold both, and the error of the second was accepted.
    accept(run, DeletionRequest(["5"], "R2", accept_error=0.9))
    assert [each.state for each in requests_of(run)] == ["waiting", "waiting"]
    assert [receipt.release for receipt in release_waiting(run)] == [1, 1]


def test_a_waiting_request_is_cancelled_and_its_units_can_be_asked_for_again(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(run.path)
    request = DeletionRequest(["4", "5"], "R1")
    accept(run, request)
    for _ in range(2):  # cancelling again is answered the same
        code, out, err = unlearn(capsys, "cancel", folder, "R1")
        assert (code, out.startswith("The request is cancelled"), err) == (0, True, "")
    assert [each.state for each in requests_of(run)] == ["cancelled"]
    assert release_waiting(run) == []
    for ask in (delete, accept):
        with pytest.raises(RequestCancelledError, match="was cancelled and deletes nothing"):
            ask(run, request)
        with pytest.raises(RequestConflictError):
            ask(run, DeletionRequest(["6"], "R1"))
    code, _, err = unlearn(capsys, "delete", folder, "--ids", "4,5", "--request-id", "R1")
    assert (code, err.count("\n"), "was cancelled" in err) == (1, 1, True)
    assert delete(run, DeletionRequest(["4"], "R2")).release == 1
    assert [each.state for each in requests_of(run)] == ["cancelled", "done"]
    assert not verify_run(run).damage


def test_what_is_carried_out_or_unknown_cannot_be_cancelled(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    delete(run, DeletionRequest(["4"], "R1"))
    with pytest.raises(NotWaitingError, match="was carried out as release 1"):
        cancel(run, "R1")
    code, _, err = unlearn(capsys, "cancel", str(run.path), "R1")
    assert (code, err.count("\n")) == (1, 1)
    code, _, err = unlearn(capsys, "cancel", str(run.path), "R9")
    assert (code, err.count("\n"), "knows no request 'R9'" in err) == (2, 1, True)
    assert [each.state for each in requests_of(run)] == ["done"]


def test_what_a_retraining_holds_cannot_be_cancelled(run: RunDirectory) -> None:
    accept(run, DeletionRequest(["4"], "R1"))
    with open_run(run, ApproximatorStore.open(run.store_url, mode="r+")) as releases:
        releases.begin_retraining(final=False)
        waits = releases.accept(DeletionRequest(["5"], "R2"))
        with pytest.raises(NotWaitingError, match="is being carried out as release 1"):
            releases.cancel("R1")
        assert waits.units_deleted == 1 and releases.cancel("R2").state == "cancelled"


def test_a_request_is_cancelled_by_the_pseudonym_that_the_list_shows(run: RunDirectory) -> None:
    accept(run, DeletionRequest(["4"], "R1"))
    (waits,) = requests_of(run)
    cancel(run, waits.request)
    assert [each.state for each in requests_of(run)] == ["cancelled"]


def test_a_backup_from_before_a_cancellation_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    accept(run, DeletionRequest(["4"], "R1"))
    back_up(run, tmp_path / "before")
    cancel(run, "R1")
    back_up(run, tmp_path / "after")
    with pytest.raises(LedgerError, match="would forget"):
        restore_backup(run, tmp_path / "before")
    assert restore_backup(run, tmp_path / "after") == 0
    assert [each.state for each in requests_of(run)] == ["cancelled"]


def test_the_life_of_a_receipt_on_the_command_line(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, file, key = str(run.path), str(tmp_path / "r.json"), str(tmp_path / "key.pem")
    assert unlearn(capsys, "delete", folder, "--ids", "3", "--request-id", "R1", "--json")[0] == 0
    assert not (run.path / "receipts").exists()
    _, out, _ = unlearn(capsys, "delete", folder, "--ids", "4", "--request-id", "R2")
    (written,) = (run.path / "receipts").iterdir()
    assert str(written) in out
    assert unlearn(capsys, "receipt", folder, "R1", "--out", file)[:2] == (0, f"{file}\n")
    assert unlearn(capsys, "receipt", folder, "R1")[1] == Path(file).read_text()
    assert unlearn(capsys, "public-key", folder, "--out", key)[0] == 0
    assert unlearn(capsys, "public-key", folder)[1] == Path(key).read_text()
    # Offline: neither the run nor any key but the public one is there.
    run.path.rename(tmp_path / "elsewhere")
    load_signing_key(run.path)  # still beside the pseudonym key
    (tmp_path / "keys").rename(tmp_path / "keys-elsewhere")
    for checked in (file, str(tmp_path / "elsewhere" / "receipts" / written.name)):
        code, out, err = unlearn(capsys, "verify-receipt", checked, "--public-key", key)
        assert (code, out.startswith("valid: 1 sample deleted"), err) == (0, True, "")
    words = ("verify-receipt", file, "--public-key", key)
    assert json.loads(unlearn(capsys, *words, "--json")[1])["valid"] is True
    Path(file).write_text(Path(file).read_text().replace('"units": 1', '"units": 2'))
    code, out, err = unlearn(capsys, *words)
    assert (code, out, err.count("\n"), "not valid" in err) == (1, "", 1, True)
    Path(key).write_text("no key")
    code, _, err = unlearn(capsys, *words)
    assert (code, err.count("\n"), "PEM" in err) == (1, 1, True)


def test_a_receipt_with_a_client_s_id_is_not_written_into_the_run(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    delete(run, DeletionRequest(["3"], "Doe, Jane"))
    inside = str(run.path / "r.json")
    code, _, err = unlearn(capsys, "receipt", str(run.path), "Doe, Jane", "--out", inside)
    assert (code, err.count("\n"), "lies in the run" in err) == (2, 1, True)


def test_a_receipt_that_cannot_be_written_does_not_undo_the_deletion(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    signing_key_file().parent.mkdir(parents=True)
    signing_key_file().write_text("no key")
    code, out, _ = unlearn(capsys, "delete", str(run.path), "--ids", "3")
    assert (code, "could not be written" in out, "unlearn receipt" in out) == (0, True, True)
    assert (run.path / "releases" / "1" / "model.safetensors").is_file()


def test_a_deadline_is_kept_and_listed_and_not_told_on(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("delete", str(run.path), "--ids", "3", "--request-id", "R", "--queue")
    assert unlearn(capsys, *words, "--due", "2026-12-31")[0] == 0
    accept(run, DeletionRequest(["4"], "S"))
    # The day first named holds.
    assert unlearn(capsys, *words, "--due", "2027-01-01")[0] == 0
    back_up(run, tmp_path / "backup")
    restore_backup(run, tmp_path / "backup")
    assert [each.due for each in requests_of(run)] == ["2026-12-31", None]
    assert "2026-12-31" in unlearn(capsys, "requests", str(run.path))[1]
    release_waiting(run)
    assert [each["due"] for each in listed(capsys, run)] == ["2026-12-31", None]
    for path in (run.path / "releases" / "1").iterdir():
        assert b"2026-12-31" not in path.read_bytes()
    assert "2026-12-31" not in unlearn(capsys, "receipt", str(run.path), "R")[1]


@pytest.mark.parametrize(
    "due", ["tomorrow", "31.12.2026", "20261231", "2026-W53-4", "2026-02-30", ""]
)
def test_a_day_that_is_none_is_refused(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], due: str
) -> None:
    code, _, err = unlearn(capsys, "delete", str(run.path), "--ids", "3", "--due", due)
    assert (code, err.count("\n"), "2026-12-31" in err) == (2, 1, True)
    assert not run.ledger_path.exists()


def test_a_ledger_of_before_lists_what_it_knows(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", "run", "key")
    ledger.requests.accept(NewRequest("R", "set", ("unit",), 1))
    ledger.close()
    (each,) = list_requests(tmp_path / "ledger.sqlite")
    assert (each.record.state, each.received, each.due) == ("accepted", None, None)


def test_a_number_that_is_used_again_has_the_dates_of_the_last(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", "run", "key")
    first = ledger.requests.accept(NewRequest("R", "set", ("unit",), 1, due="2026-01-01"))
    ledger.requests.withdraw(first.request)
    again = ledger.requests.accept(NewRequest("S", "set", ("unit",), 1, received="now"))
    assert again.request == first.request
    ledger.close()
    (each,) = list_requests(tmp_path / "ledger.sqlite")
    assert (each.received, each.due) == ("now", None)


@pytest.mark.parametrize("command", ["cancel", "receipt"])
@pytest.mark.parametrize("request_id", ["\udcff", "", "0" * 32, "x' OR '1'='1", "../R"])
def test_an_id_that_nobody_used_is_one_line(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], command: str, request_id: str
) -> None:
    delete(run, DeletionRequest(["3"], "R"))
    code, _, err = unlearn(capsys, command, str(run.path), request_id)
    assert (code, err.count("\n"), "knows no request" in err) == (2, 1, True)
    assert [each.state for each in requests_of(run)] == ["done"]


def test_an_id_of_half_a_character_gets_a_receipt_by_its_pseudonym_alone(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    delete(run, DeletionRequest(["3"], "\udcff"))
    code, _, err = unlearn(capsys, "receipt", str(run.path), "\udcff")
    assert (code, err.count("\n"), "canonical form" in err) == (1, 1, True)
    assert unlearn(capsys, "receipt", str(run.path), requests_of(run)[0].request)[0] == 0
