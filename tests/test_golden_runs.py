"""Runs that earlier versions left are opened, verified and deleted from, to the same bits."""

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from cluster.inspection import status_of, verify_run
from pipeline import RunDirectory, delete
from pipeline.deletion.delete import open_run
from pipeline.deletion.receipts import signed_receipt, verify_receipt
from pipeline.deletion.request_list import requests_of
from storage.signing import load_signing_key
from storage.store import ApproximatorStore

GOLDEN = Path(__file__).parent / "golden"
RUNS = sorted(path for path in GOLDEN.glob("*/*") if (path / "config.yaml").is_file())


@pytest.mark.parametrize("golden", RUNS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_run_of_an_earlier_version_goes_on(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(golden, tmp_path / "run")
    key = Path(shutil.copyfile(golden.parent / "key", tmp_path / "key"))
    # Git keeps no modes.
    for path in [key, folder / "ledger.sqlite", *(folder / "internal").rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    (folder / "internal").chmod(0o700)
    monkeypatch.setenv("UNLEARN_KEY_FILE", str(key))
    run = RunDirectory.open(folder)
    assert status_of(run)["rows_erased"] == 2
    assert verify_run(run, read_only=True).damage == []
    assert verify_run(run).damage == []
    receipt = delete(run, [(golden.parent / f"{golden.name}.next").read_text()])
    assert receipt.release == 2
    released = load_file(folder / "releases" / "2" / "model.safetensors")
    expected = load_file(golden.parent / f"{golden.name}.after-next.safetensors")
    assert released.keys() == expected.keys()
    assert all(released[name].tobytes() == expected[name].tobytes() for name in expected)
    assert verify_run(run).damage == []
    with open_run(run, ApproximatorStore.open(run.store_url, "r+")) as releases:
        kinds = [entry.kind for entry in releases._run.ledger.file.entries()]
    earlier, *_ = requests_of(run)
    assert (earlier.state, earlier.release, earlier.due) == ("done", 1, None)
    text = signed_receipt(run, earlier.request).encode()
    stated = verify_receipt(text, load_signing_key(folder).public_hex)
    assert (stated["model"]["release"], stated["request"]["received"]) == (1, None)
    # Bound once, at the first opening by a version that binds.
    assert kinds.count("bound") == 1


def test_there_are_runs_of_each_version() -> None:
    assert {path.parent.name for path in RUNS} >= {"0.1.0", "0.2.0"}
    assert len(RUNS) >= 5
