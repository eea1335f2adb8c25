"""Deleting units from a run: what `unlearn delete` does, as a function."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.certificates.declaring import read_declaration, refuse_undeclared
from pipeline.certificates.privacy import Budget
from pipeline.certificates.sensitivity import Declaration
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.releases.leftovers import Leftovers
from pipeline.releases.releases import Releases, open_releases
from pipeline.releases.requests import DeletionRequest, Receipt
from pipeline.releases.run_facts import RunFacts, TensorShape
from pipeline.rundir import RunDirectory
from pipeline.trained_part import read_frozen
from storage.store import ApproximatorStore


def run_facts(run: RunDirectory, store: ApproximatorStore) -> RunFacts:
    """Return what a deletion must know, from the run's files alone: no data, no model factory."""
    trajectory = run.trajectory(store.generation)
    layout = trajectory.layout()
    # Erased units stay counted in n until a repair: their samples were trained on.
    num_samples = trajectory.schedule.num_samples if store.generation else store.num_samples
    return RunFacts(
        run_digest=run.trajectory().digest,
        trained_P=trajectory.trained().numpy(),
        tensors=tuple(
            TensorShape(name, shape)
            for name, shape in zip(layout.names, layout.shapes, strict=True)
        ),
        samples_per_unit=store.samples_per_unit(),
        rule=run.config.deletion_rule(num_samples),
        unit_kind=run.config.data.unit,
        buffers={name: t.numpy() for name, t in read_frozen(run.trajectory_folder).items()},
        generation=store.generation,
        # Sensitivities were declared for the trained model; a repaired one has none.
        declaration=Declaration() if store.generation else read_declaration(run),
        budget=_budget(run.config),
    )


def _budget(config: RunConfig) -> Budget | None:
    budget = config.certificate.budget
    if budget.epsilon is None and budget.delta is None:
        return None
    if budget.epsilon is None or budget.delta is None:
        raise ConfigError("certificate.budget needs both epsilon and delta, or neither")
    return Budget(budget.epsilon, budget.delta)


@contextmanager
def opened(run: RunDirectory, store: ApproximatorStore) -> Iterator[Releases]:
    """Open a run's releases for a command; what a crash left half done is finished first."""
    leftovers = Leftovers(run.path)
    with open_releases(run.path, run_facts(run, store), store, (leftovers,)) as releases:
        yield releases


def delete(run: RunDirectory, units: Sequence[str | int]) -> Receipt:
    """Delete units: sum their rows, release the model without them, erase the rows.

    Args:
        run: A run whose rows are all written.
        units: Names of units; a sample's name is its position in the training set.

    Raises:
        ConfigError: If the run is to declare sensitivities and has not done so.
        UnitsRefusedError: If units are unknown or deleted already; nothing is changed.
    """
    refuse_undeclared(run)
    store = ApproximatorStore.open(run.store_url, mode="r+")
    request = DeletionRequest(units=[str(unit) for unit in units])
    with opened(run, store) as releases:
        return releases.delete(request)
