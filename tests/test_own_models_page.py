"""docs/own-models.md: its Python runs, its YAML is read, its commands are carried out."""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
import yaml
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from cluster.cli import app
from pipeline import RunConfig
from pipeline.models.parameters import ParameterLayout
from pipeline.run.coefficients import refuse_unmatched
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from tests.pipeline.fake_store import use_key

pytest.importorskip("lightning")
pytest.importorskip("accelerate")
pytest.importorskip("transformers")
# Warnings of other libraries about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")

PAGE = Path(__file__).resolve().parent.parent / "docs" / "own-models.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
TRAINING = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1}


def write_data(folder: Path) -> None:
    """The files that the page takes for granted."""
    digits = load_digits()
    x, y = (digits.images / 16).astype(np.float32)[:, None], digits.target
    np.savez(folder / "my-data.npz", x=x[:96], y=y[:96], x_test=x[96:120], y_test=y[96:120])
    generator = np.random.default_rng(0)
    tokens, classes = generator.integers(1, 31, (16, 6)), np.arange(16) % 3
    np.savez(folder / "my-texts.npz", x=tokens, y=classes, x_test=tokens[:9], y_test=classes[:9])


def weightless(weights: str) -> Any:
    """torchvision's network without the download of its weights, which must exist."""
    assert weights in torchvision.models.ResNet18_Weights.__members__
    return resnet18(weights=None)


resnet18 = torchvision.models.resnet18


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_key(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torchvision.models, "resnet18", weightless)
    write_data(tmp_path)
    return tmp_path


def carry_out(language: str, text: str, folder: Path) -> None:
    if language == "yaml":
        values = yaml.safe_load(text)
        config = RunConfig.from_values({"training": TRAINING, **values})
        if isinstance(config.data.augment, str):
            Problem.of(config)
        if config.training.groups:
            module = import_module("my_networks").my_factory((1, 8, 8), 10)
            refuse_unmatched(config.training, ParameterLayout.of(module))
    elif language == "sh":
        for command in text.splitlines():
            program, *words = command.split()
            assert program == "unlearn"
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, result.output
    elif named := re.match(r"# (\w+\.py)\n", text):
        (folder / named[1]).write_text(text)
    else:
        assert language == "python", f"a block of {language or 'no language'}"
        exec(compile(text, PAGE.name, "exec"), {"__name__": "__main__"})


def test_every_block_of_the_page_works(folder: Path) -> None:
    before = set(sys.modules)
    for language, text in BLOCKS:
        carry_out(language, text, folder)
    for name in ("my_networks", "my_texts", "my_augmentation"):
        assert name in sys.modules.keys() - before
        del sys.modules[name]
    releases = {path.name for path in (folder / "runs" / "plain" / "releases").iterdir()}
    assert releases == {"1"}
    for name in ("plain", "lightning", "texts"):
        run = RunDirectory.open(folder / "runs" / name)
        stored = run.stored()
        assert stored is not None and stored.verify() == []


def test_nothing_on_the_page_is_code_without_being_a_block() -> None:
    kinds = [language for language, _ in BLOCKS]
    assert {kind: kinds.count(kind) for kind in kinds} == {"python": 8, "yaml": 6, "sh": 1}
    outside = re.sub(r"^```.*?^```$", "", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert not re.findall(r"^ {4}\S.*$", outside, re.M)
