"""The samples of units by name, looked up in a manifest as they are asked for."""

from collections.abc import ItemsView, Iterator, Mapping

from storage.errors import UnitErasedError, UnknownUnitError
from storage.manifest import Manifest


class SampleCounts(Mapping[str, int]):
    """Samples of every unit that is not erased, in row order, as a manifest had them when loaded."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def __getitem__(self, unit: str) -> int:
        return self._manifest.entries[self.row_of(unit)].samples

    def row_of(self, unit: str) -> int:
        """Position of a unit's row; KeyError for none of these units."""
        try:
            return self._manifest.find(unit).row
        except (UnitErasedError, UnknownUnitError) as error:
            raise KeyError(unit) from error

    def __iter__(self) -> Iterator[str]:
        return (name for _, name, _ in self._manifest.lines())

    def __len__(self) -> int:
        return len(self._manifest.entries)

    def items(self) -> ItemsView[str, int]:
        """Names and counts, in one pass."""
        return _Items(self, self._manifest)


class _Items(ItemsView[str, int]):
    def __init__(self, counts: SampleCounts, manifest: Manifest) -> None:
        super().__init__(counts)
        self._manifest = manifest

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return ((entry.unit, entry.samples) for entry in self._manifest.entries.values())
