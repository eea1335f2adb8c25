"""No content of a unit's name matters to the format."""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import ApproximatorStore, StoreSpec
from storage.names import check_unit_names
from tests.storage.store_cases import gaussian_rows, write_all

SPEC = StoreSpec(12, "float32", block=2)
SEAL_LIKE = '"seal": "' + "a" * 64 + '"'

MARKERS = [
    SEAL_LIKE,
    '"seal": "' + "0" * 64 + '"',
    '"seal": "',
    'x"seal": "' + "0" * 63,
    "PAR1",
    "approximator-manifest",
    "approximator-row-1",
    '{"erase": {}, "seal": "' + "0" * 64 + '"}',
    "generation-0-block-0.parquet",
    "erasure.json",
    "zarr.json",
    "written",
    "erased",
    "absent",
]
AWKWARD = [
    "'",
    '"',
    "\\",
    "a,b",
    " a ",
    "%2e%2e%2f",
    "..%2f",
    "...",
    "/etc/passwd",
    "~",
    "$HOME",
    "None",
    "nan",
    "\u202eabc",
    "\u200bzero width",
    "\ufeffmark",
    "\u2028line",
    "\x85next",
    "7",
    "07",
    "007",
    "7.0",
    "+7",
    "7",
    "\u0667",
    "\uff17",
    "é",
    "e\u0301",
    "a",
    "\u0430",
    "A",
    "\ufb01",
    "fi",
    "💣" * 256,
    "x" * 1024,
]
REFUSED = ["", "..", "../x", "a/../b", "a\0b", "a\nb", "\x1b[2J", "\ud800", "x" * 10_240, "é" * 600]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
NAMES = st.sampled_from(MARKERS) | st.sampled_from(AWKWARD) | TEXTS
PIECES = st.lists(NAMES, min_size=1, max_size=3).map("".join)


def pseudonym(unit: str) -> str:
    return hashlib.sha256(unit.encode()).hexdigest()


def allowed(name: str) -> bool:
    try:
        check_unit_names([name])
    except ValueError:
        return False
    return True


def live(url: Path, names: list[str], erased: int, rows_NP: np.ndarray) -> None:
    """Make a store, write, read by name, sum, erase one, and verify."""
    store = ApproximatorStore.create(url, names, [1] * len(names), SPEC)
    write_all(store, rows_NP)
    store = ApproximatorStore.open(url)
    assert store.units == tuple(names)
    for row, name in enumerate(names):
        assert np.array_equal(store.read_rows([name])[0], rows_NP[row])
    assert np.array_equal(store.sum_rows(names), store.sum_rows_at(range(len(names))))
    store = ApproximatorStore.open(url, "r+")
    store.erase([names[erased]], pseudonym)
    store = ApproximatorStore.open(url, "r+")
    kept = [row for row in range(len(names)) if row != erased]
    assert store.units == tuple(name if row in kept else "" for row, name in enumerate(names))
    assert np.array_equal(store.read_rows([names[row] for row in kept]), rows_NP[kept])
    assert store.state(pseudonym(names[erased])) == store.states[erased] == "erased"
    store.begin_generation()
    write_all(store, rows_NP)
    assert (store.generation, store.verify()) == (1, [])


UNIQUE = st.lists(PIECES.filter(allowed), min_size=1, max_size=5, unique=True)


def lives_as_any_other(names: list[str], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        live(Path(folder) / "a.zarr", names, seed % len(names), gaussian_rows(len(names), 12))


@settings(max_examples=10, deadline=None, database=None)
@given(names=UNIQUE, seed=st.integers(0, 4))
def test_a_store_of_hostile_names_lives_as_any_other(names: list[str], seed: int) -> None:
    lives_as_any_other(names, seed)


@pytest.mark.torture
@settings(max_examples=1000, deadline=None, database=None)
@given(names=UNIQUE, seed=st.integers(0, 4))
def test_many_stores_of_hostile_names_live_as_any_other(names: list[str], seed: int) -> None:
    lives_as_any_other(names, seed)


@settings(max_examples=40, deadline=None, database=None)
@given(
    names=st.lists(PIECES.filter(allowed), max_size=3, unique=True),
    bad=st.sampled_from(REFUSED) | st.text(max_size=50).filter(lambda name: not allowed(name)),
)
def test_a_name_that_is_refused_leaves_nothing_behind(names: list[str], bad: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = Path(folder) / "a.zarr"
        with pytest.raises(ValueError, match=rf"^unit {len(names)} ") as caught:
            ApproximatorStore.create(url, [*names, bad], [1] * (len(names) + 1), SPEC)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 200
        assert list(Path(folder).iterdir()) == []


@pytest.mark.parametrize("erased", [0, 1])
def test_a_name_in_the_form_of_the_seal_stops_nothing(tmp_path: Path, erased: int) -> None:
    # In a manifest of one unit more than once, in the column's pages and in its statistics.
    live(tmp_path / "a.zarr", [SEAL_LIKE, "other"], erased, gaussian_rows(2, 12))


def test_names_that_look_alike_are_all_kept_apart(tmp_path: Path) -> None:
    names = list(dict.fromkeys([*MARKERS, *AWKWARD]))
    live(tmp_path / "a.zarr", names, len(names) // 2, gaussian_rows(len(names), 12))
