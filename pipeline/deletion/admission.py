"""Admission: which requests are accepted, and why others are not.

A request is admitted when its units are known and not deleted, and when samples, deletion capacity,
the limit on the error and the privacy budget hold it together with every request that waits. A refusal
changes nothing.
"""

import uuid
from dataclasses import dataclass, replace

from pipeline.certificates.privacy import check_budget, plan_release
from pipeline.deletion.gate import Decision
from pipeline.deletion.requests import DeletionRequest, Receipt
from pipeline.deletion.staging import OpenRun, deleted_so_far
from pipeline.errors import (
    PrunedError,
    RequestCancelledError,
    RequestConflictError,
    RetrainRequiredError,
    refuse_units,
)
from storage.ledger_records import NewRequest, RequestRecord
from storage.ledger_requests import unit_set_digest

NO_NOISE_WARNING = (
    "release without noise: anyone who holds this model and an earlier one can compute the "
    "approximators of the units deleted in between; name epsilon and delta to prevent it"
)


@dataclass(frozen=True)
class Asked:
    """A request with its id, the names it holds once each, and their pseudonyms."""

    request: DeletionRequest
    request_id: str
    pseudonym_by_name: dict[str, str]

    @classmethod
    def of(cls, run: OpenRun, request: DeletionRequest) -> "Asked":
        """Return the request as asked of a run; an id is drawn where none was given."""
        names = request.names()
        pseudonyms = dict(zip(names, run.key.units(names), strict=True))
        return cls(request, request.request_id or uuid.uuid4().hex, pseudonyms)

    @property
    def set_digest(self) -> str:
        """Digest of the set of units asked for, valid or not."""
        return unit_set_digest(self.pseudonym_by_name.values())


@dataclass(frozen=True)
class Admission:
    """What became of a request.

    Attributes:
        receipt: The answer so far.
        accepted: The request in the ledger; None after a dry run or where no unit is left.
        valid: Names of the units to delete, by pseudonym.
    """

    receipt: Receipt
    accepted: RequestRecord | None
    valid: dict[str, str]


def find_known(run: OpenRun, asked: Asked) -> RequestRecord | None:
    """Return the request that has this id already.

    Raises:
        RequestConflictError: It is another request.
        RequestCancelledError: It was cancelled.
    """
    known = run.ledger.requests.find(run.key.request(asked.request_id))
    if known is None:
        return None
    same = (asked.set_digest, asked.request.epsilon, asked.request.delta)
    if same != (known.set_digest, known.epsilon, known.delta):
        raise RequestConflictError(
            f"request id {asked.request_id!r} was used for another set of units, epsilon or delta; "
            "repeat that request as it was, or choose another id"
        )
    if known.state == "cancelled":
        raise RequestCancelledError(
            f"request {asked.request_id!r:.80} was cancelled and deletes nothing; to delete "
            "these units, ask again under another id"
        )
    return known


def first_receipt(run: OpenRun, known: RequestRecord, asked: Asked) -> Receipt:
    """Return a stored receipt with the names that only the repeated request can tell."""
    deleted = set(run.ledger.requests.units_of(known.request))
    others = {n: unit for n, unit in asked.pseudonym_by_name.items() if unit not in deleted}
    # The store no longer names whom it has erased; the ledger knows them by pseudonym.
    gone = run.ledger.requests.named_among(list(others.values()))
    trained = {n for n, unit in others.items() if unit in gone or n in run.facts.samples_per_unit}
    return replace(
        Receipt.from_json(known.receipt or ""),
        request_id=asked.request_id,
        already=tuple(name for name in others if name in trained),
        unknown=tuple(name for name in others if name not in trained),
        repeated=True,
    )


