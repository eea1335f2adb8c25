"""Erasure: afterwards no byte of the run says who was deleted or what the row was."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.certificates.sensitivity import Declaration, UnitsBound
from pipeline.deletion.releases import Releases, open_releases
from pipeline.deletion.requests import DeletionRequest
from pipeline.deletion.row_copies import RowCopies
from tests.pipeline.fake_store import FakeStore, make_facts, make_rows

NAMES = ["jane.doe@example.org", "o'neill; DROP TABLE suppressed", "../../etc/passwd", "keeps-row"]
PATTERN = np.float64(0.7071067811865476)  # a row of these is eight known bytes, repeated


class RowFile:
    """A store whose rows lie in one file of the run, rewritten at erasure."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: list[str] = list(NAMES)
        self._erased: set[str] = set()
        rows_NP = np.full((len(NAMES), 12), PATTERN)
        rows_NP[-1] = 0.25
        self._save(rows_NP)

    def _save(self, rows_NP: np.ndarray) -> None:
        self._path.write_bytes("\n".join(self._names).encode() + b"\0" + rows_NP.tobytes())

    def rows(self) -> np.ndarray:
        data = self._path.read_bytes().split(b"\0", 1)[1]
        return np.frombuffer(data).reshape(len(NAMES), 12).copy()

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(self._names)

    @property
    def num_units(self) -> int:
        return len(self._names)

    @property
    def erased(self) -> set[str]:
        return self._erased

    def sum_rows(
        self, units: Sequence[int | str], weights: Sequence[int] | None = None
    ) -> np.ndarray:
        picked = [self._names.index(str(unit)) for unit in units]
        return np.asarray(np.array(weights or [1] * len(picked), float) @ self.rows()[picked])

    def erase(self, units: Sequence[int | str], pseudonym: Callable[[str], str]) -> None:
        rows_NP = self.rows()
        for unit in map(str, units):
            if unit in self._names:
                index = self._names.index(unit)
                rows_NP[index], self._names[index] = 0.0, ""
                self._erased.add(pseudonym(unit))
        self._save(rows_NP)

    def state(self, unit: str) -> str:
        return "erased" if unit in self._erased else "written"


def traces(run_dir: Path) -> list[tuple[str, str]]:
    """Every (file, trace) outside internal/ where a deleted unit's name or row is found."""
    row = np.full(2, PATTERN)
    needles = {f"name {name}": name.encode() for name in NAMES[:3]}
    needles |= {"row": row.tobytes(), "row as float32": row.astype(np.float32).tobytes()}
    found = []
    for path in sorted(run_dir.rglob("*")):
        where = path.relative_to(run_dir)
        if where.parts[0] != "internal":
            data = str(where).encode() + (path.read_bytes() if path.is_file() else b"")
            found += [(str(where), what) for what, needle in needles.items() if needle in data]
    return found


def open_run(run_dir: Path, store: RowFile) -> Releases:
    facts = make_facts(
        samples_per_unit=dict.fromkeys(NAMES, 1),
        declaration=Declaration("calibrated", (UnitsBound(4, 0.5),)),
    )
    return open_releases(run_dir, facts, store, also_erase=[RowCopies(run_dir)])


def spread_copies(run_dir: Path) -> None:
    row = np.full(12, PATTERN)
    names = [
        "state/block-0.safetensors",
        "exports/jane.doe@example.org.npy",
        "pilot/parts/0a.safetensors",
        "pilot/search/tanh/pilot/parts/0b.safetensors",
    ]
    for name in names:
        (run_dir / name).parent.mkdir(parents=True)
        (run_dir / name).write_bytes(row.tobytes())
    (run_dir / "rows.bin.partial").write_bytes(row.astype(np.float32).tobytes())


def test_no_byte_of_the_run_remembers(run_dir: Path) -> None:
    store = RowFile(run_dir / "rows.bin")
    spread_copies(run_dir)
    # The scan sees every kind of trace before: the state, the export, the row file, the part file, and
    # what an interrupted pilot and its search keep.
    assert len({path for path, _ in traces(run_dir)}) == 6
    with open_run(run_dir, store) as releases:
        releases.delete(DeletionRequest(NAMES[:2], request_id=NAMES[0], epsilon=1.0, delta=1e-5))
        releases.delete(DeletionRequest(NAMES[2:3], epsilon=1.0, delta=1e-5))
        # Also while the ledger is open: its write-ahead log is part of the run.
        assert traces(run_dir) == []
    assert traces(run_dir) == []
    assert not np.any(np.isclose(store.rows(), PATTERN))
    assert np.all(store.rows()[-1] == 0.25)


def test_a_request_that_waits_leaves_no_name_either(run_dir: Path) -> None:
    store = RowFile(run_dir / "rows.bin")
    with open_run(run_dir, store) as releases:
        releases.accept(DeletionRequest(NAMES[:2], request_id=NAMES[0]))
        assert {path for path, _ in traces(run_dir)} == {"rows.bin"}


def test_a_refused_request_leaves_no_name(run_dir: Path) -> None:
    store = RowFile(run_dir / "rows.bin")
    with open_run(run_dir, store) as releases, pytest.raises(ValueError, match="not in the"):
        releases.delete(DeletionRequest([NAMES[0], "somebody"], request_id=NAMES[0]))
    assert {path for path, _ in traces(run_dir)} == {"rows.bin"}


def test_pruning_removes_the_last_trace(run_dir: Path) -> None:
    store = RowFile(run_dir / "rows.bin")
    with open_run(run_dir, store) as releases:
        releases.delete(DeletionRequest(NAMES[:1], epsilon=1.0, delta=1e-5))
        # One deleted unit: the noise-free sum is its row, times an integer weight.
        assert list((run_dir / "internal").iterdir())
        releases.prune()
    assert not list((run_dir / "internal").iterdir())


def test_pseudonyms_alone_remain(run_dir: Path) -> None:
    store = FakeStore(make_rows(20))
    with open_releases(run_dir, make_facts(), store) as releases:
        releases.delete(DeletionRequest(["3"]))
    (pseudonym,) = store.erased
    assert len(pseudonym) == 32
    assert pseudonym.encode() in (run_dir / "ledger.sqlite").read_bytes()
