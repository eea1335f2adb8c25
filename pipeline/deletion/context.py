"""The deletion context: what a deletion must know of a run.

Nothing here is read from files, and neither the configuration nor the trajectory is needed: a
training loop of one's own can fill it in.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.certificates.privacy import Budget
from pipeline.certificates.sensitivity import Declaration
from pipeline.deletion.class_terms import ClassTerms
from pipeline.deletion.gate import ErrorGate
from pipeline.deletion.weights import DeletionRule, Float32Array, Float64Array, ParameterArray


class Erasable(Protocol):
    """A place inside a run that may hold rows of units."""

    def erase(self, units: Sequence[str], pseudonym: Callable[[str], str]) -> None:
        """Erase rows for good, leaving the unit's pseudonym; erasing again does nothing."""


class RowStore(Erasable, Protocol):
    """The reader of approximator rows that a deletion needs."""

    @property
    def units(self) -> tuple[str, ...]:
        """Names in row order; nothing, or a pseudonym, where the unit was erased. Reads all of them."""

    @property
    def num_units(self) -> int:
        """Rows, those of erased units included; what a deletion asks for in place of their names."""

    @property
    def erased(self) -> Set[str]:
        """Pseudonyms of the erased units."""

    def sum_rows(self, units: Sequence[str], weights: Sequence[int] | None = None) -> Float64Array:
        """Return the weighted sum, float64 of shape (P,), every partial sum exact."""

    def state(self, unit: str) -> str:
        """Return "absent", "written" or "erased"."""


@dataclass(frozen=True)
class TensorShape:
    """A named tensor among the flat parameters, in their order."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class DeletionContext:
    """A trained run as a deletion sees it.

    Attributes:
        run_digest: Digest of the trajectory; binds the ledger to it.
        trained_P: w_T of shape (P,), float32, or float64 of a run in that precision.
        tensors: How the parameters are cut, in `named_parameters()` order.
        samples_per_unit: Number of samples of every unit that was trained on, in row order;
            deleted ones may be missing.
        rule: Weights and correction of the sum.
        unit_kind: What one unit is.
        buffers: Further tensors of the model's file that no step changes, such as frozen
            statistics.
        generation: 0 as trained, one more after each repair.
        declaration: Sensitivities, declared before requests arrive.
        budget: The most that all releases together may spend; None if there is no limit.
        settings: What the configuration says of everything that decides a release; the ledger is
            bound to it. None binds nothing.
        gate: What is known of the error, and the limit on it.
        terms: Class terms of the generation; None where it has none.
        row_of: Returns the position of a unit's row; None takes the order of `samples_per_unit`.
        held_out: Returns the names of units that are held out for testing; asked for only when a
            request names units that were not trained on.
    """

    run_digest: str
    trained_P: ParameterArray
    tensors: tuple[TensorShape, ...]
    samples_per_unit: Mapping[str, int]
    rule: DeletionRule
    unit_kind: Literal["sample", "user"] = "sample"
    buffers: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    generation: int = 0
    declaration: Declaration = field(default_factory=Declaration)
    budget: Budget | None = None
    settings: Mapping[str, Any] | None = None
    gate: ErrorGate = field(default_factory=ErrorGate)
    terms: ClassTerms | None = None
    row_of: Callable[[str], int] | None = None
    held_out: Callable[[], frozenset[str]] = frozenset

    def __post_init__(self) -> None:
        size = sum(int(np.prod(tensor.shape)) for tensor in self.tensors)
        if self.trained_P.dtype not in (np.float32, np.float64) or self.trained_P.shape != (size,):
            raise ValueError(
                f"expected float32 or float64 parameters of shape ({size},) for the tensors named, "
                f"found {self.trained_P.dtype} of shape {self.trained_P.shape}"
            )

    @cached_property
    def variances(self) -> tuple[slice, ...]:
        """Where running variances of batch normalisation lie, which must not become negative."""
        ends = np.cumsum([int(np.prod(tensor.shape)) for tensor in self.tensors]).tolist()
        starts = [0, *ends[:-1]]
        return tuple(
            slice(start, end)
            for tensor, start, end in zip(self.tensors, starts, ends, strict=True)
            if tensor.name.rpartition(".")[2] == "running_var"
        )

    @property
    def published_P(self) -> Float32Array:
        """w_T as it would be published, float32 (P,)."""
        return self.trained_P.astype(np.float32, copy=False)

    def in_row_order(self, units: Sequence[str]) -> list[str]:
        """Sort units by the positions of their rows."""
        return sorted(units, key=self.row)

    def row(self, unit: str) -> int:
        """Return the position of a unit's row."""
        return self._position[unit] if self.row_of is None else self.row_of(unit)

    @property
    def needs_terms(self) -> bool:
        """Whether the run is to have class terms."""
        return bool((self.settings or {}).get("recursion.class_terms"))

    @cached_property
    def _position(self) -> Mapping[str, int]:
        return {unit: row for row, unit in enumerate(self.samples_per_unit)}

    @property
    def declared(self) -> Declaration:
        """The declaration as it applies to the run's present generation."""
        return self.declaration.about(self.generation)

    def declared_digest(self) -> str:
        """Return a digest of what is declared before requests arrive: sensitivities and budget."""
        text = f"{self.declaration.digest()} {self.budget}"
        return hashlib.sha256(text.encode()).hexdigest()
