"""A user's own network: the approximators of all units, and what cannot be followed refused by name."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline import RunConfig, delete, load_release, precompute, train
from pipeline.config import ModelConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.evaluation.trials import unlearn
from pipeline.models.registry import Shape, build
from pipeline.run.problem import Problem
from pipeline.training.retraining import retrain
from tests.pipeline.fake_store import use_key

EXAMPLES = "tests.examples.mixer"
DIGIT = Shape((1, 8, 8), 10)


def config(name: str = f"{EXAMPLES}:mixer", **model: Any) -> RunConfig:
    return RunConfig.from_values(
        {
            "data": {"source": "digits", "num_train": 64},
            "model": {"name": name, **model},
            "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "l2": 0.001},
        }
    )


@pytest.mark.parametrize("name", ["mixer", "attention"])
def test_every_unit_of_a_users_model_gets_its_approximator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use_key(monkeypatch, tmp_path)
    run = train(config(f"{EXAMPLES}:{name}"), tmp_path / "run")
    store = precompute(run)
    problem, trajectory = run.problem(), run.trajectory()
    assert store.verify() == []
    assert problem.network.form != "r-operator"
    trained_P = trajectory.trained()
    units = torch.arange(8)

    def sum_rows(names: list[str], weights: list[int] | None) -> tuple[Any, float]:
        return store.sum_rows(names, weights), 0.0

    unlearned, _ = unlearn(problem, units.numpy(), trained_P.numpy(), sum_rows)
    retrained_P = retrain(problem, trajectory.schedule, problem.data.samples_of(units))
    distance = float((torch.from_numpy(unlearned) - retrained_P).norm())
    # GELU and LayerNorm are smooth: eight of 64 samples to a few percent.
    assert distance < 0.1 * float((trained_P - retrained_P).norm())
    delete(run, [problem.data.units[unit] for unit in units])
    released = load_release(run.path)
    images = problem.data.test_inputs[:5]
    expected = problem.network.outputs(torch.from_numpy(unlearned), images)
    torch.testing.assert_close(released(images), expected)
    assert not released.training


REFUSED = {
    "noisy": "another output when the same samples are passed again",
    "coupled": "depends on the others of its minibatch",
    "counting": "'passes' changes",
    "too_few_classes": r"shape \(4, 9\); expected \(4, 10\)",
    "tuples": r"returns a tuple; expected a tensor of scores \(4, 10\)",
    "failing": r"fails on samples of shape \(1, 8, 8\): RuntimeError",
    "unfinished": r"unfinished\(\(1, 8, 8\), 10\) fails: KeyError",
    "no_module": "returned a dict; expected a torch.nn.Module",
}


@pytest.mark.parametrize("factory", REFUSED)
def test_a_model_that_cannot_be_followed_is_refused_before_training(factory: str) -> None:
    with pytest.raises(ModelError, match=REFUSED[factory]):
        Problem.of(config(f"{EXAMPLES}:{factory}"))


MISSING = {
    f"{EXAMPLES}:nobody": "has no callable 'nobody'",
    f"{EXAMPLES}:NOT_CALLABLE": "has no callable 'NOT_CALLABLE'",
    "nowhere.at_all:model": "cannot be imported",
    "mpl": "mlp",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_factory_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=MISSING[name]):
        Problem.of(config(name))


def test_batch_norm_that_is_frozen_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import tests.examples.mixer as examples

    made = examples.with_batch_norm
    monkeypatch.setattr(examples, "with_batch_norm", lambda *shape: made(*shape).eval())
    network = Problem.of(config(f"{EXAMPLES}:with_batch_norm")).network
    assert not network.couples
    assert network.training is network.module


def test_dropout_and_batch_normalisation_are_followed() -> None:
    assert Problem.of(config(f"{EXAMPLES}:with_dropout")).network.drops
    problem = Problem.of(config(f"{EXAMPLES}:with_batch_norm"))
    assert problem.network.couples
    assert problem.network.layout.names[-2:] == ("0.running_mean", "0.running_var")
    assert problem.num_parameters == problem.network.layout.trained.num_parameters + 2


def saved(path: Path, **changes: torch.Tensor | None) -> str:
    tensors = build(ModelConfig(name="mlp"), DIGIT, 1).state_dict()
    for name, value in changes.items():
        if value is None:
            del tensors[name.replace("_", ".")]
        else:
            tensors[name.replace("_", ".")] = value
    save_file(tensors, path)
    return str(path)


def test_weights_are_read_from_a_file(tmp_path: Path) -> None:
    init = saved(tmp_path / "w.safetensors")
    again = build(ModelConfig(name="mlp", init=init), DIGIT, 2)
    drawn = build(ModelConfig(name="mlp"), DIGIT, 1)
    for name, value in drawn.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_head_for_other_classes_is_drawn_anew(tmp_path: Path) -> None:
    init = saved(tmp_path / "w.safetensors")
    module = build(ModelConfig(name="mlp", init=init), Shape((1, 8, 8), 3), 2)
    assert module.state_dict()["3.weight"].shape == (3, 64)


WRONG_FILES = {
    "shape": ({"1_weight": torch.zeros(64, 63)}, r"'1.weight' has shape \(64, 63\).*\(64, 64\)"),
    "missing": ({"1_bias": None}, "no tensor '1.bias'"),
    "left over": ({"9_weight": torch.zeros(1)}, "holds '9.weight'"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_weights_of_another_network_are_refused(case: str, tmp_path: Path) -> None:
    changes, message = WRONG_FILES[case]
    init = saved(tmp_path / "w.safetensors", **changes)
    with pytest.raises(ModelError, match=message):
        build(ModelConfig(name="mlp", init=init), DIGIT, 1)


def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(os.urandom(64))
    with pytest.raises(ConfigError, match="is no safetensors file"):
        build(ModelConfig(name="mlp", init=str(tmp_path / "w.safetensors")), DIGIT, 1)
    with pytest.raises(ConfigError, match="does not exist"):
        build(ModelConfig(name="mlp", init=str(tmp_path / "x.safetensors")), DIGIT, 1)
