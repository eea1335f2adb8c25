"""The commands status, verify, report and export, which import no user's model."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.progress_file import read_progress
from pipeline.deletion.delete import deletion_context, error_gate, open_run
from pipeline.deletion.retraining import is_under_way
from pipeline.deletion.row_copies import RowCopies
from pipeline.deletion.verification import audit_releases, copied_ledger, opened_copy
from pipeline.errors import ConfigError, DamagedRunError, TrajectoryError
from pipeline.run.checkpoints import check
from pipeline.run.directory import RunDirectory
from pipeline.run.error_curve import NAME as MEASURED
from pipeline.run.error_curve import ErrorCurve
from pipeline.run.measurements import read_measurements
from storage.durable_write import write_atomically
from storage.errors import LedgerError
from storage.ledger_summary import summarize_ledger
from storage.pseudonym import load_key
from storage.store import ApproximatorStore


def status_of(run: RunDirectory) -> dict[str, Any]:
    """Return what is finished: training, rows, releases."""
    result: dict[str, Any] = {"run": str(run.path), "name": run.config.name}
    result |= {"trained": run.is_trained(), "pruned": run.is_pruned()}
    store, stage = run.stored() if result["trained"] else None, "precompute"
    if store is not None:
        facts = store.facts()
        if store.building is not None:
            stage = "retrain" if run.retrained_generation() == store.building else "repair"
        finished = f"{len(store.finished_blocks())} of {store.num_blocks}"
        result |= {
            "num_units": store.num_units,
            "blocks_finished" if stage == "precompute" else f"{stage}_blocks_finished": finished,
            "rows_written": facts.rows_written,
            "rows_erased": facts.rows_erased,
            "store_bytes": facts.store_bytes,
            "row_error_max": facts.row_error_max,
        }
    progress = read_progress(run.path)
    if progress is not None:
        result[stage] = progress
    saved = sorted(run.state_folder.glob("block-*.safetensors"))
    result["blocks_saved"] = len(saved)
    published = (run.path / "releases").glob("*/certificate.json")
    result["releases"] = len(list(published))
    deletions = summarize_ledger(run.ledger_path)
    if deletions is not None:
        result["units_deleted"] = deletions.units_deleted
        result["requests_waiting"] = deletions.requests_waiting
        if deletions.retraining is not None:
            result["retraining"] = asdict(deletions.retraining)
    result |= {f"{k}_seconds": v["seconds"] for k, v in read_measurements(run).items()}
    result["reported"] = (run.path / "report.json").exists()
    if store is not None and not run.is_pruned():
        gate = error_gate(run, store.generation)
        result |= {
            "engine": run.config.recursion.engine,
            "error_limit": gate.limit,
            "verdict": gate.verdict.text,
            "error_now": gate.now(deletions.last if deletions else None, store.generation),
        }
    return result


_UNDER_WAY = "a retraining is under way; `unlearn retrain` continues one that was interrupted"


@dataclass(frozen=True)
class Findings:
    """What `unlearn verify` found.

    Attributes:
        damage: Where and what, for everything that is not as it should be.
        notes: What a person should know that is no damage.
        verdict: What the measured error means for deletions, and what is left of those made.
    """

    damage: list[dict[str, str]]
    notes: list[str]
    verdict: str = ""


def verify_run(run: RunDirectory, read_only: bool = False) -> Findings:
    """Check trajectory, approximators, ledger, releases and what was measured.

    What a crash left half done is completed first, unless nothing is to be written.

    Args:
        run: The run.
        read_only: Change nothing, for a copy that cannot be written or is evidence.
    """
    found = _checked(run, read_only)
    return found if found.damage else replace(found, verdict=_verdict(run))


def _verdict(run: RunDirectory) -> str:
    store = None if run.is_pruned() else run.stored()
    if store is None:
        return ""
    gate = error_gate(run, store.generation)
    # A copy: SQLite leaves a log beside what it has read.
    with copied_ledger(run.ledger_path) as copy:
        deletions = summarize_ledger(copy)
    now = gate.now(deletions.last if deletions else None, store.generation)
    return f"{gate.verdict.text}. Now: {now}"


def _checked(run: RunDirectory, read_only: bool) -> Findings:
    if run.is_pruned():
        return Findings(_damaged_rows(run.stored()), [])
    store, damage = run.stored(), []
    for generation in range(1 + (store.generation if store else 0)):
        try:
            check(run.trajectory_folder_of(generation))
        except TrajectoryError as error:
            folder = run.trajectory_folder_of(generation).name
            damage.append({"where": folder, "reason": str(error)})
    trained_whole = not damage
    notes: list[str] = []
    damage += _missing(run, store)
    unreadable = _unreadable_curve(run)
    damage += unreadable
    if store is not None and trained_whole:
        try:
            run.refuse_store_of_another(store.store_id)
        except ConfigError as error:
            return Findings([*damage, {"where": "store", "reason": str(error)}], notes)
    if store is not None and trained_whole and not unreadable and run.ledger_path.exists():
        # Before the rows are read: the ledger completes what a crash has interrupted.
        try:
            found, notes = (_looked_at if read_only else _verified)(run)
        except (LedgerError, DamagedRunError) as error:
            found = [{"where": "ledger.sqlite", "reason": str(error)}]
        damage += found
    return Findings(damage + _damaged_rows(run.stored()), notes)


def _unreadable_curve(run: RunDirectory) -> list[dict[str, str]]:
    """Name what was measured if it cannot be read: no deletion is decided without it."""
    try:
        ErrorCurve.read(run)
    except (ConfigError, TrajectoryError) as error:
        return [{"where": MEASURED, "reason": str(error)}]
    return []


def _verified(run: RunDirectory) -> tuple[list[dict[str, str]], list[str]]:
    with open_run(run, ApproximatorStore.open(run.store_url, mode="r+")) as releases:
        notes = [
            f"an interrupted deletion was completed as release {k}" for k in releases.completed
        ]
        notes += [_UNDER_WAY] if releases.retraining() is not None else []
        return [{"where": item.place, "reason": item.what} for item in releases.verify()], notes


def _looked_at(run: RunDirectory) -> tuple[list[dict[str, str]], list[str]]:
    store = ApproximatorStore.open(run.store_url)
    with opened_copy(run.path, deletion_context(run, store), store) as copy:
        unfinished = copy.ledger.unfinished()
        if unfinished is not None and not is_under_way(copy):
            note = (
                f"a deletion was interrupted (release {unfinished[0]}, {unfinished[1]}); the next "
                "`unlearn delete`, or `unlearn verify` without --read-only, completes it"
            )
            return [], [note]
        found = audit_releases(copy)
        notes = [_UNDER_WAY] if unfinished is not None else []
        # The copy's own file has no mode to check.
        return [{"where": item.place, "reason": item.what} for item in found], notes


def _damaged_rows(store: ApproximatorStore | None) -> list[dict[str, str]]:
    found = [] if store is None else store.verify()
    return [{"where": item.unit_or_object, "reason": item.reason} for item in found]


def _missing(run: RunDirectory, store: ApproximatorStore | None) -> list[dict[str, str]]:
    """Name files that are gone although the rest of the run refers to them."""
    released = any((run.path / "releases").glob("*/certificate.json"))
    found = []
    if store is None and (released or "precompute" in read_measurements(run)):
        found.append({"where": str(run.store_url), "reason": "the store, or its manifest, is gone"})
    erased = store is not None and store.num_erased > 0
    if (released or erased) and not (run.path / "ledger.sqlite").exists():
        reason = "the ledger of the deletions made here is gone; restore a backup"
        found.append({"where": "ledger.sqlite", "reason": reason})
    return found


def redraw_report(run: RunDirectory) -> dict[str, Any]:
    """Draw report.html from report.json and return the report.

    Raises:
        ConfigError: If there is none yet, or it is damaged.
    """
    from pipeline.evaluation.report import read_report, write_report

    report = read_report(run.path)
    try:
        write_report(run.path, report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{run.path / 'report.json'} is damaged: it lacks what a report holds ({error!r}); "
            "remove it and repeat `unlearn run`"
        ) from error
    return report


def export_row(run: RunDirectory, unit: str, out: Path) -> Path:
    """Write one unit's row as float32 (P,) to an .npy file.

    Raises:
        StorageError: If the unit is unknown, erased, or its row is damaged.
        ConfigError: If the file cannot be written there.
    """
    import io

    store = run.stored()
    if store is None:
        raise ConfigError(f"{run.path} has no approximators yet; run `unlearn precompute` first")
    row = store.read_rows([unit])[0]
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder; make it first")
    buffer = io.BytesIO()
    np.save(buffer, row, allow_pickle=False)
    # Before the file: a deletion names in its receipt what the operator holds elsewhere.
    RowCopies(run.path).record_export(out.absolute(), load_key(run.path).unit(unit))
    write_atomically(out.absolute(), buffer.getvalue(), mode=0o600)
    return out
