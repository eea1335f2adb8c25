"""Checking a run's deletions: chain, tables, files, certificates and store against each other."""

import json
import shutil
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeline.certificates.privacy import Budget
from pipeline.deletion.certificate import certificate_json, certificate_text
from pipeline.deletion.class_terms import Masses
from pipeline.deletion.context import DeletionContext, RowStore
from pipeline.deletion.files import (
    CERTIFICATE_FILE,
    CERTIFICATE_TEXT_FILE,
    MODEL_FILE,
    ReleasePaths,
    model_digest_of,
    read_masses,
    read_sum,
)
from pipeline.deletion.receipts import receipt_damage
from pipeline.deletion.staging import OpenRun, refuse_other_terms
from pipeline.deletion.weights import (
    DeletionState,
    Float32Array,
    Float64Array,
    clamp,
    deleted_chunks,
)
from pipeline.errors import DamagedRunError, ReleaseError
from pipeline.run.settings import read_text
from storage.durable_write import file_digest
from storage.errors import LedgerError
from storage.ledger import Ledger
from storage.ledger_records import ReleaseRecord, first_break
from storage.ledger_requests import unit_set_digest
from storage.pseudonym import load_key, unkept_key


@dataclass(frozen=True)
class Inconsistency:
    """One thing that is not as it should be."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


@contextmanager
def copied_ledger(path: Path) -> Iterator[Path]:
    """Copy a ledger, with its log, into a temporary folder; where there is none, nothing is copied."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        for suffix in ("", "-wal"):
            source = path.with_name(path.name + suffix)
            if source.is_file():
                shutil.copyfile(source, copy.with_name(copy.name + suffix))
        yield copy


@contextmanager
def opened_copy(run_dir: Path, facts: DeletionContext, store: RowStore) -> Iterator[OpenRun]:
    """Open a run to look at it: its ledger as a copy in a temporary folder, so nothing changes.

    Where there is no ledger yet, an empty one takes its place, with a key that is not kept.

    Raises:
        LedgerError: The ledger is damaged, or of another run or key.
    """
    paths = ReleasePaths(run_dir)
    if paths.ledger.exists() and not paths.ledger.is_file():
        raise LedgerError(f"{paths.ledger} is no file, so no ledger; restore one from a backup")
    with copied_ledger(paths.ledger) as copy:
        key = load_key(run_dir, create=False) if copy.exists() else unkept_key()
        with closing(Ledger(copy, facts.run_digest, key.check_value())) as ledger:
            yield OpenRun(facts, store, (), paths, ledger, key)


def audit_releases(run: OpenRun) -> list[Inconsistency]:
    """Return all damage found; an empty list if everything holds."""
    return [
        *_chain(run),
        *_committed_entries(run),
        *_folders(run),
        *_releases(run),
        *_receipts(run),
        *_class_terms(run),
        *_weighted_sum(run),
        *_store(run),
        *_modes(run),
    ]


def _chain(run: OpenRun) -> Iterator[Inconsistency]:
    inconsistency = run.ledger.file.first_inconsistency()
    if inconsistency is not None:
        yield Inconsistency("ledger.sqlite", inconsistency)
    broken = first_break(run.ledger.file.entries())
    if broken is not None:
        yield Inconsistency(
            "ledger.sqlite", f"entry {broken} does not follow from the one before it"
        )


def _committed_entries(run: OpenRun) -> Iterator[Inconsistency]:
    """Compare what the tables say with what the chain says."""
    told: dict[int, dict[str, Any]] = {}
    receipts: dict[int, list[list[Any]]] = {}
    for entry in run.ledger.file.entries():
        body = json.loads(entry.body)
        if entry.kind == "committed":
            told[body["release"]] = body
        elif entry.kind == "erased":
            receipts[body["release"]] = body["receipts"]
    records = {record.release: record for record in run.ledger.releases()}
    for release in sorted(told.keys() | records.keys()):
        record = records.get(release)
        found = None
        if record is not None:
            units = unit_set_digest(run.ledger.units_of(release))
            found = {**record.body(), "units": units}
        if found != told.get(release):
            yield Inconsistency("ledger.sqlite", f"release {release} is not what its entry says")
        if receipts.get(release, []) != run.ledger.receipt_digests(release):
            yield Inconsistency("ledger.sqlite", f"receipts of release {release} were changed")


def _folders(run: OpenRun) -> Iterator[Inconsistency]:
    expected = {str(record.release) for record in run.ledger.releases()}
    found = {path.name for path in run.paths.releases.iterdir()}
    for name in sorted(found - expected):
        yield Inconsistency(f"releases/{name}", "no release of this number was committed")


def _releases(run: OpenRun) -> Iterator[Inconsistency]:
    budgets = _budgets(run)
    for record in run.ledger.releases():
        budget = budgets.get(record.release, run.facts.budget)
        yield from _release(replace(run, facts=replace(run.facts, budget=budget)), record)


def _receipts(run: OpenRun) -> Iterator[Inconsistency]:
    """Check the signed receipts that were written into the run."""
    for path in sorted(run.paths.receipts.glob("*.json")):
        damage = receipt_damage(run.ledger, run.key, run.paths, path)
        if damage is not None:
            yield Inconsistency(_relative(run, path), damage)


