"""Processes that delete at once and are killed at random lose, double and spoil nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.torture
@pytest.mark.parametrize(("units", "processes", "kills"), [(200, 2, 15), (2_000, 4, 100)])
def test_deletions_under_kills_end_as_numpy_says(units: int, processes: int, kills: int) -> None:
    asked = {"units": units, "processes": processes, "kills": kills, "seconds": kills // 4}
    words = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.load", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == kills
    assert found["requests"] > 0
    assert found["lost"] == found["doubled"] == found["wrong"] == 0
