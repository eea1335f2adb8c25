"""The store against a dict: any sequence of operations, dying between any two file operations."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storage import ApproximatorStore, StoreSpec, opening
from storage.errors import UnitErasedError, UnknownUnitError, WriterConflictError
from storage.local_backend import LocalBackend
from tests.storage.fragile_backend import FragileBackend, PowerCutError
from tests.storage.store_cases import Rows, gaussian_rows, pseudonym

NUM_UNITS, BLOCK, NUM_PARAMETERS = 7, 3, 40
NUM_BLOCKS = 3


class StoreMachine(RuleBasedStateMachine):
    """Model: what each row may be read as; what each block has listed."""

    @initialize(encoding=st.sampled_from(["float32", "int8"]), cap=st.sampled_from([None, 1e-5]))
    def create(self, encoding: str, cap: float | None) -> None:
        self.folder = Path(tempfile.mkdtemp())
        FragileBackend.fuse, FragileBackend.unsynced = None, {}
        opening.LocalBackend = FragileBackend  # type: ignore[misc, attr-defined]
        spec = StoreSpec(NUM_PARAMETERS, encoding, BLOCK, row_error_cap=cap)  # type: ignore[arg-type]
        names = [f"unit {i}" for i in range(NUM_UNITS)]
        self.store = ApproximatorStore.create(self.folder / "a.zarr", names, [1] * NUM_UNITS, spec)
        self.rows: dict[int, Rows] = {}
        self.erased: set[int] = set()
        self.listed: dict[int, Rows] = {}
        self.building = False

    def teardown(self) -> None:
        opening.LocalBackend = LocalBackend  # type: ignore[misc, attr-defined]
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def recover(self) -> None:
        """Open the store again, as the next process would."""
        FragileBackend.fuse = None
        self.store = ApproximatorStore.open(self.folder / "a.zarr", "r+")

    def attempt(self, operation: object, fuse: int | None, undone: int) -> bool:
        """Whether the operation came to its end; if not, the store is open again."""
        FragileBackend.fuse, FragileBackend.undone = fuse, undone
        try:
            operation()  # type: ignore[operator]
        except PowerCutError:
            self.recover()
            return False
        finally:
            FragileBackend.fuse = None
        return True

    @rule(
        block=st.integers(0, NUM_BLOCKS - 1),
        seed=st.integers(0, 2),
        fuse=st.none() | st.integers(0, 25),
        undone=st.integers(0, 50),
    )
    def write(self, block: int, seed: int, fuse: int | None, undone: int) -> None:
        rows = self.store.block_units(block)
        rows_MP = gaussian_rows(NUM_UNITS, NUM_PARAMETERS, seed)[rows.start : rows.stop]
        if block in self.listed and set(rows) - self.erased:
            live = [i for i, row in enumerate(rows) if row not in self.erased]
            if not np.array_equal(self.listed[block][live], rows_MP[live]):
                with pytest.raises(WriterConflictError):
                    self.store.write_rows(block, rows_MP)
                return
        done = self.attempt(lambda: self.store.write_rows(block, rows_MP), fuse, undone)
        if done:
            assert block in self.store.finished_blocks()
        if block in self.store.finished_blocks():
            self.listed.setdefault(block, rows_MP)
        else:
            assert block not in self.listed

    @rule(fuse=st.none() | st.integers(0, 40), undone=st.integers(0, 50))
    def merge(self, fuse: int | None, undone: int) -> None:
        generation = self.store.generation
        complete = len(self.store.finished_blocks()) == NUM_BLOCKS
        done = self.attempt(self.store.merge, fuse, undone)
        if self.building:
            switched = self.store.generation > generation
            assert switched == complete or not done
            if not switched:
                return
            self.building = False
            self.take_over(range(NUM_BLOCKS))
        else:
            self.take_over(block for block in self.listed if done or self.is_readable(block))

    def is_readable(self, block: int) -> bool:
        states = {self.store.states[r] for r in self.store.block_units(block)} - {"erased"}
        assert len(states) <= 1
        return states == {"written"}

    def take_over(self, blocks: object) -> None:
        for block in blocks:  # type: ignore[attr-defined]
            for i, row in enumerate(self.store.block_units(block)):
                if row not in self.erased and block in self.listed:
                    self.rows[row] = self.listed[block][i]

    @rule(
        rows=st.sets(st.integers(0, NUM_UNITS - 1), min_size=1, max_size=3),
        fuse=st.none() | st.integers(0, 60),
        undone=st.integers(0, 50),
    )
    def erase(self, rows: set[int], fuse: int | None, undone: int) -> None:
        units = [f"unit {row}" for row in sorted(rows)]
        done = self.attempt(lambda: self.store.erase(units, pseudonym), fuse, undone)
        erased = {row for row in rows if self.store.states[row] == "erased"}
        assert erased == rows if done else erased in (rows, rows & self.erased)
        self.erased |= erased
        for row in erased:
            self.rows.pop(row, None)
            self.check_that_it_is_gone(f"unit {row}")

    def check_that_it_is_gone(self, unit: str) -> None:
        for path in self.folder.rglob("*"):
            assert unit not in path.name
            if path.is_file():
                assert unit.encode() not in path.read_bytes()

    @precondition(lambda self: not self.building and len(self.listed) == NUM_BLOCKS)
    @rule(fuse=st.none() | st.integers(0, 30), undone=st.integers(0, 50))
    def begin_generation(self, fuse: int | None, undone: int) -> None:
        generation = self.store.generation
        done = self.attempt(self.store.begin_generation, fuse, undone)
        if not done:
            # Going on with it is what the next process would do.
            self.store.begin_generation()
        assert self.store.generation == generation
        self.take_over(range(NUM_BLOCKS))
        self.building = True
        self.listed = {}

    @rule()
    def reopen(self) -> None:
        self.recover()

    @invariant()
    def readable_rows_are_those_of_the_model(self) -> None:
        if not hasattr(self, "store"):
            return
        for row in range(NUM_UNITS):
            if row in self.erased:
                with pytest.raises(UnitErasedError):
                    self.store.read_rows_at([row])
            elif row in self.rows:
                found, expected = self.store.read_rows_at([row])[0], self.rows[row]
                assert np.linalg.norm(found - expected) <= 0.02 * np.linalg.norm(expected)
            else:
                with pytest.raises(UnknownUnitError):
                    self.store.read_rows_at([row])
        assert self.store.verify() == []
        finished = [block for block in range(NUM_BLOCKS) if self.store.is_finished(block)]
        assert frozenset(finished) == self.store.finished_blocks()


def test_any_sequence_of_operations_and_crashes_keeps_the_promises() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        StoreMachine,
        settings=settings(max_examples=10, stateful_step_count=15, deadline=None, database=None),
    )


@pytest.mark.torture
def test_many_sequences_of_operations_and_crashes_keep_the_promises() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        StoreMachine,
        settings=settings(max_examples=300, stateful_step_count=40, deadline=None, database=None),
    )
