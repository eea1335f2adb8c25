"""States of a batch of requests: begun, staged, committed, published, erased, answered.

    begin -> sum, noise, stage -> COMMIT -> rename -> erase -> receipts

Before the commit a crash rolls the batch back and its requests wait again; after it, `recover`
carries the batch forward from whatever step it had reached, with the files that were staged: the
model that is published was drawn once and is never drawn again. Every step may be repeated. The open
batch of a retraining is left alone until its generation is whole, and then carried forward.
"""

import time
from collections.abc import Mapping, Sequence

from pipeline.deletion.files import publish
from pipeline.deletion.requests import Receipt
from pipeline.deletion.retraining import is_under_way, stage_retrained
from pipeline.deletion.staging import OpenRun, stage
from pipeline.deletion.suppression import names_of
from storage.ledger_records import RETRAINED, RequestRecord


def run_batch(
    run: OpenRun,
    requests: Sequence[RequestRecord],
    names: Mapping[str, str],
    began: float | None = None,
) -> int:
    """Process waiting requests up to their receipts; return the release.

    Args:
        run: The opened run.
        requests: Waiting requests that ask for the same privacy.
        names: The name of every unit of theirs, by pseudonym.
        began: When they were asked for, by `time.perf_counter`; None takes now.

    Raises:
        StorageError: A row cannot be read; the batch is rolled back and its requests wait.
    """
    began = time.perf_counter() if began is None else began
    release = run.ledger.begin_batch(requests)
    units = _in_row_order(run, [names[unit] for unit in run.ledger.units_of(release)])
    try:
        staged = stage(run, release, units, requests)
    except Exception:
        _roll_back(run, release)
        raise
    run.ledger.commit(staged.record)
    _publish(run, release)
    _erase(run, units)
    _finish(run, release, staged.sum_seconds, began)
    return release


def recover(run: OpenRun) -> int | None:
    """Roll an unfinished batch back, or forward if it was committed or retrained; sweep the rest.

    Returns:
        The release that was completed, or None.

    Raises:
        DamagedRunError: A committed release is gone.
    """
    started = time.perf_counter()
    unfinished = run.ledger.unfinished()
    if unfinished is None:
        run.paths.sweep(kept_release=_last_release(run))
        return None
    release, state = unfinished
    retraining = run.ledger.retraining()
    if state == "open" and retraining is None:
        _roll_back(run, release)
        return None
    if state == "open" and retraining is not None:
        run.paths.sweep(kept_release=_last_release(run))
        if is_under_way(run):
            return None
        run.ledger.commit(stage_retrained(run, retraining).record)
        state = "committed"
    if state == "committed":
        _publish(run, release)
    names = names_of(run, run.ledger.units_of(release))
    _erase(run, _in_row_order(run, list(names.values())))
    # Who waits for a retraining is answered by its id, as whoever is queued.
    last = run.ledger.last_release()
    recovered = last is not None and last.kind != RETRAINED
    _finish(run, release, 0.0, started, recovered=recovered)
    return release


def _roll_back(run: OpenRun, release: int) -> None:
    run.ledger.roll_back(release)
    run.paths.sweep(kept_release=_last_release(run))


def _last_release(run: OpenRun) -> int:
    last = run.ledger.last_release()
    return last.release if last else 0


def _in_row_order(run: OpenRun, units: Sequence[str]) -> list[str]:
    return run.facts.in_row_order(units)


def _publish(run: OpenRun, release: int) -> None:
    publish(run.paths, release, run.dependencies.faults)
    run.ledger.mark_published(release)


def _erase(run: OpenRun, units: Sequence[str]) -> None:
    for erasable in run.erasables:
        run.dependencies.faults("erase:before")
        erasable.erase(units, run.key.unit)
        run.dependencies.faults("erase:after")


def _finish(
    run: OpenRun, release: int, sum_seconds: float, started: float, *, recovered: bool = False
) -> None:
    """Write the receipts, and remove the sum that this release replaced."""
    receipts, last = [], run.ledger.last_release()
    is_noisy = last is not None and last.kind != RETRAINED
    for request in run.ledger.requests.of_release(release):
        receipt = Receipt(
            request_id="",  # the client's own text is not kept; it is put in when asked for
            release=release,
            units_deleted=request.num_units,
            epsilon=request.epsilon if is_noisy else None,
            delta=request.delta if is_noisy else None,
            sum_seconds=sum_seconds,
            total_seconds=time.perf_counter() - started,
        )
        receipts.append((request.request, receipt.to_json()))
    run.ledger.finish(release, receipts, recovered=recovered)
    run.dependencies.faults("old-sum:before-unlink")
    run.paths.sweep(kept_release=release)
    run.dependencies.faults("old-sum:after-unlink")
