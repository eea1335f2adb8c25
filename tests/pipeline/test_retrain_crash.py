"""Retrainings that are killed: committed once, to the same bits, and nothing accepted is lost."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).with_name("retrain_crash_server.py")


def serve(every: int, *words: str) -> dict[str, Any]:
    """Run the server in memory if there is such a place: a killed process loses no cached write."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        done = subprocess.run(
            [sys.executable, str(SERVER), folder, str(every), *words],
            capture_output=True,
            text=True,
            env=environment,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


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
    found = serve(every=60)
    assert len(found["operations"]) > 100
    check(found)


def test_a_deletion_with_class_terms_killed_at_some_operations() -> None:
    found = serve(9, "class-terms", "delete")
    assert len(found["trials"]) >= 5
    check(found, ("accept", "batch", "commit", "publish", "finish"))


@pytest.mark.torture
def test_a_retraining_killed_at_every_operation() -> None:
    check(serve(every=1))


@pytest.mark.torture
def test_a_retraining_with_class_terms_killed_at_every_operation() -> None:
    check(serve(1, "class-terms"))


@pytest.mark.torture
def test_a_deletion_with_class_terms_killed_at_every_operation() -> None:
    check(serve(1, "class-terms", "delete"), ("accept", "batch", "commit", "publish", "finish"))
