"""Which samples a run was trained on, under which ids, and which rows of the source it did not use.

`samples.safetensors` in the trajectory's folder, all int64:

- `sample_ids` (n,): id of each training sample, in the order of the training set;
- `unit_of_sample` (n,): which unit owns it, by the unit's row in the store;
- `held_out`, `unused`: rows of the source that are kept for testing, and that do nothing;
- `masses` (n,), only where samples weigh differently: what each weighs, see `Problem.sample_masses`.

It holds no name of a user, so that a deletion has nothing to erase in it. Needs no torch.
"""

# n samples, N units

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline import tensor_file
from pipeline.run.checkpoints import SAMPLES, check, is_recorded, read_plain

if TYPE_CHECKING:
    from pipeline.data.dataset import Dataset

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class SampleRecord:
    """The samples of a run.

    Attributes:
        sample_ids: Id of each training sample (n,).
        unit_of_sample: The row in the store of each sample's unit (n,).
        held_out: Ids of samples that are kept for testing, ascending.
        unused: Ids of samples that neither train nor test, ascending.
        masses: What each training sample weighs (n,); None: all the same.
    """

    sample_ids: Ids
    unit_of_sample: Ids
    held_out: Ids
    unused: Ids
    masses: Ids | None = None

    @staticmethod
    def of(data: "Dataset", masses: Ids | None = None) -> "SampleRecord":
        """Return what is to be known of a data set once it is not there any more."""
        none = np.empty(0, np.int64)
        rows = data.rows
        return SampleRecord(
            data.sample_ids.numpy(),
            data.unit_of_sample.cpu().numpy(),
            none if rows is None else rows.held_out,
            none if rows is None else rows.unused,
            masses,
        )

    def samples_by_unit(self, num_units: int) -> list[list[int]]:
        """Return the ids of each unit's samples, ascending, in the order of the units."""
        order = np.lexsort((self.sample_ids, self.unit_of_sample))
        ends = np.cumsum(np.bincount(self.unit_of_sample, minlength=num_units))[:-1]
        return [ids.tolist() for ids in np.split(self.sample_ids[order], ends)]


def write_samples(folder: Path, data: "Dataset", masses: Ids | None) -> None:
    """Write the record of a data set into the folder of its trajectory, before the digest is taken."""
    record = SampleRecord.of(data, masses)
    arrays = {name: getattr(record, name) for name in SampleRecord.__dataclass_fields__}
    tensor_file.write_plain(
        folder / SAMPLES, {name: array for name, array in arrays.items() if array is not None}
    )


def read_samples(folder: Path) -> SampleRecord | None:
    """Return the record in a finished trajectory's folder; None in runs of version 0.1.0.

    Raises:
        TrajectoryError: If the file is damaged, or not the one that the digest covers.
    """
    if not is_recorded(folder, SAMPLES):
        return None
    check(folder, SAMPLES)
    arrays = read_plain(folder / SAMPLES)
    return SampleRecord(**{name: array.astype(np.int64) for name, array in arrays.items()})
