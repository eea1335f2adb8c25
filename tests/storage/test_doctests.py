"""The examples in storage's docstrings do what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

import storage

MODULES = sorted(path.stem for path in Path(storage.__path__[0]).glob("[a-z]*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_examples_do_what_they_show(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"storage.{name}")).failed == 0


def test_the_store_shows_its_life_in_25_lines() -> None:
    store = importlib.import_module("storage.store")
    (example,) = (e for e in doctest.DocTestFinder().find(store) if e.examples)
    assert example.name == "storage.store.ApproximatorStore"
    shown = sum(e.source.count("\n") + e.want.count("\n") for e in example.examples)
    assert len(example.examples) > 8 and shown <= 25
