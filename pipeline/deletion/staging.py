"""Making a release: the sum, the noise, the model's file and the certificate, before the commit.

Everything is written under internal/ and durable when `stage` returns; nothing is published.
"""

import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from pipeline.certificates.privacy import (
    Mechanism,
    check_budget,
    plan_release,
    spent_mu,
    standard_normals,
)
from pipeline.deletion.certificate import certificate_json, certificate_text
from pipeline.deletion.class_terms import ErasableMasses, Masses
from pipeline.deletion.context import DeletionContext, Erasable, RowStore
from pipeline.deletion.files import (
    CERTIFICATE_FILE,
    CERTIFICATE_TEXT_FILE,
    MODEL_FILE,
    ReleasePaths,
    model_digest_of,
    read_masses,
    read_sum,
    write_model,
    write_sum,
)
from pipeline.deletion.gate import accepted_error
from pipeline.deletion.weights import (
    DeletionState,
    Float64Array,
    add_to_state,
    clamp,
    deleted_chunks,
    scaled_chunks,
    unit_weights,
)
from pipeline.errors import DamagedRunError
from storage.durable_write import Faults, no_faults, shared_mode, sync_folder, write_durably
from storage.ledger import Ledger
from storage.ledger_records import ReleaseRecord, RequestRecord
from storage.pseudonym import PseudonymKey


def utc_now() -> datetime:
    """Return the time that records and certificates carry."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Dependencies:
    """What reaches outside; tests put crashes, clocks and known noise in its place.

    Attributes:
        faults: Called with the name of each crash point as it is passed.
        now: The time of day, in UTC.
        normals: Draws independent N(0, 1) values, float64.
    """

    faults: Faults = no_faults
    now: Callable[[], datetime] = utc_now
    normals: Callable[[int], Float64Array] = standard_normals


@dataclass(frozen=True)
class OpenRun:
    """A run opened for deletions: what is known, what is read, what is written."""

    facts: DeletionContext
    store: RowStore
    also_erase: Sequence[Erasable]
    paths: ReleasePaths
    ledger: Ledger
    key: PseudonymKey
    dependencies: Dependencies = field(default_factory=Dependencies)

    @property
    def erasables(self) -> tuple[Erasable, ...]:
        """Every place that holds something of a unit, in the order of their erasure.

        Masses come before the store: they are found by names, which the store erases.
        """
        facts = self.facts
        if facts.terms is None and not facts.needs_terms:
            return (self.store, *self.also_erase)
        masses = ErasableMasses(self.paths.root, facts.generation, facts.terms, facts.row)
        return (masses, self.store, *self.also_erase)


@dataclass(frozen=True)
class Totals:
    """What the committed releases of the present generation deleted."""

    units: int
    samples: int


def deleted_so_far(run: OpenRun) -> Totals:
    """Return the totals of this generation.

    Raises:
        DamagedRunError: The ledger has seen a later generation.
    """
    last, generation = run.ledger.last_release(), run.facts.generation
    if last is None or last.generation < generation:
        return Totals(0, 0)
    if last.generation > generation:
        raise DamagedRunError(
            f"the last release starts from generation {last.generation} of the run, and the run "
            f"is opened at generation {generation}; open the repaired one"
        )
    return Totals(last.total_units, last.total_samples)


def last_state(run: OpenRun) -> DeletionState:
    """Return the noise-free state after the last release of this generation."""
    totals = deleted_so_far(run)
    masses_C = _last_masses(run, totals)
    return DeletionState(_last_sum(run, totals)(), totals.samples, run.facts.generation, masses_C)


@dataclass(frozen=True)
class Staged:
    """A release that is ready to be committed."""

    record: ReleaseRecord
    sum_seconds: float


def stage(
    run: OpenRun, release: int, units: Sequence[str], requests: Sequence[RequestRecord]
) -> Staged:
    """Make release k from the rows of `units`, for requests that ask for the same privacy.

    Raises:
        StorageError: A row cannot be read.
        RetrainRequiredError: The deletion capacity is passed.
        BudgetSpentError: The privacy budget does not hold this release.
        ErrorLimitError: The error is above a limit that was lowered since the requests were accepted.
        DamagedRunError: The class terms are missing, or not those of the release before.
    """
    facts, last = run.facts, run.ledger.last_release()
    total_units = deleted_so_far(run).units + len(units)
    privacy = requests[0].epsilon, requests[0].delta
    mechanism = plan_release(facts.declared, total_units, *privacy)
    # Admission counted on waiting requests to share a release; one that waited longer does not.
    check_budget(last, [privacy], facts.budget)
    refuse_other_terms(facts, last)
    num_samples = sum(facts.samples_per_unit[unit] for unit in units)
    total_samples = deleted_so_far(run).samples + num_samples
    accepted = accepted_error(requests, last, facts.generation)
    facts.gate.decide(total_units, total_samples, accepted)
    stated = facts.gate.stated(total_units, total_samples, facts.declaration.capacity, accepted)
    state, sum_seconds = _summed(run, units)
    run.paths.staged(release).mkdir(mode=stat.S_IMODE(run.paths.releases.stat().st_mode))
    model_digest, sum_digest = _write_vectors(run, release, state, mechanism)
    record = ReleaseRecord(
        release=release,
        generation=facts.generation,
        num_units=len(units),
        num_samples=num_samples,
        total_units=total_units,
        total_samples=state.num_deleted_samples,
        kind=mechanism.kind,
        epsilon=mechanism.epsilon,
        delta=mechanism.delta,
        sensitivity=mechanism.sensitivity.total if mechanism.sensitivity else None,
        sigma=mechanism.sigma,
        spent_mu=spent_mu(last, mechanism),
        model_before=last.model_digest if last else model_digest_of(facts, [facts.published_P]),
        model_digest=model_digest,
        certificate_digest="",
        sum_digest=sum_digest,
        chain_head=run.ledger.file.head(),
        created=run.dependencies.now().isoformat(timespec="seconds"),
        measured_error=stated,
        class_terms=facts.terms.digest if facts.terms else None,
    )
    return Staged(write_certificate(run, record), sum_seconds)


def _summed(run: OpenRun, units: Sequence[str]) -> tuple[DeletionState, float]:
    """Return the state that includes `units`, and the seconds their rows took."""
    facts, totals = run.facts, deleted_so_far(run)
    counts = [facts.samples_per_unit[unit] for unit in units]
    with ThreadPoolExecutor(1) as other:  # the old sum is read while the new rows are summed
        before = other.submit(_last_sum(run, totals))
        started = time.perf_counter()
        sum_P = run.store.sum_rows(units, unit_weights(facts.rule, counts))
        sum_seconds = time.perf_counter() - started
    masses_C = None if facts.terms is None else facts.terms.masses_of([*map(facts.row, units)])
    state = DeletionState(
        before.result(), totals.samples, facts.generation, _last_masses(run, totals)
    )
    return add_to_state(state, sum_P, sum(counts), masses_C), sum_seconds


def refuse_other_terms(facts: DeletionContext, last: ReleaseRecord | None) -> None:
    """Refuse a release without the run's class terms, or with others than the release before.

    Raises:
        DamagedRunError: They are missing, or were exchanged.
    """
    if facts.terms is None and facts.needs_terms:
        raise DamagedRunError(
            f"the class terms of generation {facts.generation} are missing or damaged; restore them "
            "from a backup with `unlearn restore`, or train without the deleted with `unlearn retrain`"
        )
    if last is None or last.generation != facts.generation or last.class_terms is None:
        return
    found = None if facts.terms is None else facts.terms.digest
    if found != last.class_terms:
        raise DamagedRunError(
            f"release {last.release} was made with class terms of digest {last.class_terms}, found "
            f"{found}; restore them from a backup with `unlearn restore`, or retrain"
        )


def _last_masses(run: OpenRun, totals: Totals) -> Masses | None:
    """Return the mass of each class deleted of this generation so far; None without class terms."""
    facts, last = run.facts, run.ledger.last_release()
    if facts.terms is None:
        return None
    num_classes = facts.terms.num_classes
    if last is None or totals.units == 0:
        return np.zeros(num_classes, np.int64)
    path = run.paths.weighted_sum(last.release)
    return read_masses(path, last.sum_digest, facts.trained_P.size, num_classes)


def _last_sum(run: OpenRun, totals: Totals) -> Callable[[], Float64Array]:
    """Return what reads the noise-free sum after the last release of this generation."""
    size, last = run.facts.trained_P.size, run.ledger.last_release()
    if last is None or totals.units == 0:
        return lambda: np.zeros(size)
    path, digest = run.paths.weighted_sum(last.release), last.sum_digest
    return lambda: read_sum(path, digest, size)


def _write_vectors(
    run: OpenRun, release: int, state: DeletionState, mechanism: Mechanism
) -> tuple[str, str]:
    """Write model and noise-free sum, both at once; return their files' digests."""
    chunks = released_chunks(run.facts, state, mechanism, run.dependencies.normals)
    model_path, sum_path = run.paths.staged(release) / MODEL_FILE, run.paths.weighted_sum(release)
    with ThreadPoolExecutor(1) as other:
        faults = run.dependencies.faults
        sum_file = other.submit(write_sum, sum_path, state.weighted_sum_P, faults, state.masses_C)
        model_digest = write_model(model_path, run.facts, chunks, run.dependencies.faults)
    return model_digest, sum_file.result()


