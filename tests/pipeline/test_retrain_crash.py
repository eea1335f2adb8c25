"""Retrainings that are killed: committed once, to the same bits, and nothing accepted is lost."""

from typing import Any

import pytest

from tests.pipeline.crashes import serve


def check(found: dict[str, Any]) -> None:
    operations = found["operations"]
    assert len(operations) > 100
    # One commit of the ledger for each step in the life of the batch.
    for name in ("accept", "retraining", "commit", "publish", "finish"):
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
    check(serve("retrain_crash_server.py", "60"))


@pytest.mark.torture
def test_a_retraining_killed_at_every_operation() -> None:
    check(serve("retrain_crash_server.py", "1"))
