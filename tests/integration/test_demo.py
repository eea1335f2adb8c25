"""The demonstration on Ray and without it: the same rows, deletions and sums to the last bit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.run.directory import RunDirectory
from pipeline.run.measurements import read_measurements
from tests.cluster.small_run import rows_of

# Half a minute of Ray's start; other tests of actors compare bits in every run of the suite.
pytestmark = [pytest.mark.ray, pytest.mark.torture]

CONFIG = Path(__file__).parent.parent.parent / "configs" / "digits.yaml"
TIMES = {"sum_seconds", "total_seconds", "retrain_seconds"}


def demonstrate(out: Path, address: str) -> list[dict[str, Any]]:
    """Run the demonstration on fewer samples and with fewer trials; return what deletions gave."""
    command = [sys.executable, "-m", "cluster", "run", str(CONFIG), "--out", str(out), "--json"]
    settings = [f"cluster.address={address}", "evaluation.repeats=1", "data.num_train=80"]
    words = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["deletions"]
    return [{key: entry[key] for key in entry.keys() - TIMES} for entry in found]


def test_the_demonstration_has_the_same_bits_on_ray_and_without_it(tmp_path: Path) -> None:
    # `auto`, as configured, takes this process.
    alone = demonstrate(tmp_path / "alone", "auto")
    on_ray = demonstrate(tmp_path / "on-ray", "local")
    assert alone == on_ray
    runs = [RunDirectory.open(tmp_path / name) for name in ("alone", "on-ray")]
    assert [read_measurements(run)["precompute"]["workers"] for run in runs] == [1, 2]
    assert runs[0].digest() == runs[1].digest()
    assert np.array_equal(rows_of(runs[0]), rows_of(runs[1]))
