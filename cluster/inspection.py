"""Looking at a run: status, damage, report, one row. None of these imports a user's model."""

from pathlib import Path
from typing import Any

import numpy as np

from cluster.progress_file import read_progress
from pipeline.deletion.delete import open_run
from pipeline.errors import ConfigError, TrajectoryError
from pipeline.run.checkpoints import check
from pipeline.run.directory import RunDirectory
from pipeline.run.measurements import read_measurements
from storage.durable_write import write_atomically
from storage.errors import LayoutError
from storage.ledger import summarize_ledger
from storage.store import ApproximatorStore


def _store(run: RunDirectory) -> ApproximatorStore | None:
    try:
        return ApproximatorStore.open(run.store_url)
    except LayoutError:
        if run.manifest_exists():
            raise
        return None


def status_of(run: RunDirectory) -> dict[str, Any]:
    """Return what is finished: training, rows, releases."""
    result: dict[str, Any] = {"run": str(run.path), "name": run.config.name}
    result |= {"trained": run.is_trained(), "pruned": run.is_pruned()}
    store, stage = _store(run) if result["trained"] else None, "precompute"
    if store is not None:
        facts = store.facts()
        stage = "precompute" if store.building is None else "repair"
        finished = f"{len(store.finished_blocks())} of {store.num_blocks}"
        result |= {
            "num_units": len(store.units),
            "blocks_finished" if stage == "precompute" else "repair_blocks_finished": finished,
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
    result |= {f"{k}_seconds": v["seconds"] for k, v in read_measurements(run).items()}
    result["reported"] = (run.path / "report.json").exists()
    return result


def damage_of(run: RunDirectory) -> list[dict[str, str]]:
    """Check trajectory, rows, ledger and releases; return all damage, an empty list for none."""
    damage = []
    if run.is_pruned():
        store = _store(run)
        found = store.verify() if store is not None else []
        return [{"where": item.unit_or_object, "reason": item.reason} for item in found]
    store = _store(run)
    for generation in range(1 + (store.generation if store else 0)):
        try:
            check(run.trajectory_folder_of(generation))
        except TrajectoryError as error:
            folder = run.trajectory_folder_of(generation).name
            damage.append({"where": folder, "reason": str(error)})
    trained_whole = not damage
    damage += _missing(run, store)
    if store is not None:
        damage += [{"where": item.unit_or_object, "reason": item.reason} for item in store.verify()]
    if store is not None and trained_whole and (run.path / "ledger.sqlite").exists():
        with open_run(run, ApproximatorStore.open(run.store_url, mode="r+")) as releases:
            damage += [{"where": item.place, "reason": item.what} for item in releases.verify()]
    return damage


def _missing(run: RunDirectory, store: ApproximatorStore | None) -> list[dict[str, str]]:
    """Name files that are gone although the rest of the run speaks of them."""
    released = any((run.path / "releases").glob("*/certificate.json"))
    found = []
    if store is None and (released or "precompute" in read_measurements(run)):
        found.append({"where": str(run.store_url), "reason": "the store, or its manifest, is gone"})
    erased = store is not None and any(not name for name in store.units)
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

    store = _store(run)
    if store is None:
        raise ConfigError(f"{run.path} has no approximators yet; run `unlearn precompute` first")
    row = store.read_rows([unit])[0]
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder; make it first")
    buffer = io.BytesIO()
    np.save(buffer, row, allow_pickle=False)
    write_atomically(out.absolute(), buffer.getvalue(), mode=0o600)
    return out
