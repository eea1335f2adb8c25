"""`unlearn repair` on Ray: the bits of the serial repair, under kills and repeats."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cluster.resources import Resources
from pipeline.approximators.precompute import precompute
from pipeline.approximators.repair import repair, under_repair
from pipeline.deletion.delete import delete
from pipeline.run.directory import RunDirectory
from tests.cluster.small_run import rows_of_remaining, trained_run
from tests.integration.on_ray import Killer, drive, group_of
from tests.pipeline.fake_store import use_key

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_key(monkeypatch, tmp_path)


def shrunk(folder: Path) -> RunDirectory:
    run = trained_run(folder)
    precompute(run)
    delete(run, [1, 2, 3])
    return run


@pytest.mark.torture
def test_a_killed_actor_costs_a_repair_no_bits(local_ray: Resources, tmp_path: Path) -> None:
    serial, run = shrunk(tmp_path / "serial"), shrunk(tmp_path / "run")
    repair(serial, 3)
    with under_repair(run, 3):
        group = group_of(run, 2)
        killer = Killer(group, at=[4])
        drive(run, group, killer)
    assert len(killer.killed) == 1
    assert np.array_equal(rows_of_remaining(run), rows_of_remaining(serial))
    assert not run.continuation_path.exists()
    delete(run, [4])


@pytest.mark.torture
def test_the_command_repairs_on_actors(tmp_path: Path) -> None:
    run = shrunk(tmp_path / "run")
    command = [sys.executable, "-m", "cluster", "repair", str(run.path), "--epochs", "1"]
    done = subprocess.run(
        [*command, "--workers", "2", "--address", "local", "--json"],
        capture_output=True,
        check=True,
        text=True,
    )
    printed = json.loads(done.stdout)
    assert (printed["generation"], printed["num_samples"], printed["num_steps"]) == (1, 19, 4)
    assert "repair: " in done.stderr
