"""A row store in memory, on the grid that makes partial sums exact, and facts to go with it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.deletion import DeletionRule, Float64Array
from pipeline.run_facts import RunFacts, TensorShape

GRID = 2.0**-40


class FakeStore:
    """Rows as multiples of GRID; erased rows are gone, their pseudonym takes the name's place."""

    def __init__(self, rows_by_unit: dict[str, Float64Array], damaged: str | None = None) -> None:
        self.rows = dict(rows_by_unit)
        self.erased: set[str] = set()
        self.damaged = damaged

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(self.rows) + tuple(self.erased)

    @units.setter
    def units(self, value: tuple[str, ...]) -> None:
        raise AttributeError("units follow from the rows")

    def sum_rows(
        self, units: Sequence[int | str], weights: Sequence[int] | None = None
    ) -> Float64Array:
        weights = [1] * len(units) if weights is None else weights
        if self.damaged in units:
            from storage.errors import RowCorruptError

            raise RowCorruptError(f"row {self.damaged} is flipped")
        total_P = np.zeros(next(iter(self.rows.values())).size)
        for unit, weight in zip(units, weights, strict=True):
            total_P += weight * self.rows[str(unit)]
        return total_P

    def erase(self, units: Sequence[int | str], pseudonym: Callable[[str], str]) -> None:
        for unit in map(str, units):
            if self.rows.pop(unit, None) is not None:
                self.erased.add(pseudonym(unit))

    def state(self, unit: str) -> str:
        return "written" if unit in self.rows else "erased"


def make_rows(num_units: int, num_parameters: int, seed: int = 0) -> dict[str, Float64Array]:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((num_units, num_parameters)) * 1e-3
    rows = np.round(rows / GRID) * GRID
    return {str(unit): rows[unit] for unit in range(num_units)}


def make_facts(num_units: int = 20, num_parameters: int = 12, **changes: object) -> RunFacts:
    trained = np.random.default_rng(9).standard_normal(num_parameters).astype(np.float32)
    facts = {
        "run_digest": "run",
        "trained_P": trained,
        "tensors": (
            TensorShape("weight", (2, num_parameters // 2 - 1)),
            TensorShape("bias", (2,)),
        ),
        "samples_per_unit": {str(unit): 1 for unit in range(num_units)},
        "rule": DeletionRule("remaining", "left-out", num_units, 4),
    }
    return RunFacts(**{**facts, **changes})  # type: ignore[arg-type]


def use_key(monkeypatch: object, folder: Path) -> None:
    monkeypatch.setenv("UNLEARN_KEY_FILE", str(folder / "keys" / "pseudonym.key"))  # type: ignore[attr-defined]
