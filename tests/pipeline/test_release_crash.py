"""Crashes: nothing accepted is lost, nothing is applied twice, no release is drawn twice."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).with_name("crash_server.py")


def serve(*arguments: object) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SERVER), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(found: dict[str, Any], num_requests: int) -> None:
    assert found["requests_answered"] == num_requests
    assert found["units_deleted"] == found["units_asked"]
    assert found["erased_as_asked"]
    assert found["sum_equals_replay"]
    assert found["draws_in_last_model"] == 1
    assert found["releases"] == list(range(1, len(found["releases"]) + 1))
    assert found["damages"] == []
    assert found["leftovers"] == [f"weighted-sum-{found['releases'][-1]}.safetensors"]


def check_points(folder: Path, *options: str) -> None:
    found = serve("points", folder, *options)
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


def test_a_crash_at_each_named_point(tmp_path: Path) -> None:
    check_points(tmp_path)


@pytest.mark.torture
def test_a_crash_at_each_occurrence_of_each_named_point(tmp_path: Path) -> None:
    check_points(tmp_path, "all")


def check_kills(folder: Path, num_kills: int, num_requests: int) -> None:
    found = serve("kills", folder, num_kills, num_requests)
    assert found.get("kills") == num_kills, found
    assert found["changed"] == []
    assert found["published"] >= 1
    check(found, num_requests)


def test_20_random_kills(tmp_path: Path) -> None:
    check_kills(tmp_path, num_kills=20, num_requests=150)


@pytest.mark.torture
def test_200_random_kills_over_10000_requests(tmp_path: Path) -> None:
    check_kills(tmp_path, num_kills=200, num_requests=10_000)
