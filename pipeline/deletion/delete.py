"""Deleting units: the entry point for the library, the command line, audits and services.

    receipt = delete("runs/digits", ["3", "17"])
    receipt = delete(run, DeletionRequest(["3"], request_id="R7", epsilon=1.0, delta=1e-5))

A deletion reads the run's configuration, the parameters as trained, the ledger and the rows of whom
it deletes: no data, no model factory, no checkpoint but the last, and no torch.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline.certificates.privacy import Budget
from pipeline.certificates.sensitivity import Declaration, read_declaration, refuse_undeclared
from pipeline.config import RunConfig
from pipeline.deletion.admission import Asked, admit
from pipeline.deletion.class_terms import ClassTerms, class_terms_of
from pipeline.deletion.context import DeletionContext, TensorShape
from pipeline.deletion.gate import ErrorGate
from pipeline.deletion.releases import Releases, open_releases
from pipeline.deletion.requests import DeletionRequest, Receipt
from pipeline.deletion.row_copies import RowCopies
from pipeline.deletion.suppression import refuse_lost
from pipeline.deletion.unopened import refuse_unopened
from pipeline.deletion.verification import opened_copy
from pipeline.deletion.weights import deletion_rule
from pipeline.errors import ConfigError, DamagedRunError, GivenUpError
from pipeline.run.checkpoints import (
    FROZEN,
    SCHEDULE,
    check,
    checkpoint_path,
    is_recorded,
    read_checkpoint,
    read_frozen,
    recorded_steps,
)
from pipeline.run.directory import RunDirectory
from pipeline.run.error_curve import ErrorCurve
from pipeline.run.sample_record import read_samples
from pipeline.run.settings import SETTINGS, deciding_settings
from pipeline.run.verdict import NOT_MEASURED
from storage.store import ApproximatorStore


def delete(
    run: RunDirectory | str | Path,
    request: DeletionRequest | Sequence[str | int],
    store: ApproximatorStore | None = None,
) -> Receipt:
    """Delete units: sum their approximators, release the model without them, erase the rows.

    Args:
        run: A run whose approximators are all stored, or its folder.
        request: What is asked for; a sequence of names asks for a release without noise.
        store: The run's store, opened for writing, if it is to be read in another way.

    Returns:
        The receipt; its `total_seconds` count everything from this call on.

    Raises:
        ConfigError: If approximators are missing, or the run is to declare sensitivities first.
        RequestError: If the request is none.
        UnitsRefusedError: If units are unknown or deleted already; nothing is changed.
        ErrorLimitError: If the measured error of so many units is above the limit; nothing is changed.
        ReleaseError: If it is refused for another reason; nothing is changed.

    >>> import tempfile
    >>> from pipeline import RunConfig, delete, precompute, train
    >>> folder = tempfile.mkdtemp()
    >>> config = RunConfig.from_values({
    ...     "data": {"source": "digits", "num_train": 40},
    ...     "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.1, "l2": 0.01},
    ... })
    >>> run = train(config, f"{folder}/run")
    >>> store = precompute(run)
    >>> receipt = delete(run, store.units[:2])
    >>> receipt.release, receipt.units_deleted
    (1, 2)
    >>> sorted(path.name for path in (run.path / "releases" / "1").iterdir())
    ['certificate.json', 'certificate.txt', 'model.safetensors']
    >>> delete(run, store.units[2:3]).release
    2
    """
    began = time.perf_counter()
    asked = request if isinstance(request, DeletionRequest) else DeletionRequest(request)
    opened = _ready(run)
    if asked.dry_run and not opened.ledger_path.exists():
        return _rehearsed(opened, asked)
    with opened_for_deletion(opened, store, asked) as releases:
        receipt = releases.delete(asked, began)
        copies = RowCopies(opened.path).held_outside(releases.deleted())
    seconds = receipt.total_seconds if receipt.repeated else time.perf_counter() - began
    return replace(receipt, copies=copies, total_seconds=seconds)


def _rehearsed(run: RunDirectory, asked: DeletionRequest) -> Receipt:
    """Answer a dry run where nothing was ever deleted; nothing is made, not even a ledger."""
    store = ApproximatorStore.open(run.store_url)
    refuse_lost(store)
    with opened_copy(run.path, deletion_context(run, store), store) as copy:
        return admit(copy, Asked.of(copy, asked)).receipt


def accept(run: RunDirectory | str | Path, request: DeletionRequest) -> Receipt:
    """Store a request durably without carrying it out; `release_waiting` does that.

    Raises:
        As `delete` does; nothing was stored.
    """
    with opened_for_deletion(run, request=request) as releases:
        return releases.accept(request)


def accept_for_retraining(run: RunDirectory | str | Path, request: DeletionRequest) -> Receipt:
    """Store a request durably whatever its error, for a retraining that is to begin now.

    Raises:
        As `delete` does, but for the error; nothing was stored.
    """
    opened = _ready(run)
    RowCopies(opened.path).check()
    with open_run(opened, ApproximatorStore.open(opened.store_url, mode="r+")) as releases:
        return releases.accept(request, for_retraining=True)


def cancel(run: RunDirectory | str | Path, request_id: str) -> None:
    """Take back a request that waits; cancelling it again changes nothing.

    Args:
        run: The run, or its folder.
        request_id: The client's id, or the pseudonym under which `unlearn requests` lists it.

    Raises:
        RequestError: If no request has this id.
        NotWaitingError: If its batch has begun; nothing was changed.
    """
    opened = _ready(run)
    with open_run(opened, ApproximatorStore.open(opened.store_url, mode="r+")) as releases:
        releases.cancel(request_id)


def release_waiting(run: RunDirectory | str | Path) -> list[Receipt]:
    """Carry out every accepted request: one release for each privacy asked for.

    Returns:
        The receipt of each request, in the order in which they were accepted; empty if none waits.

    Raises:
        WaitingError: If a release could not be made; its requests keep waiting.
    """
    with opened_for_deletion(run) as releases:
        return releases.release_waiting()


@contextmanager
def opened_for_deletion(
    run: RunDirectory | str | Path,
    store: ApproximatorStore | None = None,
    request: DeletionRequest | None = None,
) -> Iterator[Releases]:
    """Open a run's releases after checking that deletions can be made from it.

    Args:
        run: The run, or its folder.
        store: Its store, opened for writing, if it is to be read in another way.
        request: What it is opened for, if that is known: refused for its error before any file is
            touched, the ledger and its lock included.

    Raises:
        ConfigError: If approximators are missing, or the run is to declare sensitivities first.
        ErrorLimitError: If the measured error of the request is above the limit.
    """
    opened = _ready(run)
    RowCopies(opened.path).check()
    store = store or ApproximatorStore.open(opened.store_url, mode="r+")
    _refuse_incomplete(opened, store)
    context = deletion_context(opened, store)
    if request is not None:
        refuse_unopened(opened.path, context, store, request)
    with open_run(opened, store, context) as releases:
        yield releases


def _refuse_incomplete(run: RunDirectory, store: ApproximatorStore) -> None:
    # While a repair is under way the old generation serves, which was whole before it began.
    waiting = store.num_blocks - len(store.finished_blocks())
    if not waiting or store.building is not None:
        _refuse_without_terms(run, store)
        return
    if store.generation:
        raise GivenUpError(
            f"the approximators of {run.path} were given up with `unlearn retrain --final`; compute "
            "those of the retrained model with `unlearn precompute`, or retrain again with `unlearn "
            "delete ... --fallback retrain`"
        )
    raise ConfigError(
        f"{waiting} of {store.num_blocks} blocks of {run.path} are not computed yet; run "
        "`unlearn precompute` first"
    )


def _refuse_without_terms(run: RunDirectory, store: ApproximatorStore) -> None:
    if run.config.recursion.class_terms and class_terms_of(run, store.generation) is None:
        raise ConfigError(
            f"the class terms of {run.path} are not computed yet; run `unlearn precompute` first"
        )


def _ready(run: RunDirectory | str | Path) -> RunDirectory:
    """Open a run, and refuse one that deletions cannot be made from."""
    opened = run if isinstance(run, RunDirectory) else RunDirectory.open(run)
    opened.refuse_pruned()
    refuse_without_rows(opened)
    refuse_undeclared(opened)
    return opened


def refuse_without_rows(run: RunDirectory) -> None:
    """Refuse a run of which no approximator was ever stored.

    Raises:
        TrajectoryError: If it is not even trained.
        ConfigError: If there is no store.
    """
    run.digest()
    if not run.manifest_exists() and run.config.storage.url is None:
        raise ConfigError(f"{run.path} has no approximators yet; run `unlearn precompute` first")


@contextmanager
def open_run(
    run: RunDirectory, store: ApproximatorStore, context: DeletionContext | None = None
) -> Iterator[Releases]:
    """Open a run's releases for a command; what a crash left half done is finished first."""
    context, copies = context or deletion_context(run, store), (RowCopies(run.path),)
    releases = open_releases(run.path, context, store, copies)
    if store.generation != context.generation:
        # A retraining, which leaves the run unlocked, was committed before this process had the lock.
        releases.close()
        releases = open_releases(run.path, deletion_context(run, store), store, copies)
    with releases:
        yield releases


