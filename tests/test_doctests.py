"""Every example in a docstring runs, and what a user meets first has one that can be pasted."""

import doctest
import importlib
import tempfile
from pathlib import Path

import pytest

from tests.test_imports import FILES, module_of

# What a user meets first; an example of at most so many lines can be read at a glance.
MET_FIRST = {
    "storage.store.ApproximatorStore",
    "pipeline.approximators.block.BlockRecursion",
    "pipeline.deletion.delete.delete",
    "pipeline.deletion.released_model.load_release",
    "pipeline.hessian.hvp.Network",
    "pipeline.training.recorder.Recorder",
}
LONGEST = 25


def examples() -> list[doctest.DocTest]:
    """The docstrings with examples, of every module that has any."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [module_of(path) for path in FILES if ">>> " in path.read_text(encoding="utf-8")]
    found = [test for name in modules for test in finder.find(importlib.import_module(name), name)]
    return [test for test in found if test.examples]


def length(test: doctest.DocTest) -> int:
    return sum(len(f"{example.source}{example.want}".splitlines()) for example in test.examples)


def test_every_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNLEARN_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    failed = [test.name for test in examples() if runner.run(test).failed]
    assert not failed, capsys.readouterr().out


def test_what_a_user_meets_first_has_an_example_that_can_be_pasted() -> None:
    lines = {test.name: length(test) for test in examples()}
    assert lines.keys() >= MET_FIRST
    too_long = {name: count for name, count in lines.items() if count > LONGEST}
    assert not too_long
