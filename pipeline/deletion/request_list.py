"""The requests of a run as someone who answers for them asks: received, due, state, release.

Read from the ledger's file without its lock and without its key, so it can be asked at any time. A
ledger holds no client's text: a request is shown by the pseudonym of its id.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.deletion.delete import error_gate
from pipeline.deletion.gate import accepted_error
from pipeline.errors import ErrorLimitError, RequestError
from pipeline.run.directory import RunDirectory
from storage.ledger_records import RequestRecord
from storage.ledger_summary import list_requests, summarize_ledger

State = Literal["waiting", "in_progress", "done", "cancelled", "needs_decision"]
STATES: tuple[str, ...] = get_args(State)
_STATES: dict[str, State] = {
    "accepted": "waiting",
    "batched": "in_progress",
    "committed": "in_progress",
    "done": "done",
    "cancelled": "cancelled",
}


@dataclass(frozen=True)
class RequestStatus:
    """What became of a request.

    Attributes:
        request: Pseudonym of the client's id.
        received: When it was accepted, UTC, ISO 8601; None where an earlier version did not say.
        due: The day by which it is to be carried out, ISO 8601; None for no deadline.
        state: `waiting` until a batch holds it, `in_progress` until the batch is erased, `done`,
            `cancelled`; or `needs_decision`: it waits, and the limit on the error stands against it.
        release: k of releases/<k>/, once it is batched.
        units: How many units it deletes.
        epsilon: Privacy of the release asked for; None asks for no noise.
        delta: Likewise.
        reason: Why a decision is needed.
    """

    request: str
    received: str | None
    due: str | None
    state: State
    release: int | None
    units: int
    epsilon: float | None
    delta: float | None
    reason: str | None = None


def requests_of(run: RunDirectory, state: str | None = None) -> list[RequestStatus]:
    """Return the requests of a run, in the order in which they were accepted.

    Args:
        run: The run; without a ledger it has no requests.
        state: One of `STATES`; None returns all.

    Raises:
        RequestError: There is no such state.
        LedgerError: The ledger is damaged.
    """
    if state is not None and state not in STATES:
        raise RequestError(f"expected a state among {', '.join(STATES)}, found {state!r:.80}")
    listed = list_requests(run.ledger_path)
    reasons = dict(_refused(run, [each.record for each in listed]))
    found = [
        RequestStatus(
            request=each.record.request_id,
            received=each.received,
            due=each.due,
            state="needs_decision" if reason else _STATES[each.record.state],
            release=each.record.release,
            units=each.record.num_units,
            epsilon=each.record.epsilon,
            delta=each.record.delta,
            reason=reason,
        )
        for each in listed
        for reason in (reasons.get(each.record.request),)
    ]
    return [each for each in found if state in (None, each.state)]


def _refused(run: RunDirectory, records: Sequence[RequestRecord]) -> Iterator[tuple[int, str]]:
    """Find the waiting requests that the gate refuses, batched as `process_waiting` would."""
    groups: dict[tuple[float | None, float | None], list[RequestRecord]] = {}
    for record in records:
        if record.state == "accepted":
            groups.setdefault((record.epsilon, record.delta), []).append(record)
    summary = summarize_ledger(run.ledger_path) if groups else None
    store = None if summary is None or run.is_pruned() else run.stored()
    # What waits for a retrained model is not held to the error of the present one.
    if summary is None or store is None or summary.retraining is not None:
        return
    gate, last, units, samples = error_gate(run, store.generation), summary.last, 0, 0
    if last is not None and last.generation == store.generation:
        units, samples = last.total_units, last.total_samples
    for group in groups.values():
        with_group = units + sum(each.num_units for each in group)
        with_samples = samples + sum(each.num_samples for each in group)
        try:
            gate.decide(with_group, with_samples, accepted_error(group, last, store.generation))
        except ErrorLimitError as error:
            yield from ((each.request, str(error)) for each in group)
        else:
            units, samples = with_group, with_samples
