"""Which samples a run's units own, before and after deletions, and runs of version 0.1.0."""

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from cluster.deletion_commands import delete as delete_command
from cluster.deletion_commands import units as list_command
from pipeline import RunConfig, RunDirectory, delete, precompute, replay_steps, train
from pipeline.data import load
from pipeline.errors import ConfigError, DataError, UnknownUnitsError
from pipeline.run.checkpoints import SAMPLES, finish
from pipeline.run.sample_record import read_samples
from pipeline.run.unit_list import Unit, by_number, list_units
from pipeline.training.train import numerics
from storage.store import ApproximatorStore
from tests.pipeline.fake_store import use_key

OWNERS = np.array([f"user-{i % 7}" for i in range(40)])
LABELS = np.arange(40) % 2


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_key(monkeypatch, tmp_path)


def config(folder: Path, **data: Any) -> RunConfig:
    x = np.random.default_rng(0).standard_normal((40, 3))
    np.savez(folder / "data.npz", x=x, y=LABELS, unit=OWNERS)
    return RunConfig.from_values(
        {
            "data": {"source": "arrays", "path": str(folder / "data.npz"), **data},
            "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.1},
        }
    )


def trained(folder: Path, **data: Any) -> RunDirectory:
    run = train(config(folder, **data), folder / "run")
    precompute(run)
    return run


