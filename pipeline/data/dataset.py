"""A data set as the pipeline sees it: tensors, and who owns which sample."""

# n samples, C classes

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.config import DataConfig
from pipeline.data.lazy_inputs import OwnInputs, as_tensor
from pipeline.data.samples import Samples, require_finite
from pipeline.errors import DataError


@dataclass(frozen=True)
class SourceRows:
    """What becomes of the rows of a source's training file; all int64.

    Attributes:
        trained: Row of each training sample (n,), in the order of the training set.
        held_out: Rows that are kept for testing, ascending.
        unused: Rows that neither train nor test, ascending.
    """

    trained: np.ndarray
    held_out: np.ndarray
    unused: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """Training and test samples, and the units that own the training samples.

    Attributes:
        inputs: Training inputs (n, ...), float32; int64 where the source holds whole numbers. Many of
            them are read minibatch by minibatch (`LazyInputs`).
        targets: Training classes (n,) or at each position (n, T), int64; or numbers (n,) or (n, D),
            float32.
        test_inputs: Test inputs (n', ...).
        test_targets: Test targets (n', ...).
        num_classes: C; where targets are numbers, how many a sample has, D.
        units: Names of the units, in row order of the store.
        unit_of_sample: Which unit owns each training sample, (n,) int64.
        rows: The rows of the source's training file, by which samples are known outside; None where
            a sample is known by its position in `inputs`.
        weights: What each training sample's loss is multiplied by (n,), float64; None: all 1.
        class_names: What the source calls its classes; empty where they are numbers.
    """

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    num_classes: int
    units: tuple[str, ...]
    unit_of_sample: Tensor
    rows: SourceRows | None = None
    weights: Tensor | None = None
    class_names: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        """Number of training samples, n."""
        return int(self.targets.shape[0])

    @property
    def sample_counts(self) -> tuple[int, ...]:
        """Samples each unit owns, in unit order."""
        counts = torch.bincount(self.unit_of_sample, minlength=len(self.units))
        return tuple(counts.tolist())

    @cached_property
    def sample_ids(self) -> Tensor:
        """Id of each training sample, (n,) int64 on the CPU: its row in the source's training file."""
        if self.rows is None:
            return torch.arange(self.num_samples)
        return torch.from_numpy(self.rows.trained)

    @cached_property
    def _by_id(self) -> tuple[Tensor, Tensor]:
        """The ids in ascending order, and the position of each in the training set."""
        return torch.sort(self.sample_ids)

    def positions_of(self, sample_ids: Tensor) -> Tensor:
        """Return the positions in the training set of the samples with these ids (m,).

        Raises:
            DataError: If an id is not of the training set.
        """
        ascending, positions = self._by_id
        found = torch.searchsorted(ascending, sample_ids).clamp(max=len(ascending) - 1)
        foreign = sample_ids[ascending[found] != sample_ids]
        if len(foreign):
            raise DataError(self._why_foreign(int(foreign[0])))
        return positions[found]

    def _why_foreign(self, sample: int) -> str:
        if self.rows is None:
            return f"sample {sample} is not of the training set (0..{self.num_samples - 1})"
        if sample in self.rows.held_out:
            return f"sample {sample} is held out for testing; train on the others alone"
        if sample in self.rows.unused:
            return f"sample {sample} is left out of the training set; train on the others alone"
        total = self.num_samples + len(self.rows.held_out) + len(self.rows.unused)
        return f"sample {sample} is not in the source, whose rows are 0..{total - 1}"

    def samples_of(self, units: Tensor) -> Tensor:
        """Return which training samples the given units (m,) own, as a mask (n,)."""
        return torch.isin(self.unit_of_sample, units)

    @property
    def has_classes(self) -> bool:
        """Whether each sample is of one class."""
        return not self.targets.is_floating_point() and self.targets.dim() == 1

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of a model's output for one sample: (C,), (T, C) or (D,)."""
        if self.targets.is_floating_point():
            return (self.num_classes,)
        return (*self.targets.shape[1:], self.num_classes)

    def class_name(self, number: int) -> str:
        """Return what the source calls a class, or its number."""
        return self.class_names[number] if self.class_names else str(number)

    def to(
        self, device: torch.device, dtype: torch.dtype, *, keep_integers: bool = False
    ) -> "Dataset":
        """Return the data on a device, inputs and other numbers in `dtype`.

        Args:
            device: Where to.
            dtype: Floating point.
            keep_integers: Leave inputs of whole numbers as they are, for a model that embeds them.
        """

        def moved(values: Tensor, keep: bool) -> Tensor:
            keep = keep and not values.is_floating_point()
            return values.to(device) if keep else values.to(device, dtype)

        return replace(
            self,
            inputs=moved(self.inputs, keep_integers),
            targets=moved(self.targets, True),
            test_inputs=moved(self.test_inputs, keep_integers),
            test_targets=moved(self.test_targets, True),
            unit_of_sample=self.unit_of_sample.to(device),
            weights=None if self.weights is None else self.weights.to(device),
        )