def deletion_context(run: RunDirectory, store: ApproximatorStore) -> DeletionContext:
    """Return what a deletion must know, from the run's files alone: no data, no model factory.

    Raises:
        TrajectoryError: If a file that is read does not agree with the trajectory's digest.
        ConfigError: If the store is another run's.
    """
    run.refuse_pruned()
    run.refuse_store_of_another(store.store_id)
    training, generation = run.trajectory_folder, store.generation
    folder = run.trajectory_folder_of(generation)
    last = recorded_steps(folder)[-1]
    always = [name for name in (FROZEN, SETTINGS) if is_recorded(training, name)]
    end = checkpoint_path(folder, last).name
    if generation:
        check(folder, end, SCHEDULE)
        digest = check(training, *(always or [SCHEDULE]))
    else:
        digest = check(training, end, *always)
    trained = read_checkpoint(folder, last)
    # Erased units stay counted in n until a repair: their samples were trained on.
    num_samples = _fine_tuned_on(run, generation) if generation else store.num_samples
    counts = store.samples_per_unit()
    return DeletionContext(
        run_digest=digest,
        trained_P=trained.parameters_P,
        tensors=tuple(map(TensorShape, trained.names, trained.shapes)),
        samples_per_unit=counts,
        rule=deletion_rule(run.config, num_samples),
        unit_kind=run.config.data.unit,
        buffers=read_frozen(training),
        generation=generation,
        # Sensitivities were declared for the trained model; a repaired one has none.
        declaration=Declaration() if generation else read_declaration(run),
        budget=_budget(run.config),
        settings=deciding_settings(run.config),
        gate=error_gate(run, generation),
        terms=_intact_terms(run, generation),
        row_of=counts.row_of,
        held_out=lambda: _held_out(run),
    )


