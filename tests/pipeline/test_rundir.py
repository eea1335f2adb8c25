"""A run directory belongs to one configuration and is never changed by another."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import RunConfig
from pipeline.errors import ConfigError, PipelineError, TrajectoryError
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.training.train import record

VALUES: dict[str, Any] = {
    "data": {"source": "wine"},
    "model": {"name": "mlp", "hidden": [4], "activation": "tanh"},
    "training": {"epochs": 1, "batch_size": 32, "learning_rate": 0.1},
}


def problem(**sections: dict[str, Any] | Any) -> Problem:
    values = dict(VALUES)
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes} if isinstance(changes, dict) else changes
    return Problem.of(RunConfig.from_values(values))


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below `folder`: content and time of change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_run_opens_with_what_was_settled(tmp_path: Path) -> None:
    created = RunDirectory.create(tmp_path / "run", problem())
    opened = RunDirectory.open(tmp_path / "run")
    assert opened.config == created.config == problem().config
    assert opened.config.recursion.hvp != "auto"
    assert opened.config.recursion.chunk != "auto"
    assert opened.config.recursion.relu_curvature == "none"
    environment = opened.environment()
    assert environment["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["hvp_form"] == opened.config.recursion.hvp
    assert environment["chunk"] == opened.config.recursion.chunk
    assert environment["threads"] == opened.config.cluster.cpus_per_worker


def test_the_opened_run_is_the_same_problem(tmp_path: Path) -> None:
    mine = problem()
    RunDirectory.create(tmp_path / "run", mine)
    again = RunDirectory.open(tmp_path / "run").problem()
    assert again.config == mine.config
    assert torch.equal(again.initial_P, mine.initial_P)
    assert torch.equal(again.data.inputs, mine.data.inputs)
    assert again.network.form == mine.network.form


def test_a_second_create_changes_nothing(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", problem())
    before = snapshot(tmp_path)
    RunDirectory.create(tmp_path / "run", problem())
    assert snapshot(tmp_path) == before


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 7}, "seed"),
    "data": ({"data": {"source": "digits"}}, r"data\.source"),
    "test fraction": ({"data": {"test_fraction": 0.3}}, r"data\.test_fraction"),
    "model": ({"model": {"hidden": [5]}}, r"model\.hidden"),
    "training": ({"training": {"l2": 0.1}}, r"training\.l2"),
    "retraining": ({"retraining": {"denominator": "batch"}}, r"retraining\.denominator"),
    "recursion": ({"recursion": {"own_rows": "included"}}, r"recursion\.own_rows"),
    "form": ({"recursion": {"hvp": "reverse"}}, r"recursion\.hvp"),
    "chunk": ({"recursion": {"chunk": 3}}, r"recursion\.chunk"),
    "storage": ({"storage": {"encoding": "int8"}}, r"storage\.encoding"),
    "threads": ({"cluster": {"cpus_per_worker": 2}}, r"cluster\.cpus_per_worker"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_configuration_is_refused_and_changes_nothing(other: str, tmp_path: Path) -> None:
    changes, key = OTHERS[other]
    mine = problem()
    run = RunDirectory.create(tmp_path / "run", mine)
    record(mine, run.trajectory_folder)
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match=key) as caught:
        RunDirectory.create(tmp_path / "run", problem(**changes))
    assert str(tmp_path / "run") in str(caught.value)
    assert "--out" in str(caught.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another name"},
        {"cluster": {"num_workers": 3}},
        {"evaluation": {"deletions": [2], "repeats": 2}},
        {"certificate": {"audit_sets": 3}},
    ],
)
def test_what_decides_no_bits_may_change(changes: dict[str, Any], tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", problem())
    wanted = problem(**changes)
    assert RunDirectory.create(tmp_path / "run", wanted).config == wanted.config
    assert RunDirectory.open(tmp_path / "run").config == wanted.config


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "draft.txt").write_text("Dear", encoding="utf-8")
    (tmp_path / "file").write_text("text", encoding="utf-8")
    before = snapshot(tmp_path)
    for name in ("letters", "file"):
        with pytest.raises(ConfigError, match="no run directory"):
            RunDirectory.create(tmp_path / name, problem())
    assert snapshot(tmp_path) == before


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert RunDirectory.create(tmp_path / "empty", problem()).path == tmp_path / "empty"


def test_opening_nothing_says_how_to_make_a_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="unlearn train"):
            RunDirectory.open(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"- a", b"training: [", b"name: x\nzzz: 1\n"])
def test_a_damaged_configuration_is_named(content: bytes, tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", problem())
    path = tmp_path / "run" / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        RunDirectory.open(tmp_path / "run")
    with pytest.raises(ConfigError, match=str(path)):
        RunDirectory.create(tmp_path / "run", problem())
    assert path.read_bytes() == content


def test_a_run_is_trained_once_its_trajectory_is_complete(tmp_path: Path) -> None:
    mine = problem()
    run = RunDirectory.create(tmp_path / "run", mine)
    assert not run.is_trained()
    with pytest.raises(TrajectoryError):
        run.trajectory()
    record(mine, run.trajectory_folder)
    assert run.is_trained()
    assert run.trajectory().num_steps == 5


@pytest.mark.parametrize("name", ["1e5", "null", "yes: no", "ü # x", "0x10"])
def test_any_name_survives_the_disk(name: str, tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", problem(name=name))
    assert RunDirectory.open(tmp_path / "run").config.name == name


def test_every_refusal_is_one_of_ours() -> None:
    assert issubclass(ConfigError, PipelineError)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(TrajectoryError, PipelineError)
