"""A data set as the pipeline sees it: tensors, and who owns which sample."""

# n samples, C classes

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.errors import DataError
from pipeline.schema import Section


class DataConfig(Section):
    """Where the samples come from and what is deleted as one."""

    source: str = "digits"
    path: str | None = None
    """Folder or file of the source, for those that need one."""
    num_train: Annotated[int, Field(ge=1)] | None = None
    """Training samples to keep, drawn by `seed`; null: all."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    unit: Literal["sample", "user"] = "sample"
    user_column: str | None = None
    """Column of the source that names the owner of each sample."""
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = None
    """Side in pixels that images are brought to (digits); null: as they are."""


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
        torch.from_numpy(np.ascontiguousarray(train.inputs, dtype=np.float32)),
        torch.from_numpy(np.ascontiguousarray(train.targets, dtype=np.int64)),
        torch.from_numpy(np.ascontiguousarray(test.inputs, dtype=np.float32)),
        torch.from_numpy(np.ascontiguousarray(test.targets, dtype=np.int64)),
        num_classes,
        units,
        unit_of_sample,
    )


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
    return tuple(str(v) for v in values.tolist())


def split(samples: Samples, config: DataConfig, seed: int) -> tuple[Samples, Samples]:
    """Split off `test_fraction` at random; num_train = floor((1 - test_fraction) n).

    `config.num_train` then keeps that many of the training samples.
    """
    order = np.random.default_rng([seed, 0]).permutation(len(samples))
    num_train = int(np.floor((1 - config.test_fraction) * len(samples) + 1e-9))
    train, test = order[:num_train], order[num_train:]
    return samples.take(subsample(train, config)), samples.take(test)


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
