"""Deletions that count: accepted once, applied once, answered with a receipt.

    with open_releases(run_dir, facts, store) as releases:
        receipt = releases.delete(DeletionRequest(units=["3", "17"]))

Opening takes the run's lock, recovers what a crash left half done and closes with the context.
"""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.deletion import correction_factor
from pipeline.refusals import DamagedRunError, RequestConflictError, refuse_units
from pipeline.release_batch import OpenRun, Rim, last_state, recover, run_batch
from pipeline.release_files import ReleasePaths
from pipeline.requests import DeletionRequest, Receipt
from pipeline.run_facts import Erasable, RowStore, RunFacts
from storage.errors import StorageError
from storage.ledger import Ledger, unit_set_digest
from storage.ledger_records import NewRequest, RequestRecord
from storage.pseudonym import load_key
from storage.run_lock import RunLock

_NO_NOISE = (
    "released without noise: whoever holds this model and an earlier one has the vectors of those "
    "who were deleted in between; name epsilon and delta to prevent it"
)


def open_releases(
    run_dir: Path,
    facts: RunFacts,
    store: RowStore,
    also_erase: Sequence[Erasable] = (),
    rim: Rim | None = None,
) -> "Releases":
    """Open a run for deletions: lock it, check its ledger, recover an unfinished batch.

    Args:
        run_dir: The run's folder.
        facts: What a deletion must know of the run.
        store: The reader of its rows.
        also_erase: Whatever else inside the run may hold rows: saved states, exports.
        rim: Clock and crash points.

    Raises:
        WriterConflictError: Another process has the run open.
        LedgerError: The ledger is damaged, or of another run or key.
        DamagedRunError: A committed release cannot be carried forward.
    """
    rim = rim or Rim()
    paths = ReleasePaths(run_dir)
    key = load_key(run_dir)
    lock = RunLock(paths.lock)
    try:
        paths.create()
        ledger = Ledger(paths.ledger, facts.run_digest, key.check_value(), rim.faults)
        run = OpenRun(facts, store, tuple(also_erase), paths, ledger, key, rim)
        return Releases(run, lock)
    except BaseException:
        lock.close()
        raise


@dataclass(frozen=True)
class _Selection:
    """The units of a request, sorted out; `valid` maps pseudonyms to names."""

    set_digest: str
    valid: dict[str, str]
    unknown: list[str]
    already: list[str]


