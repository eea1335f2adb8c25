"""The approximator store: one row per unit, encoded, checked, erasable, summed in bounded memory.

Writers own blocks, one owner merges; readers take only what the manifest lists and its digests
confirm. The format is stated in `layout.py`. Nothing here knows what a row means.
"""

from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from storage import erasure, generations, reading, verification
from storage.catalog import Catalog
from storage.chunks import Hierarchy
from storage.errors import UnitErasedError
from storage.facts import BlockFacts, StoreFacts, store_facts
from storage.layout import StoreSpec
from storage.names import unit_name, unit_names, whole_numbers
from storage.opening import create_store, locate, open_hierarchy
from storage.row_entry import RowEntry
from storage.sample_counts import SampleCounts
from storage.summation import SumGrid
from storage.writing import write_block

Mode = Literal["r", "r+"]


class ApproximatorStore:
    """Rows of float32 values, one per unit; open with `create` or `open`.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> url = f"{folder.name}/approximators.zarr"
    >>> spec = StoreSpec(num_parameters=3, encoding="float32", block=2)
    >>> store = ApproximatorStore.create(url, ["ann", "bob"], [1, 2], spec)
    >>> facts = store.write_rows(0, np.array([[1, 2, 3], [4, 5, 6]], np.float32))
    >>> store.merge()  # from here on the rows count
    >>> store.read_rows(["bob"])
    array([[4., 5., 6.]], dtype=float32)
    >>> store.sum_rows(["ann", "bob"], weights=[1, 10])
    array([41., 52., 63.])
    >>> store.erase(["ann"], pseudonym=lambda name: "3f9a")  # in earnest, a keyed hash
    >>> store.units, store.state("3f9a"), store.verify()
    (('', 'bob'), 'erased', [])
    >>> store.read_rows(["ann"])
    Traceback (most recent call last):
    storage.errors.UnknownUnitError: unit 'ann' is not in this store, or was erased
    >>> folder.cleanup()
    """

    def __init__(self, hierarchy: Hierarchy, catalog: Catalog, mode: Mode) -> None:
        self._hierarchy = hierarchy
        self._catalog = catalog
        self._mode = mode

    @classmethod
    def create(
        cls,
        url: str | Path,
        units: Sequence[str],
        sample_counts: Sequence[int],
        spec: StoreSpec,
        store_id: str | None = None,
    ) -> "ApproximatorStore":
        """Make an empty store with all arrays at full size.

        Args:
            url: `.../<stem>.zarr`, a local path or a URL; the manifest stands beside it.
            units: name of each row's unit; distinct.
            sample_counts: training samples of each unit; at least 0.
            spec: what is promised about the rows.
            store_id: 32 hexadecimal digits; drawn at random if None.

        Raises:
            TypeError, ValueError: a unit's name, a count or the URL is refused; nothing was created.
            LayoutError: something is there already.
        """
        hierarchy, catalog = create_store(url, units, sample_counts, spec, store_id)
        return cls(hierarchy, catalog, "r+")

    @classmethod
    def open(cls, url: str | Path, mode: Mode = "r") -> "ApproximatorStore":
        """Open a store; with `r+`, first finish a pending erasure and sweep what crashes left.

        Raises:
            LayoutError: there is no store, or one of another version, or its metadata was edited.
            RowCorruptError: the manifest was edited or damaged.
        """
        if mode not in ("r", "r+"):
            raise ValueError(f"mode must be 'r' or 'r+', found {mode!r}")
        hierarchy, catalog = open_hierarchy(*locate(url))
        if mode == "r+":
            erasure.recover(hierarchy, catalog)
        return cls(hierarchy, catalog, mode)

    @property
    def spec(self) -> StoreSpec:
        """What the store promises about its rows."""
        return self._hierarchy.layout.spec

    @property
    def store_id(self) -> str:
        """32 hexadecimal digits that name this store."""
        return self._hierarchy.layout.store_id

    @property
    def units(self) -> tuple[str, ...]:
        """Names by row; "" where the unit was erased."""
        names = [""] * self.num_units
        for row, name, _ in self._catalog.load().lines():
            names[row] = name
        return tuple(names)

    @property
    def num_units(self) -> int:
        """Rows of the store, those of erased units included."""
        return self._hierarchy.layout.num_units

    @property
    def num_erased(self) -> int:
        """Units that were erased."""
        return len(self.erased)

    @property
    def erased(self) -> Set[str]:
        """Pseudonyms of the units that were erased."""
        return self._catalog.load().erased

    def samples_per_unit(self) -> SampleCounts:
        """Training samples of every unit that is not erased, in row order; looked up as asked."""
        return SampleCounts(self._catalog.load())

    @property
    def num_samples(self) -> int:
        """Samples of all units at creation."""
        return self._hierarchy.layout.num_samples

    @property
    def generation(self) -> int:
        """The generation that is read."""
        return self._catalog.load().generation

    @property
    def building(self) -> int | None:
        """The generation that is being written beside the one that is read, or None."""
        return self._catalog.load().building

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return self._hierarchy.layout.num_blocks

    def block_units(self, block: int) -> range:
        """Rows of a block."""
        return self._hierarchy.layout.block_units(block)

    def grid(self, *, weighted: bool) -> SumGrid:
        """Grid of this store's sums, with weights or without."""
        return SumGrid.for_weights(self.num_samples) if weighted else SumGrid.plain()

    def write_rows(self, block: int, rows: npt.NDArray[np.float32]) -> BlockFacts:
        """Write all rows of a block, durable before they are listed in the block's part.

        Writing the same rows again changes nothing (damaged objects are restored). Rows of erased
        units are ignored.

        Args:
            block: which block.
            rows: float32 (M, P) in row order.

        Raises:
            RowRejectedError: wrong shape or dtype, not finite, above the norm cap; nothing written.
            WriterConflictError: other rows are listed, or another writer is at work.
            StorageFullError: no space left; write the block again when there is.
        """
        self._require_writable()
        return write_block(self._hierarchy, self._catalog, block, rows)

    def finished_blocks(self) -> frozenset[int]:
        """Blocks listed in the generation being written, merged or not."""
        return generations.finished_blocks(self._hierarchy, self._catalog)

    def is_finished(self, block: int) -> bool:
        """Whether one block is among `finished_blocks`, at the cost of that block alone."""
        return generations.is_finished(self._hierarchy, self._catalog, block)

    def merge(self) -> None:
        """Fold the parts into the manifest; a new generation only once it is complete.

        Raises:
            RowCorruptError: a part is damaged; write its block again.
        """
        self._require_writable()
        generations.merge(self._hierarchy, self._catalog)

    def begin_generation(self) -> int:
        """Start a whole new set of rows; the present one stays readable until it is merged.

        Returns:
            The generation that `write_rows` now writes; the one under way if there is one.
        """
        self._require_writable()
        return generations.begin(self._hierarchy, self._catalog)

    def abandon_generation(self) -> None:
        """Give up the generation under way and remove its rows; does nothing if there is none."""
        self._require_writable()
        generations.abandon(self._hierarchy, self._catalog)

    def give_up_rows(self) -> None:
        """Go over to the generation under way with every row absent; the old rows are removed."""
        self._require_writable()
        generations.give_up(self._hierarchy, self._catalog)

    def read_rows(self, units: Sequence[str | int]) -> npt.NDArray[np.float32]:
        """Decode rows, float32 (M, P), in the order asked.

        Args:
            units: names; a whole number is the name that its digits spell, never a position.

        Raises:
            TypeError: a unit is named by neither.
            UnknownUnitError: a unit is not in this store, or its row was never written.
            UnitErasedError: a unit was erased.
            RowCorruptError: a row is missing, truncated, flipped, swapped or stale.
        """
        return self._read(self._of(units))

    def read_rows_at(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """Decode the rows at some positions (of `units`); otherwise as `read_rows`."""
        return self._read(self._at(rows))

    def sum_rows(
        self,
        units: Sequence[str | int],
        weights: Sequence[int] | None = None,
        *,
        num_threads: int = 1,
    ) -> npt.NDArray[np.float64]:
        """Sum weight times row, float64 (P,): the same bits in any order, grouping and threads.

        Partial sums of the same kind (`grid`) add up exactly with `SumGrid.add`.

        Args:
            units: names, each once; a whole number is the name that its digits spell.
            weights: integer per unit, at most 2^26 in magnitude; None counts each row once.
            num_threads: threads that share the columns.

        Raises:
            ValueError: a unit comes twice, or a weight is too large.
            TypeError: a weight is no whole number, or as `read_rows`.
            UnknownUnitError, UnitErasedError, RowCorruptError: as `read_rows`.
            SumOverflowError: the sum could leave the range in which it is exact.
        """
        return self._sum(self._of(units), weights, num_threads)

    def sum_rows_at(
        self,
        rows: Sequence[int],
        weights: Sequence[int] | None = None,
        *,
        num_threads: int = 1,
    ) -> npt.NDArray[np.float64]:
        """Sum the rows at some positions (of `units`); otherwise as `sum_rows`."""
        return self._sum(self._at(rows), weights, num_threads)

    def sum_written_at(
        self, rows: Sequence[int], weights: Sequence[int] | None = None
    ) -> npt.NDArray[np.float64]:
        """Sum rows of the generation being written, before it is merged; otherwise as `sum_rows_at`.

        Raises:
            UnknownUnitError: a row is not written in it.
        """
        chosen = whole_numbers(rows)
        entries = generations.written_entries(self._hierarchy, self._catalog, chosen)
        return self._sum(entries, weights, 1)

    def erase(self, units: Sequence[str | int], pseudonym: Callable[[str], str]) -> None:
        """Remove rows and names; afterwards only a pseudonym tells that the unit was erased.

        Safe to repeat, and finished by the next `open(..., "r+")` if a crash cuts it short.

        Args:
            units: names, as for `read_rows`; already erased ones are skipped.
            pseudonym: a keyed function from a unit's name to the name that stays.

        Raises:
            TypeError: a unit is named by neither text nor a whole number; nothing was erased.
            UnknownUnitError: a unit is not in this store; nothing was erased.
        """
        self._require_writable()
        erasure.erase(self._hierarchy, self._catalog, unit_names(units), pseudonym)

    def state(self, unit: str | int) -> str:
        """absent, written or erased; a name that was erased is known by its pseudonym alone.

        Raises:
            TypeError: a unit is named by neither text nor a whole number.
            UnknownUnitError: it is not in this store.
        """
        try:
            return self._catalog.load().find(unit_name(unit)).state
        except UnitErasedError:
            return "erased"

    @property
    def states(self) -> tuple[str, ...]:
        """absent, written or erased, by row."""
        states = ["erased"] * self.num_units
        for row, _, is_written in self._catalog.load().lines():
            states[row] = "written" if is_written else "absent"
        return tuple(states)

    def facts(self) -> StoreFacts:
        """Totals for reports."""
        return store_facts(self._hierarchy, self._catalog.load())

    def verify(self) -> list[verification.Damage]:
        """Read every stored byte and list all damage; empty if there is none."""
        return verification.verify(self._hierarchy, self._catalog)

    def _of(self, units: Sequence[str | int]) -> list[RowEntry]:
        manifest = self._catalog.load()
        return [manifest.find(unit) for unit in unit_names(units)]

    def _at(self, rows: Sequence[int]) -> list[RowEntry]:
        manifest, num_units = self._catalog.load(), self._hierarchy.layout.num_units
        return [manifest.at(row, num_units) for row in whole_numbers(rows)]

    def _read(self, entries: list[RowEntry]) -> npt.NDArray[np.float32]:
        out = np.empty((len(entries), self.spec.num_parameters), np.float32)
        reading.read_rows(self._hierarchy, entries, out)
        return out

    def _sum(
        self, entries: list[RowEntry], weights: Sequence[int] | None, num_threads: int
    ) -> npt.NDArray[np.float64]:
        grid = self.grid(weighted=weights is not None)
        factors = [1] * len(entries) if weights is None else weights
        return reading.sum_rows(self._hierarchy, entries, factors, grid, num_threads)

    def _require_writable(self) -> None:
        if self._mode != "r+":
            raise PermissionError("this store was opened for reading; open it with mode 'r+'")
