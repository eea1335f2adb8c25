"""A data set as the pipeline sees it: tensors, and who owns which sample."""

# n samples, C classes

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import torch
from torch import Tensor

from pipeline.config import DataConfig
from pipeline.errors import DataError
from storage.names import check_unit_names


@dataclass(frozen=True)
class Samples:
    """Inputs (n, ...) float32 with finite values, class numbers (n,) int64, owners' names or None."""

    inputs: np.ndarray
    targets: np.ndarray
    owners: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """Return n."""
        return len(self.targets)

    def take(self, places: np.ndarray) -> "Samples":
        """Return the samples at `places`, in that order."""
        owners = None if self.owners is None else tuple(self.owners[i] for i in places)
        return Samples(self.inputs[places], self.targets[places], owners)


@dataclass(frozen=True)
class Dataset:
    """Training and test samples, and the units that own the training samples.

    Attributes:
        inputs: Training inputs (n, ...), float32; a sample's id is its position here.
        targets: Training classes (n,), int64.
        test_inputs: Test inputs (n', ...).
        test_targets: Test classes (n',).
        num_classes: C.
        units: Names of the units, in row order of the store.
        unit_of_sample: Which unit owns each training sample, (n,) int64.
    """

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    num_classes: int
    units: tuple[str, ...]
    unit_of_sample: Tensor

    @property
    def num_samples(self) -> int:
        """Number of training samples, n."""
        return int(self.targets.shape[0])

    @property
    def sample_counts(self) -> tuple[int, ...]:
        """Samples each unit owns, in unit order."""
        counts = torch.bincount(self.unit_of_sample, minlength=len(self.units))
        return tuple(counts.tolist())

    def samples_of(self, units: Tensor) -> Tensor:
        """Return which training samples the given units (m,) own, as a mask (n,)."""
        return torch.isin(self.unit_of_sample, units)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Dataset":
        """Return the data on a device, inputs in `dtype`."""
        return replace(
            self,
            inputs=self.inputs.to(device, dtype),
            targets=self.targets.to(device),
            test_inputs=self.test_inputs.to(device, dtype),
            test_targets=self.test_targets.to(device),
            unit_of_sample=self.unit_of_sample.to(device),
        )


def assemble(train: Samples, test: Samples, config: DataConfig, num_classes: int) -> Dataset:
    """Check samples and owners and return the data set.

    Raises:
        DataError: For values that are not finite, classes outside 0..C-1, or missing owners.
    """
    for name, samples in (("training", train), ("test", test)):
        _check(name, samples, num_classes)
    units, unit_of_sample = _units(train, config)
    return Dataset(
        _row_major(train.inputs, np.float32),
        _row_major(train.targets, np.int64),
        _row_major(test.inputs, np.float32),
        _row_major(test.targets, np.int64),
        num_classes,
        units,
        unit_of_sample,
    )


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
    finite = np.isfinite(samples.inputs).reshape(len(samples), -1).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        raise DataError(
            f"{int((~finite).sum())} {name} samples hold NaN or infinite values (the first is sample "
            f"{first}); clean or drop them"
        )
    outside = (samples.targets < 0) | (samples.targets >= num_classes)
    if outside.any():
        first = int(np.argmax(outside))
        raise DataError(
            f"{name} sample {first} has label {int(samples.targets[first])}; labels must lie in "
            f"0..{num_classes - 1}"
        )


def _units(train: Samples, config: DataConfig) -> tuple[tuple[str, ...], Tensor]:
    if config.unit == "sample":
        return tuple(str(i) for i in range(len(train))), torch.arange(len(train))
    if train.owners is None:
        raise DataError(
            f"data.unit is user, but source {config.source!r} names no owners; give "
            "data.user_column, or choose data.unit: sample"
        )
    names, places = np.unique(np.asarray(train.owners, dtype=np.str_), return_inverse=True)
    return tuple(names.tolist()), torch.from_numpy(places.astype(np.int64))


def owner_names(values: np.ndarray, column: str) -> tuple[str, ...]:
    """Return owners as text; ids are matched by their text.

    Raises:
        DataError: If a value is missing (null, NaN or empty).
    """
    missing = [i for i, v in enumerate(values.tolist()) if v is None or v != v or v == ""]
    if missing:
        raise DataError(
            f"column {column!r} names no owner for {len(missing)} samples (the first is sample "
            f"{missing[0]}); every sample needs one"
        )
    names = values.tolist()
    strange = next((v for v in names if not isinstance(v, str | int | float | date)), None)
    if strange is not None:
        raise DataError(
            f"column {column!r} names an owner by {type(strange).__name__} {strange!r:.60}; expected "
            "text or numbers, by which a deletion can name them"
        )
    texts = tuple(str(v) for v in names)
    try:
        check_unit_names(sorted(set(texts)))
    except ValueError as error:
        raise DataError(f"column {column!r}: {error}") from error
    return texts


def split(samples: Samples, config: DataConfig, seed: int) -> tuple[Samples, Samples]:
    """Split off `test_fraction` at random; num_train = floor((1 - test_fraction) n).

    `config.num_train` then keeps that many of the training samples.
    """
    train, test = split_places(len(samples), config, seed)
    return samples.take(train), samples.take(test)


def split_places(num_samples: int, config: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which of `num_samples` samples train and which test, as `split` chooses them."""
    order = np.random.default_rng([seed, 0]).permutation(num_samples)
    num_train = int(np.floor((1 - config.test_fraction) * num_samples + 1e-9))
    return subsample(order[:num_train], config), order[num_train:]


def training_places(num_samples: int, config: DataConfig, seed: int) -> np.ndarray:
    """Return which samples train, where the source brings a test set of its own.

    All in the source's order, or `config.num_train` drawn by `seed`.
    """
    if config.num_train is None:
        return np.arange(num_samples)
    return subsample(np.random.default_rng([seed, 0]).permutation(num_samples), config)


def subsample(places: np.ndarray, config: DataConfig) -> np.ndarray:
    """Return the first `num_train` of already shuffled places.

    Raises:
        DataError: If there are fewer.
    """
    if config.num_train is None:
        return places
    if config.num_train > len(places):
        raise DataError(
            f"data.num_train is {config.num_train}, but source {config.source!r} leaves only "
            f"{len(places)} training samples; choose at most that many"
        )
    return places[: config.num_train]


def require_every_class(train: Samples, test: Samples, class_names: Sequence[str]) -> None:
    """Check that both parts hold every class: a score over absent classes says nothing.

    Raises:
        DataError: If a class is missing from the training or the test part.
    """
    for part, samples in (("training", train), ("test", test)):
        absent = np.setdiff1d(np.arange(len(class_names)), samples.targets)
        if len(absent):
            names = ", ".join(class_names[i] for i in absent)
            raise DataError(
                f"the {part} part ({len(samples)} samples) has none of class {names}; add such "
                "samples, drop the class, or change data.num_train, data.test_fraction or the seed"
            )
