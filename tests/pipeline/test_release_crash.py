"""Crashes: nothing accepted is lost, nothing is applied twice, no release is drawn twice."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).with_name("crash_server.py")


def serve(*commands: str) -> dict[str, Any]:
    """Run the server in memory if there is such a place: a killed process loses no cached write."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        done = subprocess.run(
            [sys.executable, str(SERVER), folder, *commands],
            capture_output=True,
            text=True,
            env=environment,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def served() -> dict[str, Any]:
    """One server for all: what takes it longest is to import."""
    return serve("points", "kills:20:150", "noise")


def check(found: dict[str, Any], num_requests: int) -> None:
    assert found["requests_answered"] == num_requests
    assert found["units_deleted"] == found["units_asked"]
    assert found["erased_as_asked"]
    assert found["sum_equals_replay"]
    assert found["draws_in_last_model"] == 1
    assert found["releases"] == list(range(1, len(found["releases"]) + 1))
    assert found["damages"] == []
    assert found["leftovers"] == [f"weighted-sum-{found['releases'][-1]}.safetensors"]


def check_points(found: dict[str, Any]) -> None:
    points = found["points"]
    assert len(points) >= 12
    for pair in ("commit:{}-commit", "publish:{}-rename", "model.safetensors:{}-fsync", "erase:{}"):
        assert pair.format("before") in points
        assert pair.format("after") in points
    assert len(found["trials"]) >= len(points)
    for trial in found["trials"]:
        assert trial["killed"], trial["point"]
        assert trial["republished"] == [], trial["point"]
        check(trial, num_requests=2)


def check_kills(found: dict[str, Any], num_kills: int, num_requests: int) -> None:
    assert found.get("kills") == num_kills, found
    assert found["changed"] == []
    assert found["published"] >= 1
    check(found, num_requests)


def test_a_crash_at_each_named_point(served: dict[str, Any]) -> None:
    check_points(served["points"])


def test_20_random_kills(served: dict[str, Any]) -> None:
    check_kills(served["kills:20:150"], num_kills=20, num_requests=150)


def test_forked_processes_draw_different_noise(served: dict[str, Any]) -> None:
    assert len(served["noise"]) == 3
    assert len(set(map(tuple, served["noise"]))) == 3


@pytest.mark.torture
def test_a_crash_at_each_occurrence_of_each_named_point() -> None:
    check_points(serve("all-points")["all-points"])


@pytest.mark.torture
def test_200_random_kills_over_10000_requests() -> None:
    check_kills(serve("kills:200:10000")["kills:200:10000"], 200, 10_000)
