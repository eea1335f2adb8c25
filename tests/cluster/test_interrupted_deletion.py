"""Deletions that break off: the next command completes them, and nobody is alarmed meanwhile."""

import json
from typing import Any

import pytest

from cluster.inspection import verify_run
from pipeline import delete
from pipeline.deletion.batch import run_batch
from pipeline.errors import AlreadyDeletedError
from pipeline.run.directory import RunDirectory
from storage.ledger import Ledger
from tests.cluster.test_cli import files, unlearn


class CrashError(Exception):
    """Stands for the end of the process."""


def crashed_deletion(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, method: str, units: list[str]
) -> None:
    """Begin a deletion whose process ends when a step of the ledger returns."""
    real = getattr(Ledger, method)

    def crash(self: Ledger, *values: Any, **named: Any) -> None:
        real(self, *values, **named)
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, method, crash)
        with pytest.raises(CrashError):
            delete(run, units)


@pytest.mark.parametrize("method", ["commit", "mark_published", "finish"])
def test_a_repeated_deletion_says_that_the_interrupted_one_was_completed(
    run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
) -> None:
    crashed_deletion(run, monkeypatch, method, ["3", "4"])
    if method == "finish":
        # Nothing was left to complete: the deletion was whole, and only its answer was lost.
        with pytest.raises(AlreadyDeletedError):
            delete(run, ["4", "3"])
        return
    code, out, err = unlearn(capsys, "delete", str(run.path), "--ids", "4,3", "--json")
    assert code == 0
    receipt = json.loads(out)
    assert (receipt["release"], receipt["units_deleted"]) == (1, 2)
    assert "interrupted deletion of these units was completed as release 1" in err
    assert not (run.path / "releases" / "2").exists()


def test_the_answer_is_kept_until_the_deletion_is_repeated(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command completes it first; the client who repeats the request is told all the same."""
    crashed_deletion(run, monkeypatch, "commit", ["3", "4"])
    assert "completed as release 1" in verify_run(run).notes[0]
    delete(run, ["7"])
    receipt = delete(run, ["4", "3"])
    assert (receipt.release, receipt.units_deleted) == (1, 2)
    assert "completed as release 1" in receipt.warnings[0]
    # Once told, it is an ordinary deletion of the past.
    with pytest.raises(AlreadyDeletedError):
        delete(run, ["4", "3"])
    assert verify_run(run).damage == []


def test_an_accepted_deletion_is_carried_out_by_the_next_command(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*values: Any) -> int:
        raise SystemExit(1)

    assert run_batch is not crash
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.deletion.releases.run_batch", crash)
        with pytest.raises(SystemExit):
            delete(run, ["3"])
    receipt = delete(run, ["3"])
    assert receipt.release == 1 and "was completed as release 1" in receipt.warnings[0]


@pytest.mark.parametrize("method", ["commit", "mark_published"])
def test_verify_completes_what_was_interrupted_and_never_cries_wolf(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    crashed_deletion(run, monkeypatch, method, ["3"])
    before = files(run.path)
    looked = verify_run(run, read_only=True)
    assert looked.damage == [] and "was interrupted (release 1" in looked.notes[0]
    assert files(run.path) == before
    found = verify_run(run)
    assert found.damage == [] and "completed as release 1" in found.notes[0]
    assert verify_run(run).notes == []


def test_verify_of_a_half_done_erasure_never_cries_wolf(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise SystemExit(1)

    with monkeypatch.context() as patch:
        patch.setattr("storage.erasure._erase_in_blocks", crash)
        with pytest.raises(SystemExit):
            delete(run, ["3"])
    looked = verify_run(run, read_only=True)
    assert looked.damage == [] and "was interrupted (release 1" in looked.notes[0]
    assert verify_run(run).damage == []