def admit(run: OpenRun, asked: Asked, *, for_retraining: bool = False) -> Admission:
    """Check a new request and accept it, unless it is a dry run or deletes no unit.

    Args:
        run: The opened run.
        asked: The request.
        for_retraining: Accept it whatever the error: it is to be carried out by a retraining.

    Raises:
        ReleaseError: It is refused; nothing was stored.
    """
    request = asked.request
    valid, unknown, already = _sort_out(run, asked)
    if not request.skip_invalid:
        refuse_units(unknown, already, run.facts.held_out() if unknown else ())
    receipt = Receipt(
        request_id=asked.request_id,
        release=None,
        units_deleted=len(valid),
        already=tuple(already),
        unknown=tuple(unknown),
        epsilon=request.epsilon,
        delta=request.delta,
        warnings=(NO_NOISE_WARNING,) if valid and request.epsilon is None else (),
        dry_run=request.dry_run,
    )
    if valid:
        _check_room(run, request, valid)
        if not for_retraining:
            decision = _check_error(run, request, valid)
            receipt = replace(receipt, warnings=(*receipt.warnings, *decision.warnings))
    if request.dry_run or not valid:
        return Admission(receipt, None, valid)
    new = NewRequest(
        run.key.request(asked.request_id),
        asked.set_digest,
        tuple(valid),
        _num_samples(run, valid),
        request.epsilon,
        request.delta,
        request.accept_error,
        received=run.dependencies.now().isoformat(timespec="seconds"),
        due=request.due,
    )
    return Admission(receipt, run.ledger.requests.accept(new), valid)


def refuse_error(run: OpenRun, asked: Asked) -> None:
    """Refuse a request whose measured error is too large, before anything else is done for it.

    Raises:
        ErrorLimitError: It is above the limit.
    """
    if not run.facts.gate.can_refuse(run.store.num_units, run.facts.rule.num_samples):
        return
    valid, _, _ = _sort_out(run, asked)
    if valid:
        _check_error(run, asked.request, valid)


def _sort_out(run: OpenRun, asked: Asked) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the units to delete (name by pseudonym), the unknown and the deleted ones."""
    pseudonyms = list(asked.pseudonym_by_name.values())
    gone = run.ledger.requests.named_among(pseudonyms)
    valid, unknown, already = {}, [], []
    for name, pseudonym in asked.pseudonym_by_name.items():
        if pseudonym in gone:
            already.append(name)
        elif name in run.facts.samples_per_unit:
            valid[pseudonym] = name
        else:
            unknown.append(name)
    return valid, unknown, already


def _check_room(run: OpenRun, request: DeletionRequest, valid: dict[str, str]) -> None:
    """Refuse what samples, capacity or budget do not hold, requests that wait included."""
    facts, requests, so_far = run.facts, run.ledger.requests, deleted_so_far(run)
    if run.ledger.is_pruned():
        raise PrunedError(
            "the sums that further deletions need were pruned; retrain without these units"
        )
    waiting_units, waiting_samples = requests.waiting_totals()
    retraining = run.ledger.retraining()
    in_batch = requests.of_release(retraining.release) if retraining else []
    num_samples = so_far.samples + waiting_samples + _num_samples(run, valid)
    num_samples += sum(each.num_samples for each in in_batch)
    if num_samples >= facts.rule.num_samples:
        raise RetrainRequiredError(
            "no training sample would remain (or none that weighs anything); at least one must: "
            "discard the model, or retrain on other data"
        )
    num_units = so_far.units + waiting_units + len(valid)
    # What waits for a retrained model is released from it.
    generation = retraining.generation if retraining else facts.generation
    declared = facts.declaration.about(generation)
    plan_release(declared, num_units, request.epsilon, request.delta)
    planned = {*requests.waiting_privacy(), (request.epsilon, request.delta)}
    check_budget(run.ledger.last_release(), sorted(planned, key=str), facts.budget)


def _check_error(run: OpenRun, request: DeletionRequest, valid: dict[str, str]) -> Decision:
    """Ask the gate about everything deleted of this generation, what waits and this request."""
    so_far, (units, samples) = deleted_so_far(run), run.ledger.requests.waiting_totals()
    # What waits for a retrained model is deleted from that one, of which nothing was measured.
    gate = run.facts.gate.retrained() if run.ledger.retraining() else run.facts.gate
    return gate.decide(
        so_far.units + units + len(valid),
        so_far.samples + samples + _num_samples(run, valid),
        request.accept_error,
    )


def _num_samples(run: OpenRun, valid: dict[str, str]) -> int:
    return sum(run.facts.samples_per_unit[name] for name in valid.values())
