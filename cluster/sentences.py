"""What commands say to people: a deletion and the state of a run in a few sentences."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.deletion.files import CERTIFICATE_TEXT_FILE, MODEL_FILE, ReleasePaths
from pipeline.deletion.requests import Receipt
from pipeline.run.verdict import counted


def deletion_sentences(run: Path, unit: str, receipt: Receipt) -> Iterator[str]:
    """Say what became of a request.

    Args:
        run: The run's folder, as the user named it.
        unit: What one unit is, such as `sample`.
        receipt: The answer to the request.
    """
    deleted = counted(receipt.units_deleted, unit)
    have = "has" if receipt.units_deleted == 1 else "have"
    if not receipt.units_deleted:
        yield f"Nothing was deleted from {run}."
    elif receipt.dry_run:
        yield f"{deleted} can be deleted from {run}. This was a dry run: nothing was changed."
    elif receipt.release is None:
        known = " already" if receipt.repeated else ""
        yield (
            f"The request to delete {deleted} from {run} is{known} stored and waits: `unlearn "
            f"release {run}` carries it out. Its id: {receipt.request_id}"
        )
    else:
        folder = ReleasePaths(run).published(receipt.release)
        when = "" if not receipt.repeated else " when this request was first made"
        yield f"{deleted} {have} been deleted from {run}{when}; the approximators are erased."
        yield (
            f"The model without them: {folder / MODEL_FILE} ({_noise(receipt)}). What is claimed of "
            f"it: {folder / CERTIFICATE_TEXT_FILE}"
        )
    if receipt.already or receipt.unknown:
        yield (
            f"Left out: {len(receipt.already)} deleted or waiting before, {len(receipt.unknown)} "
            "that the run was not trained on."
        )


def _noise(receipt: Receipt) -> str:
    if receipt.epsilon is None:
        return "no noise was added"
    return f"with noise for epsilon {receipt.epsilon:g}, delta {receipt.delta:g}"


def receipt_sentences(stated: dict[str, Any]) -> Iterator[str]:
    """Say what a valid receipt states."""
    deleted, model, certificate = stated["deleted"], stated["model"], stated["certificate"]
    yield (
        f"valid: {counted(deleted['units'], deleted['unit'])} deleted from the model of run "
        f"{model['run'][:16]} by release {model['release']} on {model['released']}"
    )
    yield f"certificate: {certificate['claim']}"
    if stated["measured_error"] is not None:
        yield f"measured error: {stated['measured_error']['statement']}"
    yield stated["composition"]


def status_sentences(status: dict[str, Any]) -> Iterator[str]:
    """Say where a run stands, from what `status_of` found."""
    run = status["run"]
    if not status["trained"]:
        yield f"{run} is not trained yet: `unlearn run` or `unlearn train` does it."
        return
    if status["pruned"]:
        yield f"{run} is pruned: its releases stay, and nothing further can be deleted from it."
        return
    if "num_units" not in status:
        yield f"{run} is trained; `unlearn precompute {run}` computes what deletions need."
        return
    finished = status.get("blocks_finished")
    done, _, of = str(finished).partition(" of ")
    if finished is not None and done != of:
        yield (
            f"{run} is trained, and {finished} blocks of its approximators are stored: `unlearn "
            f"precompute {run}` computes the others."
        )
    else:
        stored = counted(status["rows_written"], "unit")
        yield f"{run} is ready for deletions: approximators of {stored} are stored."
    if status.get("units_deleted"):
        yield (
            f"{status['units_deleted']:,} units are deleted, in "
            f"{counted(status['releases'], 'release')}: {Path(run) / 'releases'}"
        )
    if status.get("requests_waiting"):
        waiting = counted(status["requests_waiting"], "request")
        verb = "waits" if status["requests_waiting"] == 1 else "wait"
        yield (
            f"{waiting} {verb}: `unlearn requests {run}` lists, `unlearn release {run}` carries out."
        )
    if "retraining" in status:
        yield f"A retraining is under way; if it was interrupted, repeat `unlearn retrain {run}`."