def released_chunks(
    facts: DeletionContext,
    state: DeletionState,
    mechanism: Mechanism,
    normals: Callable[[int], Float64Array],
) -> Iterator[NDArray[np.float32]]:
    """Yield the released parameters: float64 throughout, rounded to float32 once.

    Args:
        facts: The run.
        state: What is deleted, this release included.
        mechanism: Noise, and whether the approximators are added at all.
        normals: Draws the noise.
    """
    if mechanism.update:
        chunks = deleted_chunks(facts.rule, facts.trained_P, state, facts.terms)
    else:
        chunks = scaled_chunks(facts.trained_P, state.weighted_sum_P, 0.0)
    for start, values_C in chunks:
        if mechanism.sigma:
            values_C += mechanism.sigma * normals(values_C.size)
        clamp(values_C, start, facts.variances)
        yield values_C.astype(np.float32)


def write_certificate(run: OpenRun, record: ReleaseRecord) -> ReleaseRecord:
    """Write both certificates and make the staged folder durable; return the record to commit."""
    faults, folder = run.dependencies.faults, run.paths.staged(record.release)
    mode = shared_mode(run.paths.releases)
    text = certificate_json(run.facts, record)
    digest = write_durably(folder / CERTIFICATE_FILE, [text.encode()], faults, mode)
    readable = certificate_text(text).encode()
    write_durably(folder / CERTIFICATE_TEXT_FILE, [readable], faults, mode)
    sync_folder(folder, faults)
    sync_folder(run.paths.internal, faults)
    return replace(record, certificate_digest=digest)