def of_first_version(run: RunDirectory) -> RunDirectory:
    """Take away what version 0.1.0 did not write."""
    problem = run.problem()
    values = yaml.safe_load((run.path / "config.yaml").read_text())
    del values["data"]["sample_ids"]
    (run.path / "config.yaml").write_text(yaml.safe_dump(values))
    (run.trajectory_folder / SAMPLES).unlink()
    finish(run.trajectory_folder, numerics(problem))
    # The store bears the name of the trajectory, which is another one now.
    for path in run.path.glob("approximators.*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = RunDirectory.open(run.path)
    precompute(again)
    return again


def states(run: RunDirectory, state: str) -> list[str | None]:
    return [unit.unit for unit in list_units(run) if unit.state == state]


def test_units_are_listed_with_samples_and_states(tmp_path: Path) -> None:
    run = train(config(tmp_path, num_train=20), tmp_path / "run")
    rows = run.problem().data.rows
    assert rows is not None
    assert states(run, "absent") == [str(i) for i in sorted(rows.trained)]
    precompute(run)
    before = list_units(run)
    assert [unit.unit for unit in before] == [str(i) for i in range(40)], "in the order of numbers"
    assert [unit.samples for unit in before] == [[i] for i in range(40)]
    assert states(run, "stored") == [str(i) for i in sorted(rows.trained)]
    assert states(run, "held-out") == [str(i) for i in rows.held_out]
    assert states(run, "unused") == [str(i) for i in rows.unused]
    gone = sorted(rows.trained.tolist())[:2]
    delete(run, gone)
    assert states(run, "deleted") == [str(i) for i in gone]
    assert len(states(run, "stored")) == 18
    assert list_units(run, with_names=True) == list_units(run)


def test_a_sample_that_is_held_out_cannot_be_deleted(tmp_path: Path) -> None:
    run = trained(tmp_path)
    held_out = states(run, "held-out")[0]
    with pytest.raises(UnknownUnitsError, match=f"^held out for testing: '{held_out}'. Nothing"):
        delete(run, [str(held_out)])


def test_users_keep_their_samples_and_lose_their_name(tmp_path: Path) -> None:
    run = trained(tmp_path, unit="user")
    listed = list_units(run)
    assert [unit.unit for unit in listed] == [*(f"user-{i}" for i in range(7)), None]
    held_out = listed[-1]
    assert (held_out.state, len(held_out.samples)) == ("held-out", 8)
    for unit in listed[:-1]:
        expected = set(np.flatnonzero(unit.unit == OWNERS)) - set(held_out.samples)
        assert unit.samples == sorted(expected)
    delete(run, ["user-3"])
    deleted = Unit(None, listed[3].samples, "deleted")
    assert deleted in list_units(run)
    for path in run.path.rglob("*"):
        assert not path.is_file() or b"user-3" not in path.read_bytes(), path
    assert deleted._replace(unit="user-3") in list_units(run, with_names=True)
    np.savez(tmp_path / "data.npz", x=np.zeros((40, 3)), y=LABELS, unit=np.full(40, "other"))
    with pytest.raises(DataError, match="not those that it was trained on"):
        list_units(run, with_names=True)
    assert deleted in list_units(run), "without the data"


def test_steps_are_replayed_with_the_rows_of_the_source(tmp_path: Path) -> None:
    for unit in ("sample", "user"):
        (tmp_path / unit).mkdir()
        run = train(config(tmp_path / unit, unit=unit), tmp_path / unit / "run")
        with np.load(tmp_path / unit / "data.npz") as source:
            x, y = torch.from_numpy(source["x"]).float(), torch.from_numpy(source["y"])
        data, schedule = run.problem().data, run.trajectory().schedule
        for step, positions in zip(replay_steps(run), schedule.sample_ids, strict=True):
            assert torch.equal(x[step.sample_ids], data.inputs[positions])
            assert torch.equal(y[step.sample_ids], data.targets[positions])


def test_a_run_of_the_first_version_keeps_its_positions(tmp_path: Path) -> None:
    new = load(config(tmp_path).data, 42)
    run = of_first_version(trained(tmp_path, sample_ids="position"))
    assert run.config.data.sample_ids == "position"
    assert read_samples(run.trajectory_folder) is None
    assert ApproximatorStore.open(run.store_url).units == tuple(map(str, range(32)))
    assert states(run, "stored") == [str(i) for i in range(32)]
    assert torch.equal(run.problem().data.inputs, new.inputs)
    # The same configuration, which names no rule, goes on with the run that is there.
    again = train(config(tmp_path), tmp_path / "run")
    assert again.config.data.sample_ids == "position"
    with pytest.raises(ConfigError, match=r"data.sample_ids is 'position' there, 'source' here"):
        train(config(tmp_path, sample_ids="source"), tmp_path / "run")
    delete(run, [3])
    assert states(run, "deleted") == ["3"]
    first = next(replay_steps(run))
    assert torch.equal(first.sample_ids, run.trajectory().schedule.sample_ids[0])


def test_users_of_the_first_version_are_listed_from_the_data(tmp_path: Path) -> None:
    run = of_first_version(trained(tmp_path, unit="user", sample_ids="position"))
    listed = list_units(run)
    assert [unit.unit for unit in listed] == [f"user-{i}" for i in range(7)]
    assert sorted(i for unit in listed for i in unit.samples) == list(range(32))


def test_the_command_prints_or_writes_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path)
    list_command(run.path, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"units": [unit._asdict() for unit in list_units(run)]}
    assert {"unit": "3", "samples": [3], "state": "stored"} in printed["units"]
    list_command(run.path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t") == ["unit", "samples", "state"]
    assert lines[1 + 3].split("\t") == ["3", "3", "stored"]
    out = tmp_path / "units.json"
    list_command(run.path, out=out, as_json=True)
    assert json.loads(out.read_text()) == printed
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    for inside in (run.path / "units.json", run.path / "x" / ".." / "units.json"):
        with pytest.raises(ConfigError, match="lies in the run"):
            list_command(run.path, out=inside)
    with pytest.raises(ConfigError, match="is no folder"):
        list_command(run.path, out=tmp_path / "absent" / "units.json")


def test_names_with_commas_and_spaces_are_deleted_by_their_own_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path, unit="user")
    names = ["Doe, Jane ", " a", "a", "b"]
    np.savez(tmp_path / "data.npz", x=np.eye(40), y=LABELS, unit=np.array(names * 10))
    run = train(settings, tmp_path / "run")
    precompute(run)
    delete_command(run.path, ids="a", id_=["Doe, Jane "], as_json=True)
    assert json.loads(capsys.readouterr().out)["units_deleted"] == 2
    assert states(run, "stored") == [" a", "b"]


def test_names_that_look_like_numbers_are_in_the_order_of_numbers() -> None:
    names = ["b", "10", "9", "x2", "007", "7", "1" * 5000, "٣", "0", "-1", "b1"]
    expected = ["0", "007", "7", "9", "10", "1" * 5000, "-1", "b", "b1", "x2", "٣"]
    assert sorted(names, key=by_number) == expected


def test_the_record_of_samples_is_covered_by_the_digest(tmp_path: Path) -> None:
    run = trained(tmp_path)
    path = run.trajectory_folder / SAMPLES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"samples\.safetensors was changed after training"):
        list_units(run)
