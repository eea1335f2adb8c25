"""Real actors: the bits of the serial run, under kills; sums shared among reader tasks."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cluster.console import Reporter
from cluster.errors import WorkerFailedError
from cluster.precompute_stage import compute_with
from cluster.progress_file import read_progress
from cluster.ray_pool import pool_of_actors, remote_sum
from cluster.resources import Placement, Resources
from cluster.shared_store import SharedStore
from cluster.workload import workload_of
from pipeline.approximators.precompute import PrecomputeJob, precompute
from pipeline.deletion.delete import open_run
from pipeline.deletion.released_model import load_release
from pipeline.deletion.requests import DeletionRequest
from pipeline.models.parameters import flat_parameters
from pipeline.run.measurements import read_measurements
from storage.errors import UnknownUnitError
from storage.store import ApproximatorStore
from tests.cluster.small_run import NUM_BLOCKS, NUM_STEPS, rows_of, trained_run
from tests.integration.on_ray import Killer, drive, group_of
from tests.pipeline.fake_store import use_key

pytestmark = pytest.mark.ray


@pytest.mark.torture
def test_four_actors_give_the_bits_of_the_serial_run(
    local_ray: Resources, expected_rows: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    run = trained_run(tmp_path / "run")
    pool = pool_of_actors(run, 4, Placement(1, 0.0))
    compute_with(pool, PrecomputeJob.of(run), "precompute", Reporter(quiet=True))
    pool.close()
    assert np.array_equal(rows_of(run), expected_rows)
    measured = read_measurements(run)["precompute"]
    assert (measured["workers"], measured["workers_lost"], measured["max_drift"]) == (4, 0, 0.0)
    assert measured["hvps"] == workload_of(run.problem()).num_products
    assert measured["peak_bytes_per_worker"] > 100 << 20
    assert read_progress(run.path) is None
    assert not list(run.state_folder.glob("*"))
    # Nothing to do the second time.
    assert drive(run, group_of(run, 0)).num_steps == 0


def test_a_killed_actor_goes_on_from_its_saved_state_to_the_same_bits(
    local_ray: Resources, expected_rows: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    run = trained_run(tmp_path / "run")
    group = group_of(run, 2)
    killer = Killer(group, at=[8])
    totals = drive(run, group, killer)
    assert len(killer.killed) == 1
    # One kill may lose the steps since the last save, and those of the call that was under way.
    repeated = totals.num_steps - NUM_BLOCKS * NUM_STEPS
    assert repeated <= 3
    assert np.array_equal(rows_of(run), expected_rows)


def test_a_failed_computation_names_its_reason_and_process_and_ends_the_run(
    local_ray: Resources, tmp_path: Path
) -> None:
    run = trained_run(tmp_path / "run")
    group = group_of(run, 1)

    def damage(state: object, totals: object) -> None:
        (run.path / "approximators.zarr" / "zarr.json").write_text("{}")

    with pytest.raises(WorkerFailedError, match=r"LayoutError.*process \d+ on node \w+.*worker-"):
        drive(run, group, damage)


@pytest.mark.torture
def test_reader_tasks_give_the_bits_of_the_serial_sum(local_ray: Resources, tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run")
    precompute(run)
    store = ApproximatorStore.open(run.store_url)
    units, weights = list(store.units), list(range(1, len(store.units) + 1))
    with remote_sum(run, num_readers=2) as sum_rows:
        total_P, _ = sum_rows(units, weights)
        assert np.array_equal(total_P, store.sum_rows(units, weights))
        shared = SharedStore.open(run.store_url)
        assert isinstance(shared, SharedStore)
        shared.shared_sum = sum_rows
        assert np.array_equal(shared.sum_rows(units, weights), total_P)
        with pytest.raises(UnknownUnitError, match="nobody"):
            sum_rows([*units[:-1], "nobody"], weights)


def test_readers_delete_to_the_same_model(
    local_ray: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(monkeypatch, tmp_path)
    models = []
    for name in ("alone", "shared"):
        run = trained_run(tmp_path / name)
        precompute(run)
        store = ApproximatorStore.open(run.store_url, "r+")
        with ExitStack() as stack:
            if name == "shared":
                shared = SharedStore.open(run.store_url, "r+")
                assert isinstance(shared, SharedStore)
                shared.shared_sum = stack.enter_context(remote_sum(run, num_readers=2))
                store = shared
            with open_run(run, store) as releases:
                for units in (["1", "2", "3"], ["7"]):
                    releases.delete(DeletionRequest(units))
        models.append(flat_parameters(load_release(run.path)))
    assert bool((models[0] == models[1]).all())
