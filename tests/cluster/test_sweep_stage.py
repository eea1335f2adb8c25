"""A sweep runs every value once, continues, and outlives values that diverge."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster import sweep_stage
from cluster.cli import app, main
from cluster.console import Reporter
from cluster.session import RaySession
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, DivergedError
from tests.pipeline.test_sweep import BASE, trial


def fake_runs(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace whole runs by reports whose error tells their step size; return their folders."""
    folders: list[Path] = []

    def run_all(
        config: RunConfig, out: Path, reporter: Reporter, session: RaySession
    ) -> dict[str, Any]:
        folders.append(out)
        if config.training.learning_rate > 0.15:
            raise DivergedError("the parameters are no longer finite\nat step 3")
        return {
            "num_units": 20,
            "deletions": [trial(1, config.training.learning_rate)],
            "bytes_per_parameter": 2.0,
            "environment": {},
        }

    monkeypatch.setattr(sweep_stage, "run_all", run_all)
    return folders


def test_each_value_is_run_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = fake_runs(monkeypatch)
    figures = sweep_stage.sweep(BASE, ["step-size", "own-rows"], tmp_path, Reporter(quiet=True))
    points = figures["settings"][0]["points"]
    errors = [p["deletions"][0]["relative_error"] for p in points if p["deletions"]]
    assert errors == [0.0125, 0.025, 0.05, 0.1]
    assert [p["is_configured"] for p in points] == [False, False, True, False, False]
    assert points[-1]["refused"] == "the parameters are no longer finite at step 3"
    assert {folder.name for folder in folders} == {
        "as-configured",
        *(f"step-size-{label}" for label in ("0.0125", "0.025", "0.1", "0.2")),
        "own-rows-full-batch",
    }
    assert json.loads((tmp_path / "sweep.json").read_text()) == figures
    assert (tmp_path / "sweep.html").read_text().count("<svg") == 2


def test_an_unknown_setting_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = fake_runs(monkeypatch)
    with pytest.raises(ConfigError, match="no setting 'speed'"):
        sweep_stage.sweep(BASE, ["epochs", "speed"], tmp_path / "s", Reporter(quiet=True))
    assert not folders and not (tmp_path / "s").exists()


def test_the_command_names_what_it_can_vary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--settings" in CliRunner().invoke(app, ["sweep", "--help"]).output
    monkeypatch.setattr(
        "sys.argv", ["unlearn", "sweep", "configs/digits.yaml", "--settings", "speed"]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "step-size, epochs, decay" in capsys.readouterr().err