class Releases:
    """The deletions of one run, which this process holds alone until `close`."""

    def __init__(self, run: OpenRun, lock: RunLock) -> None:
        self._run = run
        self._lock = lock
        self._recover()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the ledger and let go of the run."""
        self._run.ledger.close()
        self._lock.close()

    def _recover(self) -> None:
        recover(self._run, self._resolve)

    def delete(self, request: DeletionRequest) -> Receipt:
        """Delete units and release the model without them.

        Requests that an earlier crash left waiting are carried out first.

        Raises:
            UnitsRefusedError: Units are unknown or deleted already, and are not to be skipped.
            RequestConflictError: The request id stands for another set of units or privacy.
            StorageError: Rows cannot be read; the request is withdrawn.
        """
        started = time.perf_counter()
        self._recover()
        request_id = request.request_id or uuid.uuid4().hex
        names = request.names()
        answered = self._answered(request, request_id, names)
        if answered is not None:
            return answered
        warnings = [] if request.dry_run else self.process_waiting()
        selection = self._select(names)
        if not request.skip_invalid:
            refuse_units(selection.unknown, selection.already)
        if request.epsilon is None:
            warnings.append(_NO_NOISE)
        receipt = Receipt(
            request_id,
            None,
            len(selection.valid),
            tuple(selection.already),
            tuple(selection.unknown),
            request.epsilon,
            request.delta,
            warnings=tuple(warnings),
            dry_run=request.dry_run,
        )
        if request.dry_run or not selection.valid:
            return receipt
        self._check_remaining(selection)
        done = self._carry_out(self._accept(request, request_id, selection), selection.valid)
        return replace(
            receipt,
            release=done.release,
            sum_seconds=done.sum_seconds,
            total_seconds=time.perf_counter() - started,
        )

    def process_waiting(self) -> list[str]:
        """Carry out the requests that wait, one release for each privacy asked for.

        Returns:
            One line for each batch that could not be carried out; its requests keep waiting.
        """
        run, failures = self._run, []
        groups: dict[tuple[float | None, float | None], list[RequestRecord]] = {}
        for request in run.ledger.waiting():
            groups.setdefault((request.epsilon, request.delta), []).append(request)
        for requests in groups.values():
            names = self._resolve(
                [u for r in requests for u in run.ledger.units_of_request(r.request)]
            )
            try:
                run_batch(run, requests, names)
            except StorageError as error:
                failures.append(f"{len(requests)} earlier requests keep waiting: {error}")
        return failures

    def _answered(
        self, request: DeletionRequest, request_id: str, names: Sequence[str]
    ) -> Receipt | None:
        """Return the first receipt of a request that is repeated."""
        known = self._run.ledger.find_request(self._run.key.request(request_id))
        if known is None:
            return None
        same = (unit_set_digest(self._run.key.units(names)), request.epsilon, request.delta)
        if same != (known.set_digest, known.epsilon, known.delta):
            raise RequestConflictError(
                f"request id {request_id!r} was used for another set of units, epsilon or delta; "
                "repeat that request as it was, or choose another id"
            )
        if known.receipt is None:
            self.process_waiting()
            known = self._run.ledger.find_request(known.request_id)
        if known is None or known.receipt is None:
            raise DamagedRunError(f"request {request_id!r} was accepted and cannot be carried out")
        return self._first_receipt(known, request_id, names)

    def _first_receipt(
        self, known: RequestRecord, request_id: str, names: Sequence[str]
    ) -> Receipt:
        assert known.receipt is not None
        fields = json.loads(known.receipt)
        unknown = [name for name in names if name not in self._run.facts.samples_per_unit]
        deleted = self._run.ledger.units_of_request(known.request)
        already = [
            name
            for name in names
            if name in self._run.facts.samples_per_unit and self._run.key.unit(name) not in deleted
        ]
        return Receipt(
            **{
                **fields,
                "request_id": request_id,
                "already": tuple(already),
                "unknown": tuple(unknown),
                "warnings": tuple(fields["warnings"]),
                "repeated": True,
            }
        )

    def _select(self, names: Sequence[str]) -> _Selection:
        run = self._run
        pseudonyms = run.key.units(names)
        gone = run.ledger.suppressed_among(pseudonyms) | run.ledger.waiting_among(pseudonyms)
        selection = _Selection(unit_set_digest(pseudonyms), {}, [], [])
        for name, pseudonym in zip(names, pseudonyms, strict=True):
            if pseudonym in gone:
                selection.already.append(name)
            elif name in run.facts.samples_per_unit:
                selection.valid[pseudonym] = name
            else:
                selection.unknown.append(name)
        return selection

    def _check_remaining(self, selection: _Selection) -> None:
        facts = self._run.facts
        count = sum(facts.samples_per_unit[name] for name in selection.valid.values())
        correction_factor(facts.rule, last_state(self._run).num_deleted_samples + count)

    def _accept(
        self, request: DeletionRequest, request_id: str, selection: _Selection
    ) -> RequestRecord:
        new = NewRequest(
            self._run.key.request(request_id),
            selection.set_digest,
            tuple(selection.valid),
            request.epsilon,
            request.delta,
        )
        return self._run.ledger.accept(new)

    def _carry_out(self, accepted: RequestRecord, names: dict[str, str]) -> Receipt:
        try:
            run_batch(self._run, [accepted], names)
        except Exception:
            if self._run.ledger.unfinished() is None:
                self._run.ledger.withdraw(accepted.request)
            raise
        done = self._run.ledger.request(accepted.request)
        return Receipt(**json.loads(done.receipt or ""))

    def _resolve(self, pseudonyms: Sequence[str]) -> dict[str, str]:
        """Return the names of pseudonyms, which only the run's own list of units can tell."""
        wanted = set(pseudonyms)
        if not wanted:
            return {}
        found = {}
        for name in self._run.facts.samples_per_unit:
            pseudonym = self._run.key.unit(name)
            if pseudonym in wanted:
                found[pseudonym] = name
        missing = wanted - found.keys() - set(self._run.store.units)
        if missing:
            raise DamagedRunError(
                f"{len(missing)} units of a request that was accepted are no longer named by the "
                "run; open it with the units that it was trained on"
            )
        return found