def assemble(
    train: Samples,
    test: Samples,
    config: DataConfig,
    num_classes: int,
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """Check samples and owners and return the data set.

    Raises:
        DataError: For values that are not finite, classes outside 0..C-1, weights that are all 0, or
            missing owners.
    """
    for name, samples in (("training", train), ("test", test)):
        _check(name, samples, num_classes)
    rows = _source_rows(train, test) if config.sample_ids == "source" else None
    units, unit_of_sample = _units(train, config, rows)
    # Whole numbers that one part alone has are numbers.
    whole = all(_is_whole(part.inputs) for part in (train, test))
    inputs_type = np.int64 if whole else np.float32
    targets_type = np.float32 if train.targets.dtype.kind == "f" else np.int64
    return Dataset(
        _inputs(train.inputs, inputs_type),
        _row_major(train.targets, targets_type),
        _inputs(test.inputs, inputs_type),
        _row_major(test.targets, targets_type),
        num_classes,
        units,
        unit_of_sample,
        rows,
        _weights(train),
        class_names,
    )


def _weights(train: Samples) -> Tensor | None:
    if train.weights is None:
        return None
    if not train.weights.any():
        raise DataError(
            f"the weights of all {len(train)} training samples are 0; at least one must count"
        )
    return torch.from_numpy(np.ascontiguousarray(train.weights, dtype=np.float64))


def _source_rows(train: Samples, test: Samples) -> SourceRows:
    assert train.rows is not None, "a source numbers the rows of its training file"
    held_out = np.empty(0, np.int64) if test.rows is None else np.sort(test.rows)
    used = np.concatenate([train.rows, held_out])
    unused = np.setdiff1d(np.arange(train.num_rows), used)
    return SourceRows(*(np.asarray(rows, np.int64) for rows in (train.rows, held_out, unused)))


def _is_whole(inputs: np.ndarray | OwnInputs) -> bool:
    return inputs.dtype in (np.int64, torch.int64)


def _inputs(inputs: np.ndarray | OwnInputs, dtype: type[np.float32] | type[np.int64]) -> Tensor:
    if isinstance(inputs, OwnInputs):
        return as_tensor(inputs).to(torch.int64 if dtype is np.int64 else torch.float32)
    return _row_major(inputs, dtype)


def _row_major(values: np.ndarray, dtype: type[np.float32] | type[np.int64]) -> Tensor:
    """Return a tensor whose strides, too, are row-major.

    NumPy leaves any stride on an axis of length 1; torch reads one-channel images that bear the
    stride 1 there as channels-last and hands the layout on to gradients.
    """
    contiguous = np.ascontiguousarray(values, dtype=dtype)
    return torch.from_numpy(contiguous.reshape(-1)).view(contiguous.shape)


def _check(name: str, samples: Samples, num_classes: int) -> None:
    if len(samples) == 0:
        raise DataError(f"there are no {name} samples; at least one is needed")
    if len(samples.inputs) != len(samples.targets):
        raise DataError(
            f"the {name} data have {len(samples.inputs)} inputs and {len(samples.targets)} labels; "
            "each input needs one label"
        )
    require_finite(name, samples)
    if samples.targets.dtype.kind == "f" or samples.targets.ndim != 1:
        return
    outside = (samples.targets < 0) | (samples.targets >= num_classes)
    if outside.any():
        first = int(np.argmax(outside))
        raise DataError(
            f"{name} sample {samples.number(first)} has label {int(samples.targets[first])}; labels "
            f"must lie in 0..{num_classes - 1}"
        )


def _units(
    train: Samples, config: DataConfig, rows: SourceRows | None
) -> tuple[tuple[str, ...], Tensor]:
    if config.unit == "sample":
        ids = range(len(train)) if rows is None else rows.trained.tolist()
        return tuple(map(str, ids)), torch.arange(len(train))
    if train.owners is None:
        raise DataError(
            f"data.unit is user, but source {config.source!r} names no owners; give "
            "data.user_column, or choose data.unit: sample"
        )
    names, numbers = np.unique(np.asarray(train.owners, dtype=np.str_), return_inverse=True)
    return tuple(names.tolist()), torch.from_numpy(numbers.astype(np.int64))
