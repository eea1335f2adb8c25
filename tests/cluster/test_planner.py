"""Plans: counts against brute force, arithmetic by hand, and timed steps of a small run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster import plan_stage
from cluster.counted_plan import Hardware, Price
from cluster.plan_text import plan_lines, plan_table
from cluster.planner import (
    Plan,
    Rates,
    fitting_block,
    savings,
    stated_rates,
)
from cluster.work_counts import (
    Workload,
)
from cluster.workload import workload_of
from pipeline.approximators.block import BlockRecursion
from pipeline.run.problem import Problem
from tests.cluster.small_run import NUM_BLOCKS, NUM_UNITS, config, trained_run

WORK = Workload(
    num_units=10,
    num_parameters=1000,
    num_steps=100,
    num_products=900,
    block=4,
    chunk=2,
    encoding="float16",
    state_bytes_per_unit=4000,
    num_checkpoints=11,
    checkpoint_bytes=4000,
    schedule_bytes=500,
    forward_flops=1e6,
    num_samples=10,
    batch_size=1,
)
RATES = Rates(
    primal_seconds=0.01,
    product_seconds=0.1,
    write_seconds=0.5,
    load_seconds=3.0,
    checkpoint_seconds=0.2,
    arithmetic_bytes=1_000_000,
    idle_bytes=990_000,
    memory_bytes=2_000_000,
    measured=True,
    device="cpu",
)


def test_time_is_the_busiest_workers_and_blocks_go_to_free_workers() -> None:
    # A unit has 90 HVPs: a block of 4 takes 1 + 36 + 2 s, the last one of 2 takes 1 + 18 + 1 s,
    # and each has 20 calls, which take 4 ms more than their work.
    large, small = 39 + 20 * 0.004, 20 + 20 * 0.004
    assert Plan(WORK, RATES, 1).precompute_seconds == pytest.approx(3 + 2 * large + small)
    assert Plan(WORK, RATES, 2).precompute_seconds == pytest.approx(3 + large + small)
    assert Plan(WORK, RATES, 3).precompute_seconds == pytest.approx(3 + large)
    assert Plan(WORK, RATES, 2).passes == 2
    both = Plan(WORK, RATES, 2)
    assert both.worker_hours == pytest.approx(2 * both.precompute_seconds / 3600)
    assert both.summary(price=10)["money"] == pytest.approx(10 * both.worker_hours)


def test_memory_is_the_state_beside_the_arithmetic_or_beside_its_copy() -> None:
    plan = Plan(WORK, RATES, 1)
    assert plan.peak_bytes == 16_000 + 990_000 + 16_000
    arithmetic = Plan(WORK, replace(RATES, arithmetic_bytes=1_500_000), 1)
    assert arithmetic.peak_bytes == 16_000 + 1_500_000


def test_a_block_is_made_as_small_as_memory_asks_and_no_smaller() -> None:
    tight = replace(RATES, memory_bytes=1_010_001)
    plan = Plan(WORK, tight, 1)
    assert plan.largest_block == 2
    fitted = fitting_block(plan)
    assert fitted.workload.block == 2
    assert fitted.peak_bytes <= tight.memory_bytes < plan.peak_bytes
    assert Plan(WORK, replace(RATES, memory_bytes=990_000), 1).largest_block == 0
    assert fitting_block(Plan(WORK, RATES, 1)).workload.block == 4


def test_other_encodings_and_fewer_checkpoints_save_bytes() -> None:
    rows = {row["choice"]: row for row in savings(Plan(WORK, RATES, 1))}
    whole = Plan(WORK, RATES, 1)
    assert rows["storage.encoding: int8"]["store_bytes"] < 0.55 * whole.workload.store_bytes
    assert "storage.encoding: float16" not in rows and not any("users" in row for row in rows)
    fewer = rows["no checkpoints between first and last"]
    assert whole.workload.trajectory_bytes - fewer["trajectory_bytes"] == 9 * 4000


def test_stated_rates_are_marked_as_an_estimate_and_follow_the_arithmetic() -> None:
    # ResNet-18 on CIFAR-10: 7,840 steps, 3.9e8 HVPs of 1.1e11 operations, 125 GPU-hours at 100 TFLOP/s.
    work = replace(
        WORK,
        num_units=50_000,
        num_parameters=11_181_642,
        num_steps=7_840,
        num_products=390_000_000,
        block=1_000,
        chunk=64,
        state_bytes_per_unit=4 * 11_181_642,
        forward_flops=1.1e11 / 6,
        encoding="int8",
        num_samples=50_000,
        batch_size=256,
    )
    plan = Plan(work, stated_rates(work, tflops=100, memory_gib=80), 8)
    summary = plan.summary(price=2.0)
    assert summary["basis"].startswith("estimate")
    assert work.flops == pytest.approx(4.5e19, rel=0.06)
    assert 110 < summary["worker_hours"] < 170
    assert summary["store_bytes"] == pytest.approx(0.57e12, rel=0.02)
    assert summary["money"] == pytest.approx(2 * summary["worker_hours"])
    assert fitting_block(Plan(work, stated_rates(work, 100, 24), 8)).workload.block < 1_000


def test_the_workload_counts_what_the_recursion_does(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run")
    problem, trajectory = run.problem(), run.trajectory()
    work = workload_of(problem)
    blocks = [
        BlockRecursion(problem, trajectory, range(start, min(start + 6, NUM_UNITS)))
        for start in range(0, NUM_UNITS, 6)
    ]
    # The recursion counts a chunk's visited prefix, so units of one minibatch come together.
    counted = sum(block.advance(trajectory.num_steps) for block in blocks)
    assert work.num_products == counted
    assert (work.num_steps, work.num_blocks) == (trajectory.num_steps, NUM_BLOCKS)
    stored = sum(path.stat().st_size for path in run.trajectory_folder.iterdir())
    assert work.trajectory_bytes == pytest.approx(stored, rel=0.2)


def test_the_workload_counts_operations_of_one_minibatch() -> None:
    problem = Problem.of(config())
    # Softmax regression: 64 features times 10 classes, two operations each, five samples.
    assert workload_of(problem).forward_flops == 2 * 64 * 10 * 5


def test_a_measured_plan_of_a_small_run_is_whole() -> None:
    before = torch.get_num_threads()
    summary = plan_stage.plan(config(), Hardware(workers=2), Price(1.0))
    assert summary["basis"] == "measured"
    assert 0 < summary["precompute_seconds"] < 600
    assert 200 << 20 < summary["peak_bytes_per_worker"] < 4 << 30
    assert any("4 blocks of 6 units on 2 workers" in line for line in plan_lines(summary))
    assert plan_table(summary).row_count == 1 + len(summary["savings"])
    assert torch.get_num_threads() == before
