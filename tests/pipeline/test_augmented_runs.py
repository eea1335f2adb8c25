"""Augmented training: approximators against retraining, replays, repairs, frozen parts, shadows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import RunConfig, delete, load_release, precompute, repair, train
from pipeline.approximators.block import BlockRecursion
from pipeline.data.augment import augment
from pipeline.data.dataset import SourceRows
from pipeline.evaluation.membership.shadow import train_on
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory
from pipeline.training.replay import Replay
from pipeline.training.retraining import retrain
from pipeline.training.train import record
from tests import tolerances
from tests.cases import Case, in_unit_order, problem_of, run_of
from tests.oracles import Run, relative_error, retrained_without, trajectory, weight_derivatives
from tests.pipeline.fake_store import use_key

TRANSFORMS = [
    {"flip": {}},
    {"crop": {"padding": 1}},
    {"jitter": {"brightness": 0.3, "contrast": 0.3}},
    {"noise": {"deviation": 0.1}},
    {"cutout": {"side": 2}},
]
SGD = Case("cnn-tanh", unit="user", clip="active", momentum=0.6, checkpoint_every=1)
ADAMW = Case(
    "cnn-tanh", unit="user", optimizer="adamw", learning_rate=0.05, l2=0.0, weight_decay=0.1
)


def augmented(case: Case) -> Problem:
    """The case with augmentation; its samples' ids are not their positions."""
    plain = problem_of(case)
    none, rows = np.empty(0, np.int64), np.arange(case.num_samples) * 5 + 2
    data = replace(plain.data, rows=SourceRows(rows, none, none))
    values = plain.config.model_dump(mode="json")
    config = RunConfig.from_values({**values, "data": {**values["data"], "augment": TRANSFORMS}})
    return replace(plain, config=config, data=data)


def as_oracle(case: Case, problem: Problem) -> Run:
    """The run without random draws: each step has samples of its own, as that step saw them.

    Sample i of step t is sample t n + i, drawn here for all samples at once, not by minibatch.
    """
    run, data = run_of(case), problem.data
    num, steps = data.num_samples, range(len(run.batches))
    transforms, seed = problem.config.data.augment, problem.config.seed
    assert transforms is not None
    seen = [augment(data.inputs, data.sample_ids, step, seed, transforms) for step in steps]
    return replace(
        run,
        inputs=torch.cat(seen),
        targets=run.targets.repeat(len(seen)),
        batches=tuple(ids + step * num for step, ids in enumerate(run.batches)),
    )


def rows_of(problem: Problem, folder: Path) -> tuple[Trajectory, Tensor]:
    recorded = record(problem, folder)
    block = BlockRecursion(problem, recorded, range(len(problem.data.units)))
    block.advance(recorded.num_steps)
    return recorded, in_unit_order(block)


@pytest.mark.parametrize("case", [SGD, ADAMW, SGD.but(denominator="batch")], ids=str)
def test_the_leave_one_out_engine_is_retraining(case: Case, tmp_path: Path) -> None:
    case = case.but(engine="leave-one-out")
    problem = augmented(case)
    run = as_oracle(case, problem)
    recorded, rows_NP = rows_of(problem, tmp_path)
    trained, num_steps = trajectory(run)[-1], recorded.num_steps
    assert relative_error(recorded.trained(), trained) < tolerances.JVP
    # Augmentation matters: without it training ends elsewhere.
    assert relative_error(trajectory(run_of(case))[-1], trained) > 0.01
    for row, owned_n in zip(rows_NP, case.owned_Nn, strict=True):
        ours = retrain(problem, recorded.schedule, owned_n)
        independent = retrained_without(run, owned_n.repeat(num_steps), case.convention)
        assert relative_error(row, ours - recorded.trained()) < tolerances.RIDGE
        assert relative_error(row, independent - trained) < tolerances.RIDGE


def test_the_full_batch_hessian_gives_the_derivative_of_training(tmp_path: Path) -> None:
    case = SGD.but(own_rows="included")
    problem = augmented(case)
    recorded, rows_NP = rows_of(problem, tmp_path)
    owned = case.owned_Nn.repeat(1, recorded.num_steps)
    expected = weight_derivatives(as_oracle(case, problem), owned, case.convention)
    assert relative_error(rows_NP, expected) < tolerances.JVP


def test_a_replay_has_the_bits_of_the_training(tmp_path: Path) -> None:
    problem = augmented(SGD)
    recorded = record(problem, tmp_path)
    assert len(recorded.checkpoints) == recorded.num_steps + 1
    replay = Replay.start(problem, recorded)
    with problem.arithmetic():
        assert len(list(replay.steps(recorded.num_steps))) == 9
    # Each of the nine steps was compared with its checkpoint.
    assert replay.max_drift == 0.0


def digits(folder: Path, model: dict[str, Any] | None = None, **recursion: Any) -> RunConfig:
    return RunConfig.from_values(
        {
            "data": {"source": "digits", "num_train": 40, "augment": TRANSFORMS},
            "model": model or {"name": "mlp", "hidden": [8], "activation": "tanh"},
            "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.1, "l2": 0.01},
            "recursion": recursion,
        }
    )


def test_a_repair_is_augmented_as_its_replay_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(monkeypatch, tmp_path)
    run = train(digits(tmp_path), tmp_path / "run")
    store = precompute(run)
    delete(run, store.units[:3])
    repair(run, epochs=1)
    tuned, problem = run.trajectory(1), run.problem()
    started = replace(problem, initial_P=tuned.parameters_before(0).to(problem.initial_P))
    nobody = torch.zeros(40, dtype=torch.bool)
    assert relative_error(retrain(started, tuned.schedule, nobody), tuned.trained()) < 1e-6
    plain = started.config.model_copy(
        update={"data": started.config.data.model_copy(update={"augment": None})}
    )
    without = retrain(replace(started, config=plain), tuned.schedule, nobody)
    assert relative_error(without, tuned.trained()) > 1e-3


def test_a_frozen_part_stays_inside_and_sees_what_the_step_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(monkeypatch, tmp_path)
    model = {"name": "cnn", "activation": "tanh", "trainable": "head"}
    config = digits(tmp_path, model, engine="leave-one-out", dtype="float64")
    run = train(config, tmp_path / "run")
    problem, recorded = run.problem(), run.trajectory()
    assert problem.part is not None and not problem.part.has_features
    assert not (run.trajectory_folder / "features.safetensors").exists()
    assert problem.data.inputs.shape == (40, 1, 8, 8) and problem.num_parameters == 510
    block = BlockRecursion(problem, recorded, range(4))
    block.advance(recorded.num_steps)
    rows_NP, trained = in_unit_order(block), recorded.trained()
    for unit in range(4):
        retrained = retrain(problem, recorded.schedule, torch.arange(40) == unit)
        assert relative_error(rows_NP[unit], retrained - trained) < tolerances.RIDGE
    released = load_release(run.path, release=0)
    images = problem.data.test_inputs[:3]
    expected = problem.network.outputs(trained, images).float()
    torch.testing.assert_close(released(images.float()), expected)


def test_shadow_models_draw_for_themselves(tmp_path: Path) -> None:
    problem = Problem.of(digits(tmp_path))
    # More samples than the run trains on, which therefore have no rows of the source.
    data = replace(problem.data, inputs=problem.data.test_inputs, targets=problem.data.test_targets)
    assert len(data.targets) > problem.data.num_samples
    one, again, other = (train_on(problem, data, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
