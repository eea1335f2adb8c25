"""The life of a batch: summed, staged, committed, published, erased.

    begin -> sum -> write S -> stage model and certificate -> COMMIT -> rename -> erase -> receipts

Before the commit a crash rolls the batch back and its requests wait again; after it, `recover`
carries the batch forward from whatever step it had reached, with the files that were staged: the
model is drawn once and never again. Every step may be repeated.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from pipeline.certificate import certificate_json, certificate_text
from pipeline.deletion import (
    DeletionState,
    add_to_state,
    correction_factor,
    scaled_chunks,
    unit_weights,
)
from pipeline.refusals import DamagedRunError
from pipeline.release_files import (
    CERTIFICATE_FILE,
    CERTIFICATE_TEXT_FILE,
    MODEL_FILE,
    ReleasePaths,
    publish,
    read_sum,
    write_model,
    write_sum,
)
from pipeline.requests import Receipt
from pipeline.run_facts import Erasable, RowStore, RunFacts
from storage.durable_write import sync_folder, write_durably
from storage.ledger import Faults, Ledger, no_faults
from storage.ledger_records import ReleaseRecord, RequestRecord
from storage.pseudonym import PseudonymKey


def utc_now() -> datetime:
    """Return the time that records and certificates carry."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Rim:
    """What reaches outside: the clock and, in tests, crashes.

    Attributes:
        faults: Called with the name of each crash point as it is passed.
        now: The time of day, in UTC.
    """

    faults: Faults = no_faults
    now: Callable[[], datetime] = utc_now


@dataclass(frozen=True)
class OpenRun:
    """A run opened for deletions: what is known, what is read, what is written."""

    facts: RunFacts
    store: RowStore
    also_erase: Sequence[Erasable]
    paths: ReleasePaths
    ledger: Ledger
    key: PseudonymKey
    rim: Rim = field(default_factory=Rim)


def last_state(run: OpenRun) -> DeletionState:
    """Return what the committed releases of this generation deleted."""
    records = run.ledger.releases()
    facts = run.facts
    if records and records[-1].generation > facts.generation:
        raise DamagedRunError(
            f"the last release starts from generation {records[-1].generation} of the run, and the "
            f"run is opened at generation {facts.generation}; open the repaired one"
        )
    if not records or records[-1].generation < facts.generation:
        return DeletionState(np.zeros(facts.trained_P.shape), 0, facts.generation)
    last = records[-1]
    path = run.paths.weighted_sum(last.release)
    sum_P = read_sum(path, last.sum_digest, facts.trained_P.size)
    return DeletionState(sum_P, last.total_samples, last.generation)


def run_batch(run: OpenRun, requests: Sequence[RequestRecord], names: Mapping[str, str]) -> int:
    """Carry waiting requests through to their receipts; return the release.

    Args:
        run: The opened run.
        requests: Waiting requests that ask for the same privacy.
        names: The name of every unit of theirs, by pseudonym.
    """
    started = time.perf_counter()
    release = run.ledger.begin_batch(requests)
    units = _in_row_order(run, [names[unit] for unit in run.ledger.units_of(release)])
    try:
        record, sum_seconds = _stage(run, release, units)
    except Exception:
        run.ledger.roll_back(release)
        run.paths.sweep(kept_release=release - 1)
        raise
    run.ledger.commit(record)
    _publish(run, release)
    _erase(run, units)
    _finish(run, release, sum_seconds, started)
    return release


def recover(run: OpenRun, resolve: Callable[[Sequence[str]], Mapping[str, str]]) -> None:
    """Roll the unfinished batch back, or forward if it was committed, and sweep the rest.

    Args:
        run: The opened run.
        resolve: Finds the names of pseudonyms.
    """
    started = time.perf_counter()
    unfinished = run.ledger.unfinished()
    if unfinished is not None:
        release, state = unfinished
        if state == "open":
            run.ledger.roll_back(release)
        else:
            if state == "committed":
                _publish(run, release)
            names = resolve(run.ledger.units_of(release))
            _erase(run, _in_row_order(run, list(names.values())))
            _finish(run, release, 0.0, started)
    records = run.ledger.releases()
    run.paths.sweep(kept_release=records[-1].release if records else 0)


