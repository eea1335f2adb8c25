"""Faults at full counts: kills, lost nodes, killed drivers; the finished store has the serial bits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.driver import WorkTotals
from cluster.resources import Resources
from cluster.scheduler import Scheduler
from cluster.session import draw_token
from pipeline.approximators.precompute import precompute
from pipeline.run.directory import RunDirectory
from storage.store import ApproximatorStore
from tests.cluster.small_run import NUM_BLOCKS, NUM_STEPS, rows_of, trained_run
from tests.integration.on_ray import Killer, drive, group_of

pytestmark = [pytest.mark.ray, pytest.mark.torture]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_any_number_of_actors_gives_the_bits_of_the_serial_run(
    local_ray: Resources,
    expected_rows: npt.NDArray[np.float32],
    tmp_path: Path,
    num_workers: int,
) -> None:
    run = trained_run(tmp_path / "run")
    drive(run, group_of(run, num_workers))
    assert np.array_equal(rows_of(run), expected_rows)


def test_kill_after_kill_repeats_at_most_save_every_steps_each(
    local_ray: Resources, expected_rows: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    run = trained_run(tmp_path / "run")
    group = group_of(run, 2)
    killer = Killer(group, at=[2, 5, 8, 11, 14, 17])
    totals = drive(run, group, killer)
    assert len(killer.killed) == 6
    assert totals.num_steps - NUM_BLOCKS * NUM_STEPS <= 6 * 3
    assert np.array_equal(rows_of(run), expected_rows)


def start_precompute(run: RunDirectory) -> "subprocess.Popen[str]":
    """Start `unlearn precompute` in a group of its own, so that a kill reaches Ray as well."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cluster",
            "--log-json",
            "precompute",
            str(run.path),
            "--workers",
            "2",
            "--address",
            "local",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_killed_driver_and_its_ray_are_continued_by_the_same_command(tmp_path: Path) -> None:
    # Half a minute of work: long enough to be killed in the middle of.
    changes: dict[str, dict[str, Any]] = {
        "data": {"num_train": 120},
        "model": {"name": "cnn"},
        "storage": {"block": 30, "encoding": "float32"},
        "cluster": {"save_every": 5},
    }
    run = trained_run(tmp_path / "run", **changes)
    for _ in range(3):
        driver = start_precompute(run)
        deadline = time.monotonic() + 120
        states = run.state_folder
        before = {path: path.stat().st_mtime_ns for path in states.glob("*.safetensors")}
        while driver.poll() is None and time.monotonic() < deadline:
            now = {path: path.stat().st_mtime_ns for path in states.glob("*.safetensors")}
            if any(before.get(path) != moment for path, moment in now.items()):
                os.killpg(driver.pid, signal.SIGKILL)
                break
            time.sleep(0.1)
        driver.communicate()
    last = start_precompute(run)
    _, events = last.communicate(timeout=300)
    assert last.returncode == 0, events
    expected = trained_run(tmp_path / "serial", **changes)
    precompute(expected)
    assert np.array_equal(rows_of(run), rows_of(expected))
    assert ApproximatorStore.open(run.store_url).verify() == []


def test_three_nodes_one_of_them_removed_give_the_bits_of_the_serial_run(
    expected_rows: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    if ray.is_initialized():
        ray.shutdown()
    draw_token()
    run = trained_run(tmp_path / "run")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        spare = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        group = group_of(run, 3)
        removed: list[str] = []

        def observe(state: Scheduler, totals: WorkTotals) -> None:
            for worker, block in state.held.items():
                node = group.node(worker).node
                gone = [n for n in spare if n.node_id == node]
                if gone and not removed and state.positions.get(block, 0) >= 4:
                    removed.append(node)
                    cluster.remove_node(gone[0], allow_graceful=False)
                    return

        drive(run, group, observe)
        assert len(removed) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert np.array_equal(rows_of(run), expected_rows)
