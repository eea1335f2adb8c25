"""Runs whose rows lie at a URL: the same rows, and nothing trained where they cannot go."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.console import Reporter
from cluster.whole_run import train
from pipeline import delete, load_release, precompute, repair
from pipeline.errors import ConfigError
from pipeline.models.parameters import flat_parameters
from pipeline.run.directory import RunDirectory
from storage import url_backend
from storage.errors import BackendUnavailableError
from tests.cluster.small_run import config, rows_of, rows_of_remaining
from tests.pipeline.fake_store import use_key


def trained(folder: Path, url: str | None, **changes: Any) -> RunDirectory:
    settings = config(storage={"url": url}, **changes)
    return train(settings, folder, Reporter(quiet=True))[0]


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_key(monkeypatch, tmp_path)


def test_a_run_lives_the_same_with_its_rows_on_s3(prefix: str, tmp_path: Path) -> None:
    here, there = trained(tmp_path / "here", None), trained(tmp_path / "there", f"{prefix}/a.zarr")
    for run in (here, there):
        precompute(run)
    assert np.array_equal(rows_of(here), rows_of(there))
    for run in (here, there):
        delete(run, [1, 2, 3])
        repair(run, 1)
        delete(run, [4])
    assert np.array_equal(rows_of_remaining(here), rows_of_remaining(there))
    models = [flat_parameters(load_release(run.path)) for run in (here, there)]
    assert bool((models[0] == models[1]).all())
    assert not list(there.path.glob("approximators*"))


def test_nothing_is_trained_where_another_runs_rows_lie(prefix: str, tmp_path: Path) -> None:
    precompute(trained(tmp_path / "first", f"{prefix}/a.zarr"))
    with pytest.raises(ConfigError, match=r"another run's.*storage\.url"):
        trained(tmp_path / "second", f"{prefix}/a.zarr", training={"l2": 0.02})
    assert not RunDirectory.open(tmp_path / "second").is_trained()
    # The first may be trained again: that is, opened.
    assert trained(tmp_path / "first", f"{prefix}/a.zarr").is_trained()


def test_nothing_is_trained_if_the_place_of_the_rows_does_not_answer(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(url_backend, "WAIT", url_backend.tenacity.wait_none())
    with pytest.raises(BackendUnavailableError, match="check the address") as caught:
        trained(tmp_path / "run", f"{prefix}/a.zarr")
    assert "Debug" not in str(caught.value)
    assert not RunDirectory.open(tmp_path / "run").is_trained()
