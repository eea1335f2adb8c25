"""Runs that several files of tests start from."""

import shutil
from pathlib import Path

import pytest

from pipeline import RunDirectory, precompute
from tests.cluster.small_run import trained_run
from tests.pipeline.fake_store import use_key


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty run directory; the key lies outside."""
    use_key(monkeypatch, tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run with its approximators, computed once: to be copied."""
    folder = tmp_path_factory.mktemp("computed")
    precompute(trained_run(folder / "run"))
    return folder / "run"


@pytest.fixture
def run(computed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A copy of it; the key lies outside."""
    use_key(monkeypatch, tmp_path)
    return RunDirectory.open(shutil.copytree(computed, tmp_path / "run"))
