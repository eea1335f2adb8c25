"""Deleting units from a run: what `unlearn delete` does, as a function."""

from collections.abc import Sequence

from pipeline.config import RunConfig
from pipeline.deletion import DeletionRule
from pipeline.release import open_releases
from pipeline.requests import DeletionRequest, Receipt
from pipeline.run_facts import RunFacts, TensorShape
from pipeline.rundir import RunDirectory
from pipeline.trained_part import read_frozen
from storage.store import ApproximatorStore


def deletion_rule(config: RunConfig, num_samples: int) -> DeletionRule:
    """Return which weights and correction the run's conventions ask for."""
    # Leave-one-out propagation leaves own rows out by its nature.
    always_left_out = config.recursion.engine == "leave-one-out"
    return DeletionRule(
        config.retraining.denominator,
        "left-out" if always_left_out else config.recursion.own_rows,
        num_samples,
        min(config.training.batch_size, num_samples),
    )


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
        rule=deletion_rule(run.config, num_samples),
        unit_kind=run.config.data.unit,
        buffers={name: t.numpy() for name, t in read_frozen(run.trajectory_folder).items()},
        generation=store.generation,
    )


def delete(run: RunDirectory, units: Sequence[str | int]) -> Receipt:
    """Delete units: sum their rows, release the model without them, erase the rows.

    Args:
        run: A run whose rows are all written.
        units: Names of units; a sample's name is its position in the training set.

    Raises:
        UnitsRefusedError: If units are unknown or deleted already; nothing is changed.
    """
    store = ApproximatorStore.open(run.store_url, mode="r+")
    request = DeletionRequest(units=[str(unit) for unit in units])
    with open_releases(run.path, run_facts(run, store), store) as releases:
        return releases.delete(request)
