"""What each unit weighs of each class, and a random half of the units of a class.

A unit counts to the class of which it has the most mass, the lowest of several. The half of a class is
made of whole units that count to it, drawn at random, up to half of their mass of it.
"""

# N units, n samples, C classes, W classes of the unit that has the most

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import RunConfig
from pipeline.data import Dataset
from pipeline.errors import ConfigError

# Beside the seed, so that halves are drawn apart from trial sets and pilots.
_STREAM = 12


@dataclass(frozen=True)
class MassTable:
    """What each unit weighs of each class, of the samples that a training saw.

    Attributes:
        units: Unit of each line, ascending; int64.
        classes: Class of each line, ascending within a unit; int64.
        masses: Their mass, at least 0; int64.
        num_units: N.
        num_classes: C.
    """

    units: NDArray[np.int64]
    classes: NDArray[np.int64]
    masses: NDArray[np.int64]
    num_units: int
    num_classes: int

    @staticmethod
    def of(
        data: Dataset, weights_n: NDArray[np.int64] | None, sample_ids: Tensor | None = None
    ) -> "MassTable":
        """Count samples.

        Args:
            data: Each sample of one class.
            weights_n: What each sample weighs; None: 1.
            sample_ids: Positions of those that count; None: all.
        """
        positions = slice(None) if sample_ids is None else sample_ids.cpu().numpy()
        masses_n = np.ones(data.num_samples, np.int64) if weights_n is None else weights_n
        owners_n = data.unit_of_sample.cpu().numpy().astype(np.int64)
        classes_n = data.targets.cpu().numpy().astype(np.int64)
        num_classes = data.num_classes
        keys, places = np.unique(
            owners_n[positions] * num_classes + classes_n[positions], return_inverse=True
        )
        masses = np.zeros(len(keys), np.int64)
        np.add.at(masses, places, masses_n[positions])
        return MassTable(
            keys // num_classes, keys % num_classes, masses, len(data.units), num_classes
        )

    def records(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return masses (N, W) and classes (N, W) by unit, filled up with zeros."""
        counts = np.bincount(self.units, minlength=self.num_units)
        within = np.arange(len(self.units)) - np.repeat(np.cumsum(counts) - counts, counts)
        mass_NW = np.zeros((self.num_units, int(counts.max())), np.int64)
        class_NW = np.zeros(mass_NW.shape, np.int32)
        mass_NW[self.units, within] = self.masses
        class_NW[self.units, within] = self.classes
        return mass_NW, class_NW

    def members(self) -> dict[int, NDArray[np.int64]]:
        """Return the units that count to each class, ascending; classes without any are left out."""
        lines = self._leading()
        return {
            number: self.units[lines[self.classes[lines] == number]]
            for number in np.unique(self.classes[lines]).tolist()
        }

    def _leading(self) -> NDArray[np.int64]:
        """Return the line of the class that each unit counts to, of units of some mass."""
        # By unit, then by falling mass, then by class: the first of each unit.
        order = np.lexsort((self.classes, -self.masses, self.units))
        _, firsts = np.unique(self.units[order], return_index=True)
        lines: NDArray[np.int64] = order[firsts]
        return lines[self.masses[lines] > 0]

    def halves(self, seed: Sequence[int]) -> dict[int, NDArray[np.int64]]:
        """Return the half of each class that has a term: numbers of units, ascending.

        Args:
            seed: Of the run, and the generation.
        """
        lines, found = self._leading(), {}
        for number in range(self.num_classes):
            mine = lines[self.classes[lines] == number]
            if len(mine) < 2:
                continue
            shuffled = np.random.default_rng([*seed, _STREAM, number]).permutation(mine)
            masses = self.masses[shuffled]
            within = int(np.searchsorted(np.cumsum(masses), masses.sum() / 2, side="right"))
            found[number] = np.sort(self.units[shuffled[: max(1, within)]])
        return found

    def of_units(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the mass by class of some units together, (C,)."""
        total_C = np.zeros(self.num_classes, np.int64)
        chosen = np.isin(self.units, units)
        np.add.at(total_C, self.classes[chosen], self.masses[chosen])
        return total_C


def refuse_class_terms(
    config: RunConfig, data: Dataset, weights_n: NDArray[np.int64] | None
) -> None:
    """Refuse class terms where they have no meaning; asked before anything is trained.

    Raises:
        ConfigError: The message says why.
    """
    if not data.has_classes:
        raise ConfigError(
            "recursion.class_terms needs samples that are each of one class, found other targets; set "
            "it to false"
        )
    found = len(MassTable.of(data, weights_n).halves([config.seed, 0]))
    if found < 2:
        raise ConfigError(
            f"recursion.class_terms needs two classes of at least two units each, found {found} (a "
            "unit counts to the class that it has most of); set it to false"
        )
