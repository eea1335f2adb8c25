"""Samples of a source: their inputs, targets, owners and rows, and which of them train."""

# n samples

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.lazy_inputs import OwnInputs, finite_rows
from pipeline.errors import DataError
from storage.names import check_unit_names

# Inputs of these types may be tokens and stay whole; smaller integers are pixels.
WHOLE = ("int32", "int64")


@dataclass(frozen=True)
class Samples:
    """Some samples of a source.

    Attributes:
        inputs: (n, ...) float32, finite; int64 where the source holds whole numbers; or in their own
            type, with what they stand for.
        targets: Class numbers (n,) or (n, T) int64, or numbers (n,) or (n, D) float32.
        owners: Name of the owner of each sample, or None.
        rows: Which rows of the source's training file these are (n,) int64; None for samples of
            another file, which have no ids.
        num_rows: How many rows that file has.
        weights: What each sample's loss is multiplied by (n,) float64, or None.
    """

    inputs: np.ndarray | OwnInputs
    targets: np.ndarray
    owners: tuple[str, ...] | None = None
    rows: np.ndarray | None = None
    num_rows: int = 0
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        """Return n."""
        return len(self.targets)

    @property
    def numbers(self) -> np.ndarray:
        """The inputs of a source that holds no pictures."""
        assert isinstance(self.inputs, np.ndarray), "pictures are chosen as they are read"
        return self.inputs

    def number(self, position: int) -> int:
        """Return the row in its file of the sample at `position`, for messages."""
        return position if self.rows is None else int(self.rows[position])

    def numbered(self) -> "Samples":
        """Return the same samples as the rows 0, 1, 2 and so on of a whole training file."""
        return replace(self, rows=np.arange(len(self)), num_rows=len(self))

    def take(self, positions: np.ndarray) -> "Samples":
        """Return the samples at `positions`, in that order."""
        owners = None if self.owners is None else tuple(self.owners[i] for i in positions)
        rows = None if self.rows is None else self.rows[positions]
        weights = None if self.weights is None else self.weights[positions]
        return Samples(
            self.numbers[positions], self.targets[positions], owners, rows, self.num_rows, weights
        )


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
    train, test = split_positions(len(samples), config, seed)
    return samples.take(train), samples.take(test)


def split_positions(
    num_samples: int, config: DataConfig, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return which of `num_samples` samples train and which test, as `split` chooses them."""
    order = np.random.default_rng([seed, 0]).permutation(num_samples)
    num_train = int(np.floor((1 - config.test_fraction) * num_samples + 1e-9))
    return subsample(order[:num_train], config), order[num_train:]


def training_positions(num_samples: int, config: DataConfig, seed: int) -> np.ndarray:
    """Return which samples train, where the source brings a test set of its own.

    All in the source's order, or `config.num_train` drawn by `seed`.
    """
    if config.num_train is None:
        return np.arange(num_samples)
    return subsample(np.random.default_rng([seed, 0]).permutation(num_samples), config)


def subsample(positions: np.ndarray, config: DataConfig) -> np.ndarray:
    """Return the first `num_train` of already shuffled positions.

    Raises:
        DataError: If there are fewer.
    """
    if config.num_train is None:
        return positions
    if config.num_train > len(positions):
        raise DataError(
            f"data.num_train is {config.num_train}, but source {config.source!r} leaves only "
            f"{len(positions)} training samples; choose at most that many"
        )
    return positions[: config.num_train]


def require_finite(part: str, samples: Samples) -> None:
    """Check that inputs and targets are numbers that can be calculated with.

    Raises:
        DataError: If one is NaN or infinite; `part` says whose it is.
    """
    inputs = samples.inputs
    for what, finite in (
        ("", inputs.finite() if isinstance(inputs, OwnInputs) else finite_rows(inputs)),
        (" as targets", finite_rows(samples.targets)),
    ):
        if not finite.all():
            first = samples.number(int(np.argmin(finite)))
            raise DataError(
                f"{int((~finite).sum())} {part} samples hold NaN or infinite values{what} (the first "
                f"is sample {first}); clean or drop them"
            )


def sample_weights(values: np.ndarray, name: str, num_samples: int) -> np.ndarray:
    """Return the weights of samples (n,) float64.

    Raises:
        DataError: If they are not one finite number of at least 0 for each sample.
    """
    if values.shape != (num_samples,) or values.dtype.kind not in "iuf":
        raise DataError(
            f"{name} has shape {values.shape} and type {values.dtype}; expected a weight for each of "
            f"the {num_samples} samples"
        )
    weights = values.astype(np.float64)
    # Beyond this float32, in which runs are computed, overflows.
    wrong = ~((weights >= 0) & (weights <= _LARGEST_WEIGHT))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(
            f"{name} is {weights[first]:g} for sample {first}; weights are numbers of at least 0 and "
            f"at most {_LARGEST_WEIGHT:g}"
        )
    return weights


_LARGEST_WEIGHT = 1e30


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
