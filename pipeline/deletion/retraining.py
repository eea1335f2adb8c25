"""A retraining in the ledger: begun, under way, and committed as a release of kind `retrained`.

    begin -> train, precompute (run unlocked) -> new generation whole -> COMMIT -> rename -> erase

Its batch stays open while it trains. The old model serves, status and new requests go on, and requests
wait for the new generation. The store's change to the new generation is the point of no return: from
then on, whoever opens the run completes the batch, with the files that are there. Before it, giving the
retraining up leaves the run as it was.
"""

import stat

import numpy as np

from pipeline.deletion.context import DeletionContext
from pipeline.deletion.files import MODEL_FILE, model_digest_of, write_model, write_sum
from pipeline.deletion.gate import bucket
from pipeline.deletion.staging import OpenRun, Staged, write_certificate
from pipeline.errors import RequestError
from storage.ledger_records import RETRAINED, ReleaseRecord, Retraining

WAITS = (
    "a retraining is under way: this request is accepted and waits for its model; `unlearn retrain "
    "DIR` continues a retraining that was interrupted"
)


def begin(run: OpenRun, *, final: bool) -> Retraining:
    """Accept a retraining without everything that is deleted or waits; go on with one under way.

    Args:
        run: The opened run.
        final: Whether no approximators are to be computed.

    Raises:
        RequestError: Nothing was deleted since the model was trained, or the one under way is another.
    """
    known = run.ledger.retraining()
    if known is not None:
        if known.final != final:
            asked, begun = ("--final", "--recompute") if final else ("--recompute", "--final")
            raise RequestError(
                f"a retraining with {begun} is under way; repeat it so, or give it up with "
                f"--abandon before one with {asked}"
            )
        return known
    waiting, last = run.ledger.requests.waiting(), run.ledger.last_release()
    is_new = last is not None and last.kind == RETRAINED and last.generation == run.facts.generation
    if not waiting and (last is None or is_new):
        raise RequestError(
            "nothing was deleted since the model was trained, and no request waits: there is nothing "
            "to retrain without"
        )
    before = last.model_digest if last else model_digest_of(run.facts, [run.facts.published_P])
    return run.ledger.begin_retraining(waiting, run.facts.generation + 1, before, final=final)


def is_under_way(run: OpenRun) -> bool:
    """Whether a retraining holds the batch and its model is not there yet."""
    known = run.ledger.retraining()
    return known is not None and run.facts.generation < known.generation


def stage_retrained(run: OpenRun, retraining: Retraining) -> Staged:
    """Make the release of a retrained model: its parameters as they are, and no sum."""
    facts, last, release = run.facts, run.ledger.last_release(), retraining.release
    requests = run.ledger.requests.of_release(release)
    num_units = sum(request.num_units for request in requests)
    deleted_ever = run.ledger.num_suppressed() + num_units
    faults = run.dependencies.faults
    run.paths.staged(release).mkdir(mode=stat.S_IMODE(run.paths.releases.stat().st_mode))
    sum_digest = write_sum(run.paths.weighted_sum(release), np.zeros(facts.trained_P.size), faults)
    model_path = run.paths.staged(release) / MODEL_FILE
    model_digest = write_model(model_path, facts, [facts.published_P], faults)
    record = ReleaseRecord(
        release=release,
        generation=facts.generation,
        num_units=num_units,
        num_samples=sum(request.num_samples for request in requests),
        total_units=0,
        total_samples=0,
        kind=RETRAINED,
        epsilon=None,
        delta=None,
        sensitivity=None,
        sigma=0.0,
        # The model depends on no deleted unit, so it adds nothing to what earlier ones show of them.
        spent_mu=last.spent_mu if last else 0.0,
        model_before=retraining.model_before,
        model_digest=model_digest,
        certificate_digest="",
        sum_digest=sum_digest,
        chain_head=run.ledger.file.head(),
        created=run.dependencies.now().isoformat(timespec="seconds"),
        measured_error=_stated(facts, deleted_ever),
        deleted_ever=deleted_ever,
    )
    return Staged(write_certificate(run, record), 0.0)


def _stated(facts: DeletionContext, deleted_ever: int) -> dict[str, object]:
    return {
        "units_at_most": bucket(0, deleted_ever),
        "source": None,
        "how": RETRAINED,
        "error": None,
        "low": None,
        "high": None,
        "trials": 0,
        "note": "no error: trained without the deleted units",
        "limit": facts.gate.limit,
        "accepted": None,
    }
