"""The design of a pilot: which units it leaves out, within a budget. Pure numbers, no model.

Units are drawn at random from a pool whose approximators are computed; random subsets of a random
pool are random sets. Sets that the pool does not hold are compared with their halves alone.
"""

# N units

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConfigError

# Two halves of a set, and the rest to train on.
FEWEST_UNITS = 4
NUM_SINGLES = 4
# The set by which the error of larger sets is scaled: half of it must show how sets add up.
REFERENCE_UNITS = 32
# Units of the pool beyond the largest set, so that a second set is another one.
SPARE_UNITS = 8
CLUSTERED_UNITS = 16
# Approximators that are left for sets as one unit.
AS_ONE = 4
# Sets that the pool holds take one retraining each; the others are compared with their halves.
SETS_PER_SIZE = 4
SPLIT_SETS_PER_SIZE = 2


@dataclass(frozen=True)
class Budget:
    """The most that a pilot may compute.

    Attributes:
        retrainings: Trainings without some units.
        approximators: Of units, and of sets as one unit; by each engine.
    """

    retrainings: int = 30
    approximators: int = 64


STANDARD = Budget()


@dataclass(frozen=True)
class TrialSet:
    """Units that are left out together.

    Attributes:
        units: Their numbers, in the order drawn: the first half of them is the first half of the set.
        clustered: Alike, and not drawn at random.
        is_summed: Whether each unit's approximator is computed.
        is_split: Whether both halves are left out as well.
    """

    units: tuple[int, ...]
    clustered: bool
    is_summed: bool
    is_split: bool

    @property
    def halves(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The set in two."""
        middle = len(self.units) // 2
        return self.units[:middle], self.units[middle:]

    @property
    def num_retrainings(self) -> int:
        """What it takes to compare the set."""
        return 3 if self.is_split else 1


@dataclass(frozen=True)
class Design:
    """What a pilot computes.

    Attributes:
        sets: In the order of their size, those that are alike last.
        sizes: Asked for, those that the sets cover.
        left_out: Asked for, and beyond the budget.
        with_roughness: Whether a perturbed start is trained as well.
        as_one: Positions in `sets` whose approximator as one unit is computed.
    """

    sets: tuple[TrialSet, ...]
    sizes: tuple[int, ...]
    left_out: tuple[int, ...]
    with_roughness: bool
    as_one: tuple[int, ...]

    @property
    def summed_units(self) -> tuple[int, ...]:
        """The units whose approximators are computed, ascending."""
        return tuple(sorted({unit for each in self.sets if each.is_summed for unit in each.units}))

    @property
    def num_retrainings(self) -> int:
        """Trainings without some units, and the one with another start."""
        return sum(each.num_retrainings for each in self.sets) + self.with_roughness

    @property
    def num_approximators(self) -> int:
        """Of units, and of sets as one unit."""
        return len(self.summed_units) + len(self.as_one)


def design(
    sizes: Sequence[int], num_units: int, alike: Sequence[int], seed: int, budget: Budget = STANDARD
) -> Design:
    """Return the sets of a pilot.

    Args:
        sizes: Numbers of units that will be deleted together.
        num_units: N.
        alike: Units that are alike, such as those of one class; a set is made of them, if they are
            at least two.
        seed: Draws the sets.
        budget: At most this.

    Raises:
        ConfigError: If there are too few units, or the budget holds no set.
    """
    if num_units < FEWEST_UNITS:
        raise ConfigError(
            f"a pilot leaves out units and halves of sets of them: it needs at least {FEWEST_UNITS} "
            f"units, found {num_units}; smaller units (data.unit: sample) make more of them"
        )
    if budget.retrainings < 3 or budget.approximators < 3:
        raise ConfigError(
            f"a pilot takes at least 3 retrainings and 3 approximators, found {budget.retrainings} and "
            f"{budget.approximators}"
        )
    return _Drawing(sorted(set(sizes)), num_units, alike, seed, budget).design()


class _Drawing:
    def __init__(
        self,
        sizes: Sequence[int],
        num_units: int,
        alike: Sequence[int],
        seed: int,
        budget: Budget,
    ) -> None:
        self._sizes, self._num_units, self._alike = sizes, num_units, alike
        self._generator = np.random.default_rng([seed, 7])
        self._left = budget.retrainings
        self._units_left = budget.approximators
        self._sets: list[TrialSet] = []

    def design(self) -> Design:
        num_units = self._num_units
        small = [size for size in self._sizes if 1 < size <= self._units_left]
        large = [size for size in self._sizes if size > self._units_left]
        singles = min(NUM_SINGLES, num_units - 1, max(1, self._left // 6))
        self._left -= singles
        roughness = self._left >= 12
        self._left -= roughness
        measured = list(small)
        if not measured or (large and max(measured) < REFERENCE_UNITS // 2):
            # As large as a quarter of the units and of the budget.
            reference = min(REFERENCE_UNITS, self._units_left // 2, max(2, num_units // 4))
            measured = sorted({*measured, reference})
        pool = self._pool(max(measured), singles)
        self._sets += [TrialSet((int(unit),), False, True, False) for unit in pool[:singles]]
        # The largest first: it matters most, and what the budget does not hold lies between others.
        kept = []
        for size in self._by_importance([*measured, *large]):
            if self._left >= 3:
                self._draw(size, pool, is_split=True)
                kept.append(size)
        self._draw_clustered(measured)
        for number in range(1, SETS_PER_SIZE):
            for size in sorted(kept, reverse=True):
                split = size > len(pool)
                enough = number >= SPLIT_SETS_PER_SIZE if split else size == len(pool)
                if not enough and self._left >= (3 if split else 1):
                    self._draw(size, pool, is_split=split)
        sets = tuple(sorted(self._sets, key=lambda each: (each.clustered, len(each.units))))
        asked = tuple(size for size in self._sizes if size in kept or size == 1)
        left_out = tuple(size for size in self._sizes if size not in asked)
        return Design(sets, asked, left_out, roughness, self._as_one(sets))

    @staticmethod
    def _by_importance(sizes: Sequence[int]) -> list[int]:
        """Return the sizes: smallest and largest first, then those farthest from what is chosen."""
        rest = sorted(set(sizes))
        chosen = [rest.pop()]
        if rest:
            chosen.append(rest.pop(0))
        while rest:
            gaps = [min(abs(np.log(size / other)) for other in chosen) for size in rest]
            chosen.append(rest.pop(int(np.argmax(gaps))))
        return chosen

    def _pool(self, largest: int, singles: int) -> list[int]:
        num_units = self._num_units
        spare = min(SPARE_UNITS, max(0, self._units_left - largest - CLUSTERED_UNITS))
        size = min(max(largest + spare, singles), num_units)
        self._units_left -= size
        return [int(unit) for unit in self._generator.choice(num_units, size, replace=False)]

    def _draw(self, size: int, pool: Sequence[int], *, is_split: bool) -> None:
        is_summed = size <= len(pool)
        among = pool if is_summed else range(self._num_units)
        units = self._generator.choice(np.asarray(among), size, replace=False)
        self._add(tuple(int(unit) for unit in units), False, is_summed, is_split)

    def _draw_clustered(self, measured: Sequence[int]) -> None:
        """Leave out units that are alike, as many as the smallest set that is measured, if they fit."""
        size = min(
            min(measured), CLUSTERED_UNITS, max(0, self._units_left - AS_ONE), len(self._alike)
        )
        if size >= 2 and self._left >= 3:
            units = self._generator.permutation(np.asarray(self._alike[:size]))
            self._units_left -= size
            self._add(tuple(int(unit) for unit in units), True, True, True)

    def _add(self, units: tuple[int, ...], clustered: bool, summed: bool, split: bool) -> None:
        made = TrialSet(units, clustered, summed, split)
        self._left -= made.num_retrainings
        self._sets.append(made)

    def _as_one(self, sets: Sequence[TrialSet]) -> tuple[int, ...]:
        """Return the sets whose approximator as one unit the budget still holds, largest first."""
        places = [place for place, each in enumerate(sets) if len(each.units) > 1 and each.is_split]
        places.sort(key=lambda place: -len(sets[place].units))
        return tuple(sorted(places[: self._units_left]))