def _intact_terms(run: RunDirectory, generation: int) -> ClassTerms | None:
    """Return the class terms; None where they are damaged too: a restore and a retraining need none."""
    try:
        return class_terms_of(run, generation)
    except DamagedRunError:
        return None


def error_gate(run: RunDirectory, generation: int) -> ErrorGate:
    """Return the limit on a run's error, and what is known of the error of a generation.

    Raises:
        ConfigError: If what was measured is damaged, or of another training.
    """
    config = run.config.evaluation
    curve = None if generation else ErrorCurve.read(run)
    made = "retrained" if run.retrained_generation() == generation else "repaired"
    unmeasured = (
        f"{NOT_MEASURED} for the {made} model: only the first was compared with retraining"
        if generation
        else f"{NOT_MEASURED}; `unlearn measure DIR` compares trial deletions with retraining"
    )
    return ErrorGate(
        curve, config.max_error, config.require_measured, unmeasured, run.config.data.unit
    )


def _held_out(run: RunDirectory) -> frozenset[str]:
    """Return the units held out for testing; which users are is known to the data alone."""
    record = read_samples(run.trajectory_folder)
    if record is None or run.config.data.unit != "sample":
        return frozenset()
    return frozenset(map(str, record.held_out.tolist()))


def _fine_tuned_on(run: RunDirectory, generation: int) -> int:
    """Return the samples that a repair trained on, or what they weigh where weights differ."""
    # Arrow takes a while to import, and only a repaired run is asked whom it was fine-tuned on.
    from pipeline.run.trajectory import scheduled_samples

    positions = scheduled_samples(run.trajectory_folder_of(generation))
    record = read_samples(run.trajectory_folder)
    if record is None or record.masses is None:
        return len(positions)
    return int(record.masses[positions].sum())


def _budget(config: RunConfig) -> Budget | None:
    budget = config.certificate.budget
    if budget.epsilon is None and budget.delta is None:
        return None
    if budget.epsilon is None or budget.delta is None:
        raise ConfigError("certificate.budget needs both epsilon and delta, or neither")
    return Budget(budget.epsilon, budget.delta)
