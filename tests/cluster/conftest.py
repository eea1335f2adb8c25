"""A run as it stands before the first deletion."""

import shutil
from pathlib import Path

import pytest

from pipeline import RunConfig, precompute, train
from pipeline.run.directory import RunDirectory
from tests.cluster.small_run import PLAIN
from tests.pipeline.fake_store import use_key


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the plain run, made once: to be copied."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    precompute(train(RunConfig.from_values(PLAIN), folder))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A copy of it; the key lies outside."""
    use_key(monkeypatch, tmp_path)
    return RunDirectory.open(shutil.copytree(finished, tmp_path / "run"))