def _in_row_order(run: OpenRun, units: Sequence[str]) -> list[str]:
    return sorted(units, key=run.facts.position.__getitem__)


def _stage(run: OpenRun, release: int, units: Sequence[str]) -> tuple[ReleaseRecord, float]:
    """Sum, write S, the model and the certificate; return the record to commit."""
    facts, paths, faults = run.facts, run.paths, run.rim.faults
    counts = [facts.samples_per_unit[unit] for unit in units]
    before = last_state(run)
    started = time.perf_counter()
    sum_P = run.store.sum_rows(units, unit_weights(facts.rule, counts))
    sum_seconds = time.perf_counter() - started
    state = add_to_state(before, sum_P, sum(counts))
    sum_digest = write_sum(paths.weighted_sum(release), state.weighted_sum_P, faults)
    staged = paths.staged(release)
    staged.mkdir(mode=0o755)
    model_digest = write_model(staged / MODEL_FILE, facts, _released(facts, state), faults)
    earlier = run.ledger.releases()
    record = ReleaseRecord(
        release=release,
        generation=facts.generation,
        num_units=len(units),
        num_samples=sum(counts),
        total_units=len(units) + (earlier[-1].total_units if earlier else 0),
        total_samples=state.num_deleted_samples,
        kind="none",
        epsilon=None,
        delta=None,
        sensitivity=None,
        sigma=0.0,
        model_digest=model_digest,
        certificate_digest="",
        sum_digest=sum_digest,
        chain_head=run.ledger.head(),
        created=run.rim.now().isoformat(timespec="seconds"),
    )
    text = certificate_json(facts, record)
    certificate_digest = write_durably(staged / CERTIFICATE_FILE, [text.encode()], faults, 0o644)
    readable = certificate_text(text).encode()
    write_durably(staged / CERTIFICATE_TEXT_FILE, [readable], faults, 0o644)
    sync_folder(staged, faults)
    sync_folder(paths.internal, faults)
    return replace(record, certificate_digest=certificate_digest), sum_seconds


def _released(facts: RunFacts, state: DeletionState) -> Iterator[NDArray[np.float32]]:
    """Yield the released parameters chunk by chunk."""
    factor = correction_factor(facts.rule, state.num_deleted_samples)
    for _, values_C in scaled_chunks(facts.trained_P, state.weighted_sum_P, factor):
        yield values_C.astype(np.float32)


def _publish(run: OpenRun, release: int) -> None:
    publish(run.paths, release, run.rim.faults)
    run.ledger.mark_published(release)


def _erase(run: OpenRun, units: Sequence[str]) -> None:
    run.rim.faults("erase:before")
    for erasable in (run.store, *run.also_erase):
        erasable.erase(units, run.key.unit)
        run.rim.faults("erase:after")


def _finish(run: OpenRun, release: int, sum_seconds: float, started: float) -> None:
    """Write the receipts, and remove the sum that this release replaced."""
    record = run.ledger.releases()[-1]
    receipts = []
    for request in run.ledger.requests_of(release):
        receipt = Receipt(
            request_id="",  # the client's own text is not kept; it is put in when asked for
            release=release,
            units_deleted=request.num_units,
            epsilon=record.epsilon,
            delta=record.delta,
            sum_seconds=sum_seconds,
            total_seconds=time.perf_counter() - started,
        )
        receipts.append((request.request, receipt.to_json()))
    run.ledger.finish(release, receipts)
    run.rim.faults("old-sum:before-unlink")
    run.paths.sweep(kept_release=release)
    run.rim.faults("old-sum:after-unlink")
