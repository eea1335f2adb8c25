"""A recorded run: the same every time, noticed when altered, continued when interrupted."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import RunConfig, Trajectory, replay_steps
from pipeline.approximators.block import BlockRecursion
from pipeline.errors import DivergedError, TrajectoryError
from pipeline.run.checkpoints import checkpoint_path, finish, read_checkpoint, write_checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.training.replay import Replay
from pipeline.training.train import numerics, record
from tests import tolerances
from tests.cases import Case, in_unit_order, problem_of, run_of
from tests.oracles import gradient_norms, relative_error, trajectory

# Nine steps, checkpoints before 0, 3, 6 and 9.
CASE = Case("mlp-tanh", clip="active", momentum=0.6, checkpoint_every=3)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.6, False), (0.6, True)])
@pytest.mark.parametrize("clip", ["none", "active"])
def test_training_follows_the_definition(
    clip: str, momentum: float, nesterov: bool, tmp_path: Path
) -> None:
    case = CASE.but(clip=clip, momentum=momentum, nesterov=nesterov)
    recorded, expected = record(problem_of(case), tmp_path), trajectory(run_of(case))
    assert recorded.checkpoints == (0, 3, 6, 9)
    for step in recorded.checkpoints:
        found = recorded.parameters_before(step)
        assert relative_error(found, expected[step]) < tolerances.LEAVE_ONE_OUT
    assert torch.equal(recorded.trained(), recorded.parameters_before(9))


def test_clip_factors_are_recorded(tmp_path: Path) -> None:
    recorded, run = record(problem_of(CASE), tmp_path), run_of(CASE)
    assert run.clip_norm is not None
    expected = [min(1.0, run.clip_norm / norm) for norm in gradient_norms(run)]
    assert recorded.clip_factors == pytest.approx(expected, rel=tolerances.LEAVE_ONE_OUT)


def test_learning_rates_and_minibatches_survive_the_disk(tmp_path: Path) -> None:
    recorded, run = record(problem_of(CASE), tmp_path), run_of(CASE)
    assert recorded.schedule.learning_rates == run.rates
    assert recorded.num_steps == 9
    for found, expected in zip(recorded.schedule.sample_ids, run.batches, strict=True):
        assert torch.equal(found, expected)
        assert found.dtype == torch.int64


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_the_same_training_leaves_the_same_bytes(momentum: float, tmp_path: Path) -> None:
    case = CASE.but(momentum=momentum)
    for name in ("one", "two", "three"):
        record(problem_of(case), tmp_path / name)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two") == bytes_of(tmp_path / "three")


DIFFERENT = {
    "clipping that never fired": CASE.but(clip="inactive"),
    "Hessian": CASE.but(own_rows="included"),
    "denominator": CASE.but(denominator="batch"),
    "l2 share": CASE.but(l2_share="sample"),
    "engine": CASE.but(engine="leave-one-out"),
    "chunk": CASE.but(chunk=6),
    "form": CASE.but(hvp="reverse"),
    "units": CASE.but(unit="user"),
    "fraction": CASE.but(denominator="batch", expected_fraction=0.2),
}


@pytest.mark.parametrize("changed", DIFFERENT)
def test_the_digest_names_everything_that_decides_rows(changed: str, tmp_path: Path) -> None:
    reference = CASE.but(denominator="batch") if changed == "fraction" else CASE
    if changed == "clipping that never fired":
        reference = CASE.but(clip="none")
    one = record(problem_of(reference), tmp_path / "one")
    two = record(problem_of(DIFFERENT[changed]), tmp_path / "two")
    assert one.digest != two.digest


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="unlearn train"):
        Trajectory.open(tmp_path)
    with pytest.raises(TrajectoryError, match="unlearn train"):
        Trajectory.open(tmp_path / "nowhere")


def test_a_flipped_bit_in_any_file_is_noticed(tmp_path: Path) -> None:
    record(problem_of(CASE.but(network="logistic")), tmp_path)
    Trajectory.open(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        for place in {0, *range(5, len(content), 61)}:
            for bit in (0x01, 0x80):
                flipped = bytearray(content)
                flipped[place] ^= bit
                path.write_bytes(bytes(flipped))
                with pytest.raises(TrajectoryError):
                    Trajectory.open(tmp_path)
        path.write_bytes(content)
    Trajectory.open(tmp_path)


def _swap(folder: Path) -> None:
    one, two = checkpoint_path(folder, 3), checkpoint_path(folder, 6)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a checkpoint is gone": lambda folder: checkpoint_path(folder, 3).unlink(),
    "a checkpoint is empty": lambda folder: checkpoint_path(folder, 3).write_bytes(b""),
    "checkpoints are swapped": _swap,
    "a checkpoint is renamed": lambda folder: checkpoint_path(folder, 3).rename(
        checkpoint_path(folder, 4)
    ),
    "a checkpoint is added": lambda folder: shutil.copy(
        checkpoint_path(folder, 3), checkpoint_path(folder, 4)
    ),
    "a file that looks like one is added": lambda folder: shutil.copy(
        checkpoint_path(folder, 3), folder / "checkpoint-copy.safetensors"
    ),
    "the schedule is gone": lambda folder: (folder / "schedule.parquet").unlink(),
    "the schedule is empty": lambda folder: (folder / "schedule.parquet").write_bytes(b""),
    "the digest is empty": lambda folder: (folder / "digest").write_bytes(b""),
    "the digest is no text": lambda folder: (folder / "digest").write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_noticed(change: str, tmp_path: Path) -> None:
    record(problem_of(CASE), tmp_path)
    CHANGES[change](tmp_path)
    with pytest.raises(TrajectoryError) as caught:
        Trajectory.open(tmp_path)
    assert str(tmp_path) in str(caught.value)


class StopNow(Exception):
    """Stands for a crash."""


def interrupted_after(step: int, case: Case, folder: Path) -> None:
    """Train until the checkpoint at `step` is on disk."""

    def stop(done: int, total: int) -> None:
        if done == step:
            raise StopNow

    with pytest.raises(StopNow):
        record(problem_of(case), folder, stop)


@pytest.mark.parametrize("case", [CASE, CASE.but(clip="none"), CASE.but(clip="none", momentum=0.0)])
@pytest.mark.parametrize("step", [3, 6, 9])
def test_interrupted_training_continues_to_the_same_bits(
    case: Case, step: int, tmp_path: Path
) -> None:
    whole = record(problem_of(case), tmp_path / "whole")
    interrupted_after(step, case, tmp_path / "resumed")
    resumed = record(problem_of(case), tmp_path / "resumed")
    assert resumed.digest == whole.digest
    assert torch.equal(resumed.trained(), whole.trained())
    assert resumed.clip_factors == whole.clip_factors


def test_training_continues_past_a_checkpoint_cut_short(tmp_path: Path) -> None:
    case = CASE.but(clip="none")
    whole = record(problem_of(case), tmp_path / "whole")
    interrupted_after(6, case, tmp_path / "resumed")
    path = checkpoint_path(tmp_path / "resumed", 6)
    path.write_bytes(path.read_bytes()[:-9])
    assert record(problem_of(case), tmp_path / "resumed").digest == whole.digest


def test_training_does_not_continue_from_an_altered_checkpoint(tmp_path: Path) -> None:
    case = CASE.but(clip="none", dtype="float32")
    whole = record(problem_of(case), tmp_path / "whole")
    interrupted_after(6, case, tmp_path / "resumed")
    path = checkpoint_path(tmp_path / "resumed", 6)
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x08
    path.write_bytes(bytes(content))
    try:
        resumed = record(problem_of(case), tmp_path / "resumed")
    except TrajectoryError:
        return
    assert torch.equal(resumed.trained(), whole.trained())


def test_divergence_names_the_step(tmp_path: Path) -> None:
    case = Case("ridge", clip="none")
    problem = problem_of(case)
    inputs = problem.data.inputs.clone()
    schedule_step = next(t for t, ids in enumerate(run_of(case).batches) if 3 in ids.tolist())
    inputs[3] = float("inf")
    broken = replace(problem, data=replace(problem.data, inputs=inputs))
    with pytest.raises(DivergedError, match=rf"step {schedule_step}\b"):
        record(broken, tmp_path)
    assert not (tmp_path / "digest").exists()


def altered(folder: Path, problem: Problem, step: int, size: float) -> Trajectory:
    """Move a checkpoint by a relative `size` and make the digest agree again."""
    found = read_checkpoint(folder, step)
    noise = np.random.default_rng(2).standard_normal(found.parameters_P.shape)
    noise *= size * np.linalg.norm(found.parameters_P) / np.linalg.norm(noise)
    moved_P = (found.parameters_P + noise).astype(found.parameters_P.dtype)
    write_checkpoint(folder, step, replace(found, parameters_P=moved_P))
    finish(folder, numerics(problem))
    return Trajectory.open(folder)


def test_a_replay_on_the_same_machine_does_not_drift(tmp_path: Path) -> None:
    problem = problem_of(CASE)
    replay = Replay.start(problem, record(problem, tmp_path))
    for _ in replay.steps(9):
        pass
    assert replay.max_drift == 0.0
    assert torch.equal(replay.state.parameters_P, replay.trajectory.trained())


def test_drift_is_reported_and_the_replay_synchronised(tmp_path: Path) -> None:
    problem = problem_of(CASE)
    record(problem, tmp_path / "original")
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    moved = altered(tmp_path / "copy", problem, 6, 1e-3)
    replay = Replay.start(problem, moved)
    for _ in replay.steps(6):
        pass
    assert replay.max_drift == pytest.approx(1e-3, rel=0.01)
    assert torch.equal(replay.state.parameters_P, moved.parameters_before(6))
    # The rest of the run was trained from the unmoved checkpoint, so the last one is met with drift
    # too, and the replay ends at the model that was trained.
    for _ in replay.steps(9):
        pass
    assert replay.max_drift >= 1e-3 * 0.99
    assert torch.equal(replay.state.parameters_P, moved.trained())


def test_a_block_reports_the_drift_it_met(tmp_path: Path) -> None:
    problem = problem_of(CASE)
    record(problem, tmp_path)
    moved = altered(tmp_path, problem, 6, 1e-3)
    block = BlockRecursion(problem, moved, range(4))
    block.advance(9)
    assert block.replay.max_drift > 1e-4
    assert torch.isfinite(in_unit_order(block)).all()


def run_directory(tmp_path: Path, dtype: str) -> tuple[RunDirectory, Problem]:
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        x=generator.standard_normal((12, 4)).astype(np.float32),
        y=np.arange(12) % 3,
    )
    config = RunConfig.from_values(
        {
            "data": {"source": "arrays", "path": str(tmp_path / "data.npz")},
            "model": {"name": "mlp", "hidden": [5], "activation": "tanh"},
            "training": {
                "epochs": 2,
                "batch_size": 4,
                "learning_rate": 0.1,
                "learning_rate_decay": 0.9,
                "momentum": 0.5,
            },
            "recursion": {"dtype": dtype, "checkpoint_every": 4},
        }
    )
    problem = Problem.of(config)
    return RunDirectory.create(tmp_path / "run", problem), problem


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_replay_steps_yields_the_parameters_before_each_step(dtype: str, tmp_path: Path) -> None:
    run, problem = run_directory(tmp_path, dtype)
    recorded = record(problem, run.trajectory_folder)
    steps = list(replay_steps(tmp_path / "run"))
    assert [step.step for step in steps] == list(range(recorded.num_steps))
    names = [name for name, _ in problem.network.module.named_parameters()]
    assert recorded.layout().names == tuple(names)
    for step in steps:
        assert step.parameters.dtype == torch.float32
        assert step.parameters.shape == (problem.num_parameters,)
        assert not step.parameters.requires_grad
        assert step.learning_rate == pytest.approx(0.1 * 0.9**step.step, rel=1e-15)
        positions = recorded.schedule.sample_ids[step.step]
        assert torch.equal(step.sample_ids, problem.data.sample_ids[positions])
        if step.step in recorded.checkpoints:
            stored = recorded.parameters_before(step.step).float()
            assert torch.equal(step.parameters, stored)
    # Every step was taken by hand from the one before it: momentum .5, mean cross-entropy.
    buffer_P = torch.zeros(problem.num_parameters)
    for step, after in pairwise(steps):
        at = dict(zip(names, _split(step.parameters, problem), strict=True))
        leaves = {name: value.clone().requires_grad_() for name, value in at.items()}
        positions = problem.data.positions_of(step.sample_ids)
        outputs = torch.func.functional_call(
            problem.network.module.float(), leaves, (problem.data.inputs[positions].float(),)
        )
        loss = torch.nn.functional.cross_entropy(outputs, problem.data.targets[positions])
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        buffer_P = 0.5 * buffer_P + torch.cat([g.reshape(-1) for g in gradients])
        expected = step.parameters - step.learning_rate * buffer_P
        assert torch.allclose(after.parameters, expected, rtol=1e-4, atol=1e-6)


def _split(flat_P: torch.Tensor, problem: Problem) -> list[torch.Tensor]:
    shapes = [p.shape for p in problem.network.module.parameters()]
    parts = flat_P.split([shape.numel() for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
