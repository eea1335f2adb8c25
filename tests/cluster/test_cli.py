"""The command line on a small run: what a user gets, and what a user's mistakes get."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cluster import cli
from pipeline import RunConfig, precompute, train

SMALL = """
name: small
data: {source: digits, num_train: 60, sample_ids: position}
training: {epochs: 2, batch_size: 16, learning_rate: 0.1, l2: 0.01}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.yaml").write_text(SMALL)
    run = train(RunConfig.load(folder / "small.yaml"), folder / "run")
    precompute(run)
    return folder / "run"


def unlearn(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run a command line in this process; return exit code, standard output and error."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["unlearn", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            sys.exit(0)
    captured = capsys.readouterr()
    code = stop.value.code
    return (0 if code is None else int(code)), captured.out, captured.err


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run that a test may change, with a key file of its own."""
    import shutil

    monkeypatch.setenv("UNLEARN_KEY_FILE", str(tmp_path / "key"))
    return Path(shutil.copytree(finished, tmp_path / "run"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_delete_then_status_verify_export(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = unlearn(capsys, "delete", str(run), "--ids", "3,17", "--json")
    assert code == 0
    assert "without noise" in err
    receipt = json.loads(out)
    assert receipt["units_deleted"] == 2
    assert (run / "releases" / str(receipt["release"]) / "model.safetensors").is_file()
    code, out, _ = unlearn(capsys, "status", str(run), "--json")
    assert (code, json.loads(out)["rows_written"]) == (0, 58)
    assert unlearn(capsys, "verify", str(run))[0] == 0
    target = run.parent / "row.npy"
    assert unlearn(capsys, "export", str(run), "--unit", "4", "--out", str(target))[0] == 0
    assert np.load(target).shape == (650,)
    assert unlearn(capsys, "export", str(run), "--unit", "3", "--out", str(target))[0] == 1


@pytest.mark.parametrize(
    ("ids", "code", "said"),
    [
        ("99999", 1, "'99999'"),
        ("4,a/../b", 1, "'a/../b'"),
        ("", 2, "names no unit"),
        ("1,,2", 2, "empty name"),
    ],
)
def test_refused_deletions_change_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], ids: str, code: int, said: str
) -> None:
    unlearn(capsys, "delete", str(run), "--ids", "1")
    before = files(run)
    found, _, err = unlearn(capsys, "delete", str(run), "--ids", ids)
    assert (found, said in err) == (code, True)
    assert err.count("\n") == 1
    after = files(run)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert not {name for name in changed if not name.startswith("ledger.sqlite")}


def test_a_deleted_unit_is_refused_by_name(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unlearn(capsys, "delete", str(run), "--ids", "7")[0] == 0
    code, _, err = unlearn(capsys, "delete", str(run), "--ids", "7")
    assert (code, "already deleted: '7'" in err) == (1, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["train", "CONFIG", "--set", "training.batch_size=5000"], "5000"),
        (["train", "CONFIG", "--set", "trainin.epochs=1"], "did you mean 'training'"),
        (["train", "CONFIG", "--set", "training.epochs"], "section.key=value"),
        (["train", "CONFIG", "--set", "training.clip_norm=0"], "training.clip_norm"),
        (["train", "CONFIG", "--set", "data.source=digit"], "did you mean 'digits'"),
        (["train", "CONFIG", "--out", "RUN", "--set", "seed=3"], "another configuration"),
        (["run", "CONFIG", "--out", "NEW", "--set", "certificate.kind=certified"], "max_units"),
        (
            [
                "run",
                "CONFIG",
                "--out",
                "NEW",
                "--set",
                "certificate={kind: certified, max_units: 3}",
            ],
            "feature_norm_cap",
        ),
        (["status", "nowhere"], "no run directory"),
        (["delete", "RUN"], "either --ids 3,17"),
        (["delete", "RUN", "--ids", "1", "--epsilon", "-1", "--delta", "0.1"], "epsilon"),
        (["submit", "CONFIG", "--manifest", "--image", "i:1", "--include", "m.py"], "image"),
        (["submit", "CONFIG", "--manifest", "--image", "i:1", "--out", "/x"], "own volume"),
        (["nonsense"], "No such command"),
    ],
)
def test_a_mistake_is_one_clear_message_and_exit_2(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (run.parent / "small.yaml").write_text(SMALL)
    places = {"CONFIG": str(run.parent / "small.yaml"), "RUN": str(run)}
    places["NEW"] = str(run.parent / "new")
    before = files(run)
    out = ["--out", str(run.parent / "new")] if words[0] == "train" and "--out" not in words else []
    code, _, err = unlearn(capsys, *[places.get(word, word) for word in words], *out)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert files(run) == before
    assert not (run.parent / "new").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["sweep", "CONFIG", "--out", "FILE"], 1, "Not a directory"),
        (["backup", "RUN", "--to", "FILE/backup"], 1, "Not a directory"),
        (["data", "fetch", "mnist", "--to", "FILE/x"], 1, "exist"),
        (["submit", "CONFIG", "--out", "/x", "--address", "http://[::1"], 1, "no dashboard's"),
        (["submit", "CONFIG", "--out", "/x", "--address", "http://host:port"], 1, "no dashboard's"),
        (["report", "RUN"], 2, "report.json is damaged"),
        (["status", "RUN"], 2, "measurements.json is damaged"),
    ],
)
def test_what_cannot_be_written_or_read_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    (run.parent / "small.yaml").write_text(SMALL)
    (run.parent / "file").write_text("")
    (run / "report.json").write_text("{}")
    (run / "measurements.json").write_text("[1]")
    places = {"CONFIG": str(run.parent / "small.yaml"), "RUN": str(run)}
    file = str(run.parent / "file")
    found, _, err = unlearn(
        capsys, *[places.get(word, word).replace("FILE", file) for word in words]
    )
    assert (found, said in err) == (code, True), err
    assert "Traceback" not in err


def test_files_that_are_gone_are_damage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unlearn(capsys, "delete", str(run), "--ids", "1")
    for path in run.glob("ledger.sqlite*"):
        path.unlink()
    code, out, _ = unlearn(capsys, "verify", str(run))
    assert (code, "ledger.sqlite" in out) == (1, True)
    (run / "approximators.parquet").unlink()
    code, out, _ = unlearn(capsys, "verify", str(run))
    assert (code, "manifest, is gone" in out) == (1, True)


def test_a_certificate_of_strange_bytes_is_damage(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unlearn(capsys, "delete", str(run), "--ids", "1")
    for name in ("certificate.json", "certificate.txt"):
        path = run / "releases" / "1" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:40] + b"\xff" + whole[41:])
        code, out, _ = unlearn(capsys, "verify", str(run))
        assert (code, name in out) == (1, True)
        path.write_bytes(whole)


def test_a_finished_training_is_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "small.yaml").write_text(SMALL)
    before = files(run / "trajectory")
    code, out, _ = unlearn(
        capsys, "train", str(run.parent / "small.yaml"), "--out", str(run), "--json"
    )
    assert (code, json.loads(out)["num_steps"]) == (0, 8)
    assert files(run / "trajectory") == before


def test_help_needs_no_ray() -> None:
    script = "import sys, cluster.cli; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