def _budgets(run: OpenRun) -> dict[int, Budget | None]:
    """Return the budget under which each release was made; none of releases before the binding."""
    found: dict[int, Budget | None] = {}
    known, budget = False, None
    for entry in run.ledger.file.entries():
        if entry.kind in ("bound", "configured"):
            known = True
            text = str(json.loads(entry.body)["settings"])
            settings = read_text(text, str(run.paths.ledger))
            epsilon = settings.get("certificate.budget.epsilon")
            delta = settings.get("certificate.budget.delta")
            budget = None if epsilon is None or delta is None else Budget(epsilon, delta)
        elif entry.kind == "committed" and known:
            found[json.loads(entry.body)["release"]] = budget
    return found


def _release(run: OpenRun, record: ReleaseRecord) -> Iterator[Inconsistency]:
    folder = run.paths.published(record.release)
    for name, digest in (
        (MODEL_FILE, record.model_digest),
        (CERTIFICATE_FILE, record.certificate_digest),
    ):
        path = folder / name
        found = file_digest(path) if path.is_file() else None
        if found is None:
            yield Inconsistency(_relative(run, path), "the file is missing")
        elif found != digest:
            yield Inconsistency(_relative(run, path), f"expected digest {digest}, found {found}")
    if record.generation == run.facts.generation:
        yield from _certificate(run, record, folder)


def _certificate(run: OpenRun, record: ReleaseRecord, folder: Path) -> Iterator[Inconsistency]:
    path = folder / CERTIFICATE_FILE
    if not path.is_file():
        return
    text = path.read_text("utf-8", "replace")
    try:
        found = json.loads(text)
        wanted = certificate_json(run.facts, record, found.get("wording", 1))
        agrees = _agree(found, json.loads(wanted))
    except (
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        ReleaseError,
    ):  # it is no JSON, or the run could not have released it
        agrees = False
    if not agrees:
        yield Inconsistency(_relative(run, path), "the run and the ledger give another certificate")
        return
    readable = folder / CERTIFICATE_TEXT_FILE
    if not readable.is_file() or readable.read_text("utf-8", "replace") != certificate_text(text):
        yield Inconsistency(_relative(run, readable), "it does not say what certificate.json says")


def _agree(left: Any, right: Any) -> bool:
    """Compare two JSON values; numbers may differ by what another version of a solver changes."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_agree(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_agree, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return abs(left - right) <= 1e-9 * max(abs(left), abs(right))
    return type(left) is type(right) and bool(left == right)


def _weighted_sum(run: OpenRun) -> Iterator[Inconsistency]:
    """Check the noise-free sum, and that the last release without noise follows from it."""
    records, facts = run.ledger.releases(), run.facts
    if not records or run.ledger.is_pruned():
        return
    last = records[-1]
    path = run.paths.weighted_sum(last.release)
    try:
        sum_P = read_sum(path, last.sum_digest, facts.trained_P.size)
    except DamagedRunError as error:
        yield Inconsistency(_relative(run, path), str(error))
        return
    if last.sigma == 0 and last.generation == facts.generation:
        try:
            masses_C = _masses(run, last)
            state = DeletionState(sum_P, last.total_samples, last.generation, masses_C)
            chunks = deleted_chunks(facts.rule, facts.trained_P, state, facts.terms)
            found = model_digest_of(facts, _clamped(facts, chunks))
        except DamagedRunError as error:
            yield Inconsistency("internal", str(error))
            return
        if found != last.model_digest:
            what = "the trained parameters and the noise-free sum give another model"
            yield Inconsistency(f"releases/{last.release}", what)


def _masses(run: OpenRun, last: ReleaseRecord) -> Masses | None:
    """Return the masses by class that a release left behind; None without class terms."""
    terms = run.facts.terms
    if last.class_terms is None or terms is None:
        return None
    path = run.paths.weighted_sum(last.release)
    return read_masses(path, last.sum_digest, run.facts.trained_P.size, terms.num_classes)


def _class_terms(run: OpenRun) -> Iterator[Inconsistency]:
    """Check the class terms, and that masses of units are there for those not deleted alone."""
    facts = run.facts
    try:
        refuse_other_terms(facts, run.ledger.last_release())
        if facts.terms is None:
            return
        for number in facts.terms.numbers:
            facts.terms.vector(number)
        where = _relative(run, facts.terms.units.path)
        for what in facts.terms.units.damaged([not unit for unit in run.store.units]):
            yield Inconsistency(where, what)
    except DamagedRunError as error:
        yield Inconsistency("internal", str(error))


def _clamped(
    facts: DeletionContext, chunks: Iterator[tuple[int, Float64Array]]
) -> Iterator[Float32Array]:
    for start, values_C in chunks:
        clamp(values_C, start, facts.variances)
        yield values_C.astype(np.float32)


def _store(run: OpenRun) -> Iterator[Inconsistency]:
    """Check that exactly the deleted units are erased."""
    suppressed = set(run.ledger.suppressed())
    named = [unit for unit in run.store.units if unit]
    for unit in named:
        if run.key.unit(unit) in suppressed and run.store.state(unit) != "erased":
            yield Inconsistency(
                "store", f"the row of unit {unit!r} is there again after its deletion"
            )
    num_erased = len(run.store.units) - len(named)
    if num_erased > len(suppressed):
        what = f"{num_erased} rows are erased and the ledger knows of {len(suppressed)} deletions"
        yield Inconsistency("store", what)


def _modes(run: OpenRun) -> Iterator[Inconsistency]:
    """Check that what the operator holds is readable by its owner alone."""
    for path in (run.paths.internal, *sorted(run.paths.internal.rglob("*")), run.paths.ledger):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            yield Inconsistency(_relative(run, path), f"others may read it (mode {mode:04o})")


def _relative(run: OpenRun, path: Path) -> str:
    return str(path.relative_to(run.paths.root))
