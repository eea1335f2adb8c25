"""Crashes: one in this process, and those of a server that is killed at every operation."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


class StoppedError(Exception):
    """Stands for a crash."""


def stop_after(blocks: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == blocks:
            raise StoppedError

    return progress


def serve(server: str, *words: str) -> dict[str, Any]:
    """Run a server of this folder; return what it found.

    In memory if there is such a place: a killed process loses no cached write.
    """
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        done = subprocess.run(
            [sys.executable, str(FOLDER / server), folder, *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(FOLDER.parents[1]), **threads},
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
