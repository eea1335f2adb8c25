"""The units of a run: the samples that each owns, and its state.

A run holds no name of a deleted user. A deleted sample's name is its number, which the record of
samples knows.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from pipeline.errors import DataError
from pipeline.run.checkpoints import INPUTS
from pipeline.run.directory import RunDirectory
from pipeline.run.sample_record import SampleRecord, read_samples
from storage.store import ApproximatorStore

if TYPE_CHECKING:
    from pipeline.data.dataset import Dataset

State = Literal["stored", "deleted", "absent", "held-out", "unused"]
_STATE_OF_ROW: dict[str, State] = {"written": "stored", "absent": "absent", "erased": "deleted"}


class Unit(NamedTuple):
    """A unit of a run, or samples of the source that belong to none.

    Attributes:
        unit: Its name; None where the run does not hold it: a deleted user, or users whose samples
            do not train.
        samples: Ids of its samples, ascending.
        state: `stored`: its approximator is; `absent`: that is not computed yet; `deleted`;
            `held-out`: kept for testing; `unused`: left out by data.num_train or by the source.
    """

    unit: str | None
    samples: list[int]
    state: State


def list_units(run: RunDirectory, with_names: bool = False) -> list[Unit]:
    """Return the units of a trained run, names that look like numbers in the order of numbers.

    Args:
        run: A trained run.
        with_names: Load the run's data, and take the names of deleted users from there.

    Raises:
        TrajectoryError: If the run is not trained, or its record of samples is damaged.
        DataError: If the data have to be loaded, and cannot be or are not those of the run.
    """
    run.digest()
    store = run.stored()
    by_sample = run.config.data.unit == "sample"
    record = read_samples(run.trajectory_folder)
    if record is None and by_sample and store is not None:
        # Version 0.1.0 kept no record, and knew samples by their position among those that train.
        record = _by_position(store.num_units)
    names: list[str | None] | None = None
    if record is None or with_names:
        data = _data_of(run, store)
        record, names = SampleRecord.of(data), list(data.units)
    num_units = int(record.unit_of_sample.max()) + 1
    samples = record.samples_by_unit(num_units)
    if by_sample:
        names = [str(of_unit[0]) for of_unit in samples]
    elif names is None:
        names = [None] * num_units if store is None else [name or None for name in store.units]
    units = map(Unit, names, samples, _states(store, num_units))
    return sorted((*units, *_not_trained(record, by_sample)), key=_order)


def _by_position(num_samples: int) -> SampleRecord:
    numbers, none = np.arange(num_samples), np.empty(0, np.int64)
    return SampleRecord(numbers, numbers, none, none)


def _data_of(run: RunDirectory, store: ApproximatorStore | None) -> "Dataset":
    # These import torch, which most runs are listed without.
    from pipeline.data import load
    from pipeline.data.input_files import IN_MEMORY, InputFiles

    files = IN_MEMORY if run.is_pruned() else InputFiles(run.path / INPUTS)
    data = load(run.config.data, run.config.seed, files=files)
    stored = data.units if store is None else store.units
    agree = len(stored) == len(data.units) and all(
        not name or name == found for name, found in zip(stored, data.units, strict=True)
    )
    if not agree:
        raise DataError(
            f"the data that {run.path} names are not those that it was trained on: their units "
            "differ; restore them, or list the units without --names"
        )
    return data


def _states(store: ApproximatorStore | None, num_units: int) -> Sequence[State]:
    if store is None:
        return ["absent"] * num_units
    return [_STATE_OF_ROW[state] for state in store.states]


def _not_trained(record: SampleRecord, by_sample: bool) -> Iterable[Unit]:
    groups: dict[State, list[int]] = {
        "held-out": record.held_out.tolist(),
        "unused": record.unused.tolist(),
    }
    for state, samples in groups.items():
        if by_sample:
            yield from (Unit(str(sample), [sample], state) for sample in samples)
        elif samples:
            yield Unit(None, samples, state)


def _order(unit: Unit) -> tuple[Any, ...]:
    return (unit.unit is None, *by_number(unit.unit or ""), unit.samples)


def by_number(name: str) -> tuple[bool, int, str, str]:
    """Return a sort key: names that look like numbers first, in the order of numbers."""
    if not (name.isascii() and name.isdigit()):
        return (True, 0, name, name)
    digits = name.lstrip("0")
    return (False, len(digits), digits, name)
