"""Releases of a run: each request is accepted once, applied once and answered with a receipt.

    with open_releases(run_dir, facts, store) as releases:
        receipt = releases.delete(DeletionRequest(units=["3", "17"]))

Opening takes the run's lock, recovers what a crash left half done, and erases again what came back
with a restored store. One process has a run open at a time.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from pipeline.deletion.admission import Asked, admit, find_known, first_receipt, refuse_error
from pipeline.deletion.backup import back_up
from pipeline.deletion.batch import recover, run_batch
from pipeline.deletion.context import DeletionContext, Erasable, RowStore
from pipeline.deletion.files import ReleasePaths
from pipeline.deletion.receipts import find_request, sign_receipt
from pipeline.deletion.requests import DeletionRequest, Receipt
from pipeline.deletion.retraining import WAITS, begin, is_under_way
from pipeline.deletion.staging import Dependencies, OpenRun, last_state
from pipeline.deletion.suppression import (
    names_of,
    refuse_lost,
    refuse_older_ledger,
    replay_suppression,
)
from pipeline.deletion.verification import Inconsistency, audit_releases
from pipeline.deletion.weights import DeletionState
from pipeline.errors import (
    DamagedRunError,
    ErrorLimitError,
    NotWaitingError,
    ReleaseError,
    WaitingError,
)
from pipeline.run.settings import canonical_text, read_text, refuse_changed
from storage.errors import StorageError
from storage.ledger import Ledger
from storage.ledger_records import ReleaseRecord, RequestRecord, Retraining
from storage.pseudonym import load_key
from storage.run_lock import RunLock
from storage.signing import SigningKey


def open_releases(
    run_dir: Path,
    facts: DeletionContext,
    store: RowStore,
    also_erase: Sequence[Erasable] = (),
    dependencies: Dependencies | None = None,
) -> "Releases":
    """Open a run for deletions: lock it, check its ledger, recover an unfinished batch.

    Args:
        run_dir: The run's folder.
        facts: What a deletion must know of the run.
        store: The reader of its rows, opened for writing.
        also_erase: Whatever else inside the run may hold rows: saved states, exports.
        dependencies: Clock, noise and crash points; tests put their own.

    Raises:
        WriterConflictError: Another process has the run open.
        LedgerError: The ledger is damaged, or of another run, key or declaration.
        DamagedRunError: A committed release cannot be carried forward.
    """
    dependencies = dependencies or Dependencies()
    paths = ReleasePaths(run_dir)
    key = load_key(run_dir)
    lock = RunLock(paths.lock)
    try:
        if not paths.ledger.exists():
            refuse_lost(store)
        paths.create()
        ledger = Ledger(
            paths.ledger, facts.run_digest, key.check_value(), dependencies.faults, key.seal
        )
    except BaseException:
        lock.close()
        raise
    run = OpenRun(facts, store, tuple(also_erase), paths, ledger, key, dependencies)
    releases = Releases(run, lock)
    try:
        # Before anything is swept: a ledger that is too old would not know which sum to keep.
        refuse_older_ledger(run)
        _bind(run)
        ledger.declare(facts.generation, facts.declared_digest())
        releases.recover()
        replay_suppression(run)
    except BaseException:
        releases.close()
        raise
    return releases


def _bind(run: OpenRun) -> None:
    """Bind the ledger to the settings that decide releases, or refuse settings that have changed."""
    settings = run.facts.settings
    if settings is None:
        return
    bound = run.ledger.settings()
    if bound is None:
        run.ledger.bind(canonical_text(settings))
        return
    known = read_text(bound, str(run.paths.ledger))
    refuse_changed(run.paths.root / "config.yaml", known, settings)


class Releases(AbstractContextManager["Releases"]):
    """The deletions of one run, which this process holds alone until `close`."""

    def __init__(self, run: OpenRun, lock: RunLock) -> None:
        self._run = run
        self._lock = lock
        self._completed: list[int] = []

    def close(self) -> None:
        """Close the ledger and release the lock."""
        self._run.ledger.close()
        self._lock.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def completed(self) -> tuple[int, ...]:
        """Releases that a crash had interrupted and that were completed since the opening."""
        return tuple(self._completed)

    def recover(self) -> None:
        """Complete or roll back what a crash left half done."""
        release = recover(self._run)
        if release is not None:
            self._completed.append(release)

    def state(self) -> DeletionState:
        """Return the noise-free sum of what was deleted of this generation; it is never published."""
        return last_state(self._run)

    def delete(self, request: DeletionRequest, began: float | None = None) -> Receipt:
        """Delete units and release the model without them.

        Requests that an earlier crash left waiting are carried out first.

        Args:
            request: What is asked for.
            began: When it was asked, by `time.perf_counter`; None takes now.

        Raises:
            UnitsRefusedError: Units are unknown or deleted already, and are not to be skipped.
            RequestConflictError: The request id stands for another set of units or privacy.
            RequestCancelledError: The request of this id was cancelled.
            RetrainRequiredError: The deletion capacity does not hold these units.
            ErrorLimitError: The measured error of so many units is above the limit.
            BudgetSpentError: The privacy budget does not hold this release.
            StorageError: Rows cannot be read; the request is withdrawn.
        """
        began = time.perf_counter() if began is None else began
        self.recover()
        asked = Asked.of(self._run, request)
        known = find_known(self._run, asked)
        if known is not None:
            return self._answer_again(known, asked)
        refuse_error(self._run, asked)
        if not request.dry_run and is_under_way(self._run):
            return self._waiting(admit(self._run, asked).receipt)
        interrupted = [] if request.dry_run else self._interrupted()
        warnings = [] if request.dry_run else self.process_waiting()
        completed = self._completed_as(asked, interrupted)
        if completed is not None:
            return completed
        admission = admit(self._run, asked)
        receipt = replace(admission.receipt, warnings=(*warnings, *admission.receipt.warnings))
        if admission.accepted is None:
            return receipt
        done = self._carry_out(admission.accepted, admission.valid, began)
        return replace(
            receipt,
            release=done.release,
            sum_seconds=done.sum_seconds,
            total_seconds=time.perf_counter() - began,
        )

    def _waiting(self, receipt: Receipt) -> Receipt:
        """Return the receipt of a request that waits for the model of a retraining."""
        if not receipt.units_deleted:
            return receipt
        return replace(receipt, warnings=(*receipt.warnings, WAITS))

    def begin_retraining(self, *, final: bool) -> tuple[Retraining, dict[str, str]]:
        """Begin a retraining, or go on with it; return it and its batch's units, name by pseudonym.

        Raises:
            RequestError: There is nothing to retrain without.
        """
        retraining = begin(self._run, final=final)
        units = self._run.ledger.units_of(retraining.release)
        return retraining, names_of(self._run, units)

    def num_waiting(self) -> int:
        """Return how many accepted requests are not carried out."""
        return len(self._run.ledger.requests.waiting())

    def last_release(self) -> ReleaseRecord | None:
        """Return the newest committed release, or None."""
        return self._run.ledger.last_release()

    def retraining(self) -> Retraining | None:
        """Return the retraining that is under way, or None."""
        return self._run.ledger.retraining()

    def abandon_retraining(self) -> None:
        """Take back the batch of a retraining; its requests wait again."""
        retraining = self._run.ledger.retraining()
        if retraining is not None:
            self._run.ledger.roll_back(retraining.release)

    def accept(self, request: DeletionRequest, *, for_retraining: bool = False) -> Receipt:
        """Store a request durably without carrying it out; `process_waiting` does that.

        Several accepted requests that ask for the same privacy become one release, which spends
        privacy once.

        Args:
            request: What is asked for.
            for_retraining: Accept it whatever its error, for the retraining that follows.

        Raises:
            ReleaseError: As `delete` does; nothing was stored.
        """
        self.recover()
        asked = Asked.of(self._run, request)
        known = find_known(self._run, asked)
        if known is not None:
            return Receipt(asked.request_id, known.release, known.num_units, repeated=True)
        return admit(self._run, asked, for_retraining=for_retraining).receipt

    def cancel(self, request_id: str) -> RequestRecord:
        """Take back a request that waits; its units may be asked for again under another id.

        Args:
            request_id: The client's id, or the pseudonym under which the request is listed.

        Returns:
            The request, cancelled now or before.

        Raises:
            RequestError: No request has this id.
            NotWaitingError: Its batch has begun; nothing was changed.
        """
        self.recover()
        known = self.find(request_id)
        if known.state == "cancelled":
            return known
        if known.state != "accepted":
            became = "was carried out as" if known.state == "done" else "is being carried out as"
            raise NotWaitingError(
                f"request {request_id!r:.80} {became} release {known.release}; it cannot be cancelled"
            )
        self._run.ledger.requests.cancel(known.request)
        return self._run.ledger.requests.get(known.request)

    def find(self, request_id: str) -> RequestRecord:
        """Return a request by its client's id, or by the pseudonym under which it is listed.

        Raises:
            RequestError: No request has this id.
        """
        return find_request(self._run.ledger, self._run.key, request_id)

    def receipt(self, request_id: str, signing_key: SigningKey) -> str:
        """Return the signed receipt of a request that is done, as JSON; see `receipts`.

        Raises:
            RequestError: No request has this id.
            ReceiptError: The request is not done.
            DamagedRunError: The certificate of its release is missing or changed.
        """
        return sign_receipt(
            self._run.ledger, self._run.key, self._run.paths, request_id, signing_key
        )

    def process_waiting(self) -> list[str]:
        """Carry out the requests that wait, one release for each privacy asked for.

        Returns:
            One line for each batch that could not be carried out; its requests keep waiting.
        """
        return [
            f"{num} earlier requests keep waiting: {error}"
            for num, error in self._process_waiting()
        ]

    def _process_waiting(self) -> list[tuple[int, Exception]]:
        """Carry out what waits; return how many requests could not be carried out, and why."""
        if is_under_way(self._run):
            return []
        run = self._run
        failures: list[tuple[int, Exception]] = []
        groups: dict[tuple[float | None, float | None], list[RequestRecord]] = {}
        for request in run.ledger.requests.waiting():
            groups.setdefault((request.epsilon, request.delta), []).append(request)
        for requests in groups.values():
            units = [u for r in requests for u in run.ledger.requests.units_of(r.request)]
            try:
                run_batch(run, requests, names_of(run, units))
            except (StorageError, ReleaseError) as error:
                failures.append((len(requests), error))
        return failures

    def release_waiting(self) -> list[Receipt]:
        """Carry out the requests that wait, one release for each privacy asked for.

        Returns:
            The receipt of each, in the order of acceptance. The ledger keeps no client's text, so
            their `request_id` is empty.

        Raises:
            WaitingError: A release could not be made; its requests keep waiting.
        """
        self.recover()
        waiting = self._run.ledger.requests.waiting()
        if waiting and is_under_way(self._run):
            raise WaitingError(
                f"a retraining is under way, and {len(waiting)} requests wait for its model; repeat "
                "`unlearn retrain` if it was interrupted"
            )
        failures = self.process_waiting()
        if failures:
            raise WaitingError("; ".join(failures))
        done = [self._run.ledger.requests.get(request.request) for request in waiting]
        return [Receipt.from_json(request.receipt or "") for request in done]

    def deleted(self) -> set[str]:
        """Return the pseudonyms of all deleted units."""
        return set(self._run.ledger.suppressed())

    def verify(self) -> list[Inconsistency]:
        """Check the chain, the releases and the store against each other; list all damage."""
        return audit_releases(self._run)

    def backup(self, path: Path) -> None:
        """Write the ledger and the sum it vouches for to a new folder, mode 0700."""
        back_up(self._run, path)

    def settle(self) -> None:
        """Carry out what waits, before a step that a waiting request could not survive.

        Raises:
            WaitingError: A request still waits; the message says why.
        """
        self.recover()
        if is_under_way(self._run):
            raise WaitingError(
                "a retraining is under way; finish it by repeating `unlearn retrain`, or give it up "
                "with `unlearn retrain DIR --abandon`. Nothing was changed"
            )
        failures = self.process_waiting()
        if failures:
            raise WaitingError(f"{'; '.join(failures)}. Nothing was changed")

    def prune(self) -> None:
        """Remove what the operator still holds in internal/; ends deletions from this run.

        Raises:
            WaitingError: A request still waits, and could never be carried out afterwards.
        """
        self.settle()
        self._run.ledger.mark_pruned()
        self._run.paths.sweep(kept_release=None)

    def _interrupted(self) -> list[RequestRecord]:
        """Return the requests that a crash cut short: completed since, or waiting still."""
        requests = self._run.ledger.requests
        unanswered = self._run.ledger.unanswered()
        completed = [each for release in unanswered for each in requests.of_release(release)]
        return completed + requests.waiting()

    def _completed_as(self, asked: Asked, interrupted: Sequence[RequestRecord]) -> Receipt | None:
        """Return the receipt of an interrupted request that this one repeats without an id."""
        request = asked.request
        for each in interrupted:
            known = self._run.ledger.requests.get(each.request)
            same = (known.set_digest, known.epsilon, known.delta)
            if known.receipt is None or request.request_id is not None:
                continue
            if same == (asked.set_digest, request.epsilon, request.delta):
                note = (
                    f"an interrupted deletion of these units was completed as release "
                    f"{known.release}; nothing else was deleted"
                )
                if known.release in self._run.ledger.unanswered():
                    self._run.ledger.mark_answered(known.release)
                return replace(first_receipt(self._run, known, asked), warnings=(note,))
        return None

    def _answer_again(self, known: RequestRecord, asked: Asked) -> Receipt:
        """Return the first receipt of a request that is repeated."""
        failures: list[tuple[int, Exception]] = []
        if known.receipt is None:
            if is_under_way(self._run):
                return self._waiting(
                    Receipt(asked.request_id, None, known.num_units, repeated=True)
                )
            failures = self._process_waiting()
            known = self._run.ledger.requests.get(known.request)
        if known.receipt is None:
            why = (
                f"request {asked.request_id!r} is accepted and cannot be carried out yet: "
                f"{'; '.join(str(error) for _, error in failures)}"
            )
            above = [error for _, error in failures if isinstance(error, ErrorLimitError)]
            raise ErrorLimitError(why) if above else DamagedRunError(why)
        return first_receipt(self._run, known, asked)

    def _carry_out(
        self, accepted: RequestRecord, names: Mapping[str, str], began: float
    ) -> Receipt:
        ledger = self._run.ledger
        try:
            run_batch(self._run, [accepted], names, began)
        except Exception:
            waits = ledger.requests.get(accepted.request).state == "accepted"
            if ledger.unfinished() is None and waits:
                ledger.requests.withdraw(accepted.request)
            raise
        return Receipt.from_json(ledger.requests.get(accepted.request).receipt or "")
