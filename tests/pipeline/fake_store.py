"""Row stores for tests, in memory and in files, and the facts of runs to go with them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.deletion.context import DeletionContext, TensorShape
from pipeline.deletion.weights import DeletionRule, Float64Array
from storage.errors import RowCorruptError, UnknownUnitError
from storage.ledger_records import ReleaseRecord

# Rows are multiples of this, so that every partial sum is exact, as the store promises.
GRID = 2.0**-40


class FakeStore:
    """Rows in memory; an erased unit leaves its pseudonym and no name."""

    def __init__(self, rows_by_unit: dict[str, Float64Array], damaged: str = "") -> None:
        self.rows = dict(rows_by_unit)
        self.erased: set[str] = set()
        self.damaged = damaged
        self._order = tuple(rows_by_unit)
        self._num_parameters = next(iter(rows_by_unit.values())).size

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(unit if unit in self.rows else "" for unit in self._order)

    @property
    def num_units(self) -> int:
        return len(self._order)

    def sum_rows(
        self, units: Sequence[int | str], weights: Sequence[int] | None = None
    ) -> Float64Array:
        if self.damaged in units:
            raise RowCorruptError(f"row of unit {self.damaged}: its digest does not agree")
        total_P = np.zeros(self._num_parameters)
        for unit, weight in zip(units, weights or [1] * len(units), strict=True):
            total_P += weight * self.rows[str(unit)]
        return total_P

    def erase(self, units: Sequence[int | str], pseudonym: Callable[[str], str]) -> None:
        for unit in map(str, units):
            if self.rows.pop(unit, None) is not None:
                self.erased.add(pseudonym(unit))

    def state(self, unit: str) -> str:
        if unit in self.erased:
            return "erased"
        if unit not in self.rows:
            raise UnknownUnitError(unit)
        return "written"


class FileStore:
    """Rows in files, one for each unit, so that they outlive a killed process."""

    def __init__(self, folder: Path, num_units: int, num_parameters: int) -> None:
        self._folder = folder
        self._num_units = num_units
        self._num_parameters = num_parameters

    def write(self, rows_by_unit: dict[str, Float64Array]) -> None:
        self._folder.mkdir(parents=True)
        for unit, row_P in rows_by_unit.items():
            (self._folder / unit).write_bytes(row_P.tobytes())

    @property
    def units(self) -> tuple[str, ...]:
        present = {path.name for path in self._folder.iterdir()}
        names = map(str, range(self._num_units))
        return tuple(name if name in present else "" for name in names)

    @property
    def num_units(self) -> int:
        return self._num_units

    @property
    def erased(self) -> set[str]:
        names = [path.name for path in self._folder.glob("erased-*")]
        return {name.removeprefix("erased-") for name in names}

    def sum_rows(
        self, units: Sequence[int | str], weights: Sequence[int] | None = None
    ) -> Float64Array:
        total_P = np.zeros(self._num_parameters)
        for unit, weight in zip(units, weights or [1] * len(units), strict=True):
            total_P += weight * np.frombuffer((self._folder / str(unit)).read_bytes())
        return total_P

    def erase(self, units: Sequence[int | str], pseudonym: Callable[[str], str]) -> None:
        for unit in map(str, units):
            (self._folder / f"erased-{pseudonym(unit)}").touch()
            (self._folder / unit).unlink(missing_ok=True)

    def state(self, unit: str) -> str:
        if (self._folder / f"erased-{unit}").exists():
            return "erased"
        if not (self._folder / unit).exists():
            raise UnknownUnitError(unit)
        return "written"


def make_rows(num_units: int, num_parameters: int = 12, seed: int = 0) -> dict[str, Float64Array]:
    """Random rows on the grid, by unit."""
    rows_NP = np.random.default_rng(seed).standard_normal((num_units, num_parameters)) * 1e-3
    rows_NP = np.round(rows_NP / GRID) * GRID
    return {str(unit): row_P for unit, row_P in enumerate(rows_NP)}


def make_facts(num_units: int = 20, num_parameters: int = 12, **changes: Any) -> DeletionContext:
    """Facts of a run with two tensors, one sample for each unit."""
    trained_P = np.random.default_rng(9).standard_normal(num_parameters).astype(np.float32)
    fields: dict[str, Any] = {
        "run_digest": "digest-of-a-run",
        "trained_P": trained_P,
        "tensors": (
            TensorShape("weight", (2, num_parameters // 2 - 1)),
            TensorShape("bias", (2,)),
        ),
        "samples_per_unit": {str(unit): 1 for unit in range(num_units)},
        "rule": DeletionRule("remaining", "left-out", num_units, 4),
    }
    return DeletionContext(**{**fields, **changes})


def use_key(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Point the environment at a key file outside the run."""
    path = folder / "keys" / "pseudonym.key"
    monkeypatch.setenv("UNLEARN_KEY_FILE", str(path))
    return path


def make_record(
    release: int,
    epsilon: float | None = None,
    delta: float | None = None,
    mu: float | None = None,
    **changes: Any,
) -> ReleaseRecord:
    """A committed release of one unit; with mu it had noise, as every release before it."""
    fields: dict[str, Any] = {
        "release": release,
        "generation": 0,
        "num_units": 1,
        "num_samples": 1,
        "total_units": release,
        "total_samples": release,
        "kind": "none" if mu is None else "certified",
        "epsilon": epsilon,
        "delta": delta,
        "sensitivity": None if mu is None else 1.0,
        "sigma": 0.0 if mu is None else 1.0 / mu,
        "spent_mu": mu,
        "model_before": "before",
        "model_digest": "after",
        "certificate_digest": "certificate",
        "sum_digest": "sum",
        "chain_head": "head",
        "created": "2026-01-01T00:00:00+00:00",
    }
    return ReleaseRecord(**{**fields, **changes})
