"""A small store with something of everything."""

from pathlib import Path

import pytest

from tests.storage.store_cases import ROWS, SPEC, filled_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store `a.zarr`, merged, with one block in a part of a generation under way."""
    store = filled_store(tmp_path / "run/a.zarr", ROWS, SPEC)
    store.begin_generation()
    store.write_rows(0, ROWS[:2])
    return tmp_path / "run"


@pytest.fixture
def segments_of_three_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Format 2 for stores of every size, in segments small enough to have several."""
    monkeypatch.setattr("storage.layout.WHOLE_MANIFEST_UNITS", 0)
    monkeypatch.setattr("storage.layout.SEGMENT_UNITS", 3)
