from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.deletion import DeletionState, apply_deletion
from pipeline.release import open_releases
from pipeline.requests import DeletionRequest
from tests.pipeline.fake_store import FakeStore, make_facts, make_rows, use_key


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_key(monkeypatch, tmp_path)


def test_a_deletion_end_to_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows, facts = make_rows(20, 12), make_facts()
    store = FakeStore(rows)
    with open_releases(run, facts, store) as releases:
        receipt = releases.delete(DeletionRequest(["3", 7, "3"], request_id="R"))
        again = releases.delete(DeletionRequest([7, 3], request_id="R"))
        second = releases.delete(DeletionRequest([1]))
    assert receipt.units_deleted == 2 and again.repeated and again.release == 1
    assert second.release == 2
    model = load_file(run / "releases" / "2" / "model.safetensors")
    state = DeletionState(19 * (rows["3"] + rows["7"] + rows["1"]), 3)
    expected = apply_deletion(facts.rule, facts.trained_P, state)
    assert np.array_equal(np.concatenate([model["weight"].ravel(), model["bias"]]), expected)
    assert "3" not in store.rows
