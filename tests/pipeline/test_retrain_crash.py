"""Retrainings that are killed: committed once, to the same bits, and nothing accepted is lost."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.pipeline.crashes import serve

STEPS = ("accept", "retraining", "commit", "publish", "finish")


def check(found: dict[str, Any], steps: Sequence[str] = STEPS) -> None:
    operations = found["operations"]
    # One commit of the ledger for each step in the life of the batch.
    for name in steps:
        assert operations.count(f"{name}:before-commit") == 1
    for trial in found["trials"]:
        where = (trial["operation"], operations[trial["operation"] - 1])
        assert trial["killed"], where
        expected = {
            "damage": [],
            "receipt": [2, 2],
            "republished": [],
            "same_models": True,
            "same_rows": True,
            "erased_as_asked": True,
            "left_over": [],
        }
        assert {key: trial.get(key) for key in expected} == expected, where


def test_a_retraining_killed_at_some_operations() -> None:
    found = serve("retrain_crash_server.py", "60")
    assert len(found["operations"]) > 100
    check(found)


def test_a_deletion_with_class_terms_killed_at_some_operations() -> None:
    found = serve("retrain_crash_server.py", "9", "class-terms", "delete")
    assert len(found["trials"]) >= 5
    check(found, ("accept", "batch", "commit", "publish", "finish"))


@pytest.mark.torture
def test_a_retraining_killed_at_every_operation() -> None:
    check(serve("retrain_crash_server.py", "1"))


@pytest.mark.torture
def test_a_retraining_with_class_terms_killed_at_every_operation() -> None:
    check(serve("retrain_crash_server.py", "1", "class-terms"))


@pytest.mark.torture
def test_a_deletion_with_class_terms_killed_at_every_operation() -> None:
    check(
        serve("retrain_crash_server.py", "1", "class-terms", "delete"),
        ("accept", "batch", "commit", "publish", "finish"),
    )
