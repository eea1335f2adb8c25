"""A frozen backbone: features made once, the head's recursion on them, the whole model released."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import RunConfig, delete, load_release, precompute, train
from pipeline.approximators.block import BlockRecursion
from pipeline.errors import ConfigError, ModelError, TrajectoryError
from pipeline.hessian.hvp import Network
from pipeline.models.parameters import flat_parameters
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.run.trained_part import featurise
from pipeline.training.train import record
from tests.pipeline.fake_store import use_key


def config(**model: Any) -> RunConfig:
    return RunConfig.from_values(
        {
            "data": {"source": "digits", "num_train": 48, "sample_ids": "position"},
            "model": {"name": "cnn", "activation": "tanh", **model},
            "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.1, "l2": 0.001},
            "storage": {"encoding": "float32"},
        }
    )


def rows(configuration: RunConfig, folder: Path) -> np.ndarray:
    store = precompute(train(configuration, folder))
    return store.read_rows_at(list(range(48)))


def test_the_head_of_any_model_is_found_and_trained_on_features(tmp_path: Path) -> None:
    model = {"name": "tests.examples.mixer:mixer"}
    head = rows(config(**model, trainable="head"), tmp_path / "head")
    problem = RunDirectory.open(tmp_path / "head").problem()
    assert head.shape == (48, 16 * 10 + 10) and problem.network.form == "r-operator"
    # From `norm` on: the model is no chain, so its frozen part stays inside, without features.
    inside = Problem.of(config(**model, trainable="norm"))
    assert inside.part is not None and not inside.part.has_features
    assert inside.num_parameters == 16 + 16 + 170 and inside.network.form != "r-operator"


def test_a_cut_before_a_stage_gives_the_rows_of_the_uncut_network(tmp_path: Path) -> None:
    cut = rows(config(trainable="7"), tmp_path / "cut")
    head = RunDirectory.open(tmp_path / "cut").problem()
    assert head.data.inputs.shape == (48, 80) and cut.shape[1] == 80 * 50 + 50 + 510
    # The same network, frozen by hand and never cut.
    problem = Problem.of(config())
    for name, parameter in problem.network.module.named_parameters():
        parameter.requires_grad_(name.startswith(("7", "9")))
    network = Network.of(problem.network.module, problem.network.loss, "reverse")
    uncut = replace(problem, network=network, initial_P=flat_parameters(network.module), part=None)
    trajectory = record(uncut, tmp_path / "uncut")
    block = BlockRecursion(uncut, trajectory, range(48))
    block.advance(trajectory.num_steps)
    np.testing.assert_allclose(cut, block.rows(), rtol=1e-3, atol=1e-6)


def test_features_are_read_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(config(trainable="head"), tmp_path / "run")

    def fail(*_: Any) -> None:
        raise AssertionError("features were made again")

    monkeypatch.setattr("pipeline.run.trained_part.featurise", fail)
    assert run.problem().data.inputs.shape == (48, 50)


@pytest.mark.parametrize("name", ["features", "frozen"])
def test_what_is_frozen_belongs_to_the_digest(name: str, tmp_path: Path) -> None:
    run = train(config(trainable="head"), tmp_path / "run")
    path = run.trajectory_folder / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrajectoryError, match="digest"):
        run.trajectory()
    path.write_bytes(content[:40])
    with pytest.raises(TrajectoryError, match="cannot be read"):
        run.problem()


@pytest.mark.parametrize("norm", [None, 2.5])
def test_the_whole_network_is_released(
    norm: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(monkeypatch, tmp_path)
    run = train(config(trainable="head", feature_norm=norm), tmp_path / "run")
    precompute(run)
    delete(run, [3, 17])
    problem, released = run.problem(), load_release(run.path, 1)
    images = Problem.of(config()).data.test_inputs[:6]
    head = dict(released.named_parameters())
    w_P = torch.cat([head["9.weight"].detach().reshape(-1), head["9.bias"].detach()])
    features = problem.data.test_inputs[:6]
    torch.testing.assert_close(released(images), problem.network.outputs(w_P, features))
    if norm is not None:
        torch.testing.assert_close(problem.data.inputs.norm(dim=1), torch.full((48,), norm))
    with pytest.raises(ConfigError, match="has no release 2"):
        load_release(run.path, 2)
    before = torch.cat([p.detach().reshape(-1) for p in load_release(run.path, 0)[9].parameters()])
    assert torch.equal(before, run.trajectory().trained())


def test_a_backbone_that_changes_between_passes_is_refused() -> None:
    data = Problem.of(config()).data
    with pytest.raises(ModelError, match="changes between passes"):
        featurise(data, lambda x: x.flatten(1) + torch.rand(1), None)
    with pytest.raises(ModelError, match="not finite"):
        featurise(data, lambda x: (x.flatten(1) + 1) / 0, None)


WRONG = {
    "no part": ({"trainable": "layer4"}, ConfigError, "has no such part"),
    "no parameters": ({"trainable": "6"}, ConfigError, "without parameters"),
    "norm of everything": ({"feature_norm": 1.0}, ConfigError, "needs model.trainable: head"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_part_that_cannot_be_trained_is_refused(case: str) -> None:
    model, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        Problem.of(config(**model))


def test_a_model_that_ends_in_no_linear_layer_has_no_head() -> None:
    from pipeline.models.trainable import head_of

    with pytest.raises(ModelError, match="not that of a linear layer"):
        head_of(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), torch.zeros(1, 3))
