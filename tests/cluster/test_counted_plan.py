"""Plans from counts alone: equal to plans with the data, quick to import, and refused in one line."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cluster import counted, plan_stage
from cluster.cli import app
from cluster.counted import SHAPES, Counts
from cluster.counted_plan import Hardware, plan_counts
from cluster.errors import ClusterError
from cluster.planner import (
    OwnSeconds,
    Plan,
    savings,
)
from cluster.work_counts import (
    expected_products,
)
from cluster.workload import fitting_chunk, workload_of
from pipeline.config import RunConfig
from pipeline.data import load
from pipeline.errors import ConfigError
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule
from tests.cluster.small_run import config
from tests.cluster.test_planner import RATES, WORK

ROOT = Path(__file__).parent.parent.parent
DIGITS = str(ROOT / "configs" / "digits.yaml")
GPUS = Hardware(gpus=2, tflops=50, gpu_memory_gib=10)


@pytest.fixture(autouse=True)
def no_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"name": "mlp", "hidden": [8]}, "storage": {"block": "auto"}},
        {
            "model": {"name": "cnn"},
            "recursion": {"chunk": "auto", "dtype": "float64"},
            "storage": {"block": "auto", "encoding": "auto"},
            "training": {"optimizer": "adam"},
        },
    ],
)
def test_a_plan_without_data_equals_the_one_with_data(changes: dict[str, Any]) -> None:
    run = config(**changes)
    assert plan_counts(run, Counts(num_samples=22), GPUS) == plan_stage.plan(run, GPUS)


def test_the_shapes_of_bundled_sources_are_theirs() -> None:
    for source in ("digits", "wine"):
        data = load(RunConfig.from_values(_values(source)).data, 0)
        assert SHAPES[source] == (tuple(data.inputs.shape[1:]), data.num_classes)
    data = load(RunConfig.from_values(_values("diabetes")).data, 0, "squared-error")
    assert SHAPES["diabetes"] == (tuple(data.inputs.shape[1:]), data.num_classes)


def _values(source: str, **sections: Any) -> dict[str, Any]:
    training = {"epochs": 2, "batch_size": 8, "learning_rate": 0.1}
    return {"data": {"source": source}, "training": training} | sections


def _products(owners: np.ndarray, num_units: int, run: RunConfig, seed: int) -> int:
    schedule = Schedule.draw(run.training, len(owners), seed)
    first = schedule.first_visits(torch.from_numpy(owners), num_units)
    return int((schedule.num_steps - first).sum())


def test_products_of_samples_are_counted_exactly_and_those_of_users_on_average() -> None:
    run = RunConfig.from_values(_values("digits"))
    for num in (8, 13, 40):
        assert expected_products(num, num, 8, 2) == _products(np.arange(num), num, run, 3)
    # 7 users of 39 samples: four own six, three own five.
    owners = np.arange(39) % 7
    drawn = [_products(owners, 7, run, seed) for seed in range(300)]
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(expected_products(7, 39, 8, 2) - np.mean(drawn)) < 4 * error + 0.5


def test_the_row_of_users_is_the_plan_of_the_configuration_that_has_them() -> None:
    values = _values("digits", model={"name": "mlp"})
    samples, users = (
        RunConfig.from_values(values | {"data": {"source": "digits", "unit": unit}})
        for unit in ("sample", "user")
    )
    for hardware in (GPUS, Hardware(workers=2)):
        rows = plan_counts(samples, Counts(num_samples=1430), hardware)["savings"]
        row = next(r for r in rows if r["choice"] == "users of 10 samples as units")
        real = plan_counts(users, Counts(143, 1430), hardware)
        for name in ("precompute_seconds", "worker_hours", "store_bytes"):
            assert row[name] == real[name]
        assert not any("of 10 " in r["choice"] for r in real["savings"])


def test_units_of_a_plan_with_data_have_blocks_and_chunks_as_a_run_of_them() -> None:
    run = RunConfig.from_values(_values("digits", data={"source": "digits", "num_train": 200}))
    problem = Problem.of(run)
    work, fitting = workload_of(problem), fitting_chunk(problem, on_gpu=False)
    users = work.with_units(20, run, fitting)
    owners = torch.arange(200) % 20
    data = replace(problem.data, units=tuple(map(str, range(20))), unit_of_sample=owners, rows=None)
    # A problem of these users settles what the configuration leaves open.
    from pipeline.run.problem import _chunk_and_block

    assert (users.chunk, users.block) == _chunk_and_block(run, problem.network, data)
    rows = savings(Plan(work, RATES, 1), run, fitting)
    assert [r["choice"] for r in rows][:2] == [
        "users of 10 samples as units",
        "users of 100 samples as units",
    ]


def test_owned_samples_cost_what_their_number_and_their_owners_say() -> None:
    own = OwnSeconds(first=1.0, further=0.1, repeated=10.0)
    # All ten samples of a minibatch are units' of this one chunk, each another's.
    samples = replace(WORK, num_samples=10, batch_size=10)
    assert own.step_seconds(10, samples) == pytest.approx(1 + 9 * 0.1)
    # Half of the units: five are owned, and hardly ever none.
    assert own.step_seconds(5, samples) == pytest.approx((1 - 2**-10) + (4 + 2**-10) * 0.1)
    # Ten samples of each of ten units: that two are one unit's is all but certain.
    users = replace(WORK, num_samples=100, batch_size=100)
    assert own.step_seconds(10, users) == pytest.approx(1 + 99 * 10.0)
    # One unit in a million: hardly anything.
    rare = replace(WORK, num_units=10**6, num_samples=10**6, batch_size=100)
    assert own.step_seconds(1, rare) == pytest.approx(1e-4, rel=1e-3)


def test_a_chunks_own_time_and_a_launch_are_counted_once_for_each_chunk_and_step() -> None:
    # Blocks of 4, 4 and 2 units in chunks of 2, 100 steps: 5 chunks.
    base = Plan(WORK, RATES, 1).busy_seconds
    assert Plan(WORK, replace(RATES, chunk_seconds=0.01), 1).busy_seconds == pytest.approx(base + 5)
    # 90 HVPs of 0.1 s for each of ten units take longer than 500 launches of 0.1 s, and not of 1 s.
    launches = [replace(RATES, launch_seconds=seconds) for seconds in (0.1, 1.0)]
    busy = [Plan(WORK, rates, 1).busy_seconds for rates in launches]
    assert busy == [pytest.approx(base), pytest.approx(base - 90 + 500)]


def test_break_even_is_the_precomputation_in_retrainings() -> None:
    plan = Plan(WORK, RATES, 3)
    assert plan.retrain_seconds == pytest.approx(100 * 0.01)
    assert plan.break_even_requests() == pytest.approx(plan.busy_seconds / 1.0)
    assert plan.break_even_requests(retrain_seconds=4.0) == pytest.approx(plan.busy_seconds / 4)


def test_a_plan_without_data_imports_no_torch() -> None:
    code = (
        "import sys\nfrom cluster.cli import app\n"
        f"app(['plan', {DIGITS!r}, '--samples', '1437', '--json'], standalone_mode=False)\n"
        "print(*[name for name in ('torch', 'sklearn', 'ray', 'torchvision') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    printed, imported = done.stdout.splitlines()
    assert json.loads(printed)["num_units"] == 1437 and not imported


def test_money_has_the_currency_it_was_given_in() -> None:
    words = ["plan", DIGITS, "--samples", "1437", "--gpus", "1", "--price", "2.5"]
    done = CliRunner().invoke(app, [*words, "--currency", "EUR"])
    assert done.exit_code == 0 and " EUR at the price given per worker-hour" in done.stdout
    assert "pays from request" in done.stdout
    printed = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert printed["currency"] is None and printed["break_even_requests"] >= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--units", "0"], "--units is 0; expected 1 to"),
        (["--samples", "9" * 30], "--samples is 9999"),
        (["--units", "5", "--samples", "1437"], "5 units are not 1,437 samples"),
        (["--units", "9", "--samples", "5"], "--units is 9, and there are only 5 samples"),
        (["--samples", "5"], "training.batch_size is 32, but there are only 5"),
        (["--set", "data.unit=user", "--units", "5"], "give --samples"),
        (["--set", "data.unit=user", "--samples", "500"], "give --units"),
        (["--set", "data.source=arrays", "--samples", "500"], "give --input-shape"),
        (["--samples", "500", "--input-shape", "3x-2"], "--input-shape is '3x-2'"),
        (["--samples", "500", "--input-shape", "0"], "--input-shape is '0'"),
        (["--samples", "500", "--set", "model.name=cnn", "--input-shape", "64"], "takes pictures"),
        (["--classes", "3"], "give --units or --samples with them"),
        (["--samples", "500", "--tune"], "leave --units and --samples out"),
        (["--samples", "500", "--currency", "EUR"], "needs --price"),
        (["--samples", "500", "--price", "1", "--currency", "x" * 50], "--currency is"),
        (["--samples", "500", "--tflops", "5"], "give --gpus with them"),
        (["--samples", "500", "--set", "model.name=no:such"], "no:such"),
    ],
)
def test_wrong_counts_are_refused_with_what_to_do(words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["plan", DIGITS, *words])
    assert isinstance(done.exception, ConfigError) and message in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_users_own_network_is_built_and_counted() -> None:
    counts = Counts(num_samples=1437).settled(config())
    own = config(model={"name": "tests.cluster.test_counted_plan:own_network"})
    named = config(model={"name": "mlp", "hidden": [5], "activation": "tanh"})
    assert counted.network_counts(own, counts) == counted.network_counts(named, counts)


def own_network(shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    """A perceptron as a user would write it."""
    inputs = int(np.prod(shape))
    layers = [torch.nn.Linear(inputs, 5), torch.nn.Tanh(), torch.nn.Linear(5, num_classes)]
    return torch.nn.Sequential(torch.nn.Flatten(), *layers)


def test_progress_is_reported_and_a_failure_ends_all_measurements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = (
        "import sys, time\nsys.stdin.read()\nsys.stderr.write('measured 3 of 7\\nsome warning\\n')\n"
        "sys.stderr.flush()\ntime.sleep(0 if {fails} else 600)\nsys.exit(3)\n"
    )
    seen: list[tuple[int, int]] = []
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def start(words: list[str], **settings: Any) -> subprocess.Popen[str]:
        code = script.format(fails=not started)
        started.append(popen([words[0], "-c", code], **settings))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(ClusterError, match="some warning"):
        plan_stage.measure_apart(config(), 2, lambda *at: seen.append(at))
    # One of the two would have slept for ten minutes.
    assert all(process.returncode is not None for process in started) and len(started) == 2
    assert {total for _, total in seen} == {7}
