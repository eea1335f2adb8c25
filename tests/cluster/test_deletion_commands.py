"""Requests that are accepted now and carried out together later, as a user of the commands sees it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline import RunConfig, delete, precompute, train
from pipeline.certificates.declaration import declare
from storage.store import ApproximatorStore
from tests.cluster.test_cli import SMALL, files, unlearn

ROOT = Path(__file__).resolve().parent.parent.parent
PRIVATE = ("--epsilon", "1", "--delta", "1e-5")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run whose sensitivities are declared, so that a release may ask for noise."""
    folder = tmp_path_factory.mktemp("queue")
    (folder / "small.yaml").write_text(SMALL)
    certificate = "certificate={kind: published, max_units: 20}"
    config = RunConfig.load(folder / "small.yaml", [certificate, "training.clip_norm=5"])
    run = train(config, folder / "run")
    precompute(run)
    problem = run.problem()
    declare(run, problem, lambda units: problem.initial_P)  # the formula retrains nothing
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNLEARN_KEY_FILE", str(tmp_path / "key"))
    return Path(shutil.copytree(finished, tmp_path / "run"))


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Run a command that succeeds; return what it prints as JSON."""
    code, out, err = unlearn(capsys, *words, "--json")
    assert code == 0, err
    return dict(json.loads(out))


def test_an_accepted_request_outlives_its_process(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["delete", str(run), "--ids", "3,17", "--queue", "--request-id", "R1", "--json"]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "cluster", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=run.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    accepted = json.loads(ended.stdout)
    assert (accepted["release"], accepted["units_deleted"]) == (None, 2)
    status = said(capsys, "status", str(run))
    assert (status["requests_waiting"], status["units_deleted"], status["releases"]) == (1, 0, 0)
    assert unlearn(capsys, "verify", str(run))[0] == 0
    made = said(capsys, "release", str(run))
    assert made == {"requests": 1, "units_deleted": 2, "releases": [1]}
    status = said(capsys, "status", str(run))
    assert (status["requests_waiting"], status["units_deleted"], status["releases"]) == (0, 2, 1)
    assert unlearn(capsys, "verify", str(run))[0] == 0


def test_one_release_for_each_privacy_asked_for(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for ids, privacy in (("1", ()), ("2", PRIVATE), ("3,4", ()), ("5", PRIVATE)):
        said(capsys, "delete", str(run), "--ids", ids, "--queue", *privacy)
    assert said(capsys, "status", str(run))["requests_waiting"] == 4
    code, out, _ = unlearn(capsys, "release", str(run))
    assert (code, "4 requests, 5 units deleted" in out) == (0, True)
    assert sorted(path.name for path in (run / "releases").iterdir()) == ["1", "2"]
    noisy = [
        json.loads((run / "releases" / k / "certificate.json").read_text())["epsilon"] is not None
        for k in ("1", "2")
    ]
    assert noisy == [False, True]
    assert unlearn(capsys, "verify", str(run))[0] == 0


def test_queued_requests_release_what_one_deletion_releases(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run, run.parent / "other"))
    for unit in ("9", "1", "30"):
        said(capsys, "delete", str(run), "--ids", unit, "--queue")
    said(capsys, "release", str(run))
    delete(other, ["1", "9", "30"])
    queued, direct = (
        load_file(folder / "releases" / "1" / "model.safetensors") for folder in (run, other)
    )
    assert queued.keys() == direct.keys()
    for name, values in queued.items():
        np.testing.assert_array_equal(values, direct[name])


def test_a_repeated_request_id_is_accepted_once(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["delete", str(run), "--ids", "7,8", "--queue", "--request-id", "R7"]
    assert said(capsys, *words)["repeated"] is False
    again = said(capsys, *words)
    assert (again["repeated"], again["release"], again["units_deleted"]) == (True, None, 2)
    assert said(capsys, "status", str(run))["requests_waiting"] == 1
    other = ["delete", str(run), "--ids", "9", "--queue", "--request-id", "R7"]
    code, _, err = unlearn(capsys, *other)
    assert (code, "'R7' was used for another set of units" in err) == (1, True)
    # A unit that waits cannot be asked for under another id.
    code, _, err = unlearn(capsys, "delete", str(run), "--ids", "8", "--queue")
    assert (code, "'8'" in err) == (1, True)
    assert said(capsys, "release", str(run))["units_deleted"] == 2
    again = said(capsys, *words)
    assert (again["repeated"], again["release"]) == (True, 1)
    assert said(capsys, "status", str(run))["requests_waiting"] == 0


def test_a_release_with_nothing_waiting_makes_none(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unlearn(capsys, "release", str(run))[:2] == (0, "no waiting requests\n")
    assert said(capsys, "release", str(run)) == {"requests": 0, "units_deleted": 0, "releases": []}
    assert not list((run / "releases").glob("*"))


@pytest.mark.parametrize("with_queue", [["--dry-run"], ["--readers", "2"]])
def test_queue_only_accepts(
    run: Path, capsys: pytest.CaptureFixture[str], with_queue: list[str]
) -> None:
    before = files(run)
    code, _, err = unlearn(capsys, "delete", str(run), "--ids", "1", "--queue", *with_queue)
    assert (code, err.count("\n")) == (2, 1)
    assert with_queue[0] in err
    assert files(run) == before


def test_a_deletion_carries_out_what_waits_first(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "delete", str(run), "--ids", "1", "--queue")
    assert said(capsys, "delete", str(run), "--ids", "2")["release"] == 2
    status = said(capsys, "status", str(run))
    assert (status["requests_waiting"], status["units_deleted"], status["releases"]) == (0, 2, 2)


def test_a_deletion_names_no_unit_but_its_own(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Asking for all names reads the whole manifest: among a million units that took .8 s.
    def refuse(*_: object) -> None:
        raise AssertionError("a deletion asked for every unit")

    with monkeypatch.context() as patch:
        for name in ("units", "states"):
            patch.setattr(ApproximatorStore, name, property(refuse))
        assert delete(run, ["3"]).units_deleted == 1
        assert delete(run, ["4", "5"]).units_deleted == 2


def test_an_upgraded_run_releases_the_same_models(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(run, run.with_name("other")))
    monkeypatch.setattr("storage.layout.WHOLE_MANIFEST_UNITS", 4)
    monkeypatch.setattr("storage.layout.SEGMENT_UNITS", 5)
    said(capsys, "delete", str(run), "--ids", "3")
    for text in ("format version 2 (was 1)", "format version 2 (nothing to do)"):
        code, out, _ = unlearn(capsys, "upgrade", str(run))
        assert (code, out.strip()) == (0, text)
    said(capsys, "delete", str(run), "--ids", "17,5")
    said(capsys, "delete", str(other), "--ids", "3")
    said(capsys, "delete", str(other), "--ids", "5,17")
    model = Path("releases", "2", "model.safetensors")
    assert (run / model).read_bytes() == (other / model).read_bytes()
    status, expected = said(capsys, "status", str(run)), said(capsys, "status", str(other))
    assert {**status, "run": ""} == {**expected, "run": ""}
    assert said(capsys, "units", str(run)) == said(capsys, "units", str(other))
    assert said(capsys, "verify", str(run))["damage"] == []
    code, _, err = unlearn(capsys, "delete", str(run), "--ids", "3")
    assert code == 1 and "already deleted" in err


def test_a_run_without_approximators_has_nothing_to_upgrade(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "approximators.zarr")
    (run / "approximators.parquet").unlink()
    code, _, err = unlearn(capsys, "upgrade", str(run))
    assert code == 2 and "unlearn precompute" in err
