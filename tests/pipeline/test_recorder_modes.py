"""Loops with dropout, batch normalisation and augmentation are followed, or refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import Recorder, RunConfig, precompute, train
from pipeline.errors import ModelError
from pipeline.models.registry import Shape, build
from pipeline.run.schedule import Schedule
from tests.examples import perceptron as examples
from tests.pipeline.test_recorder_loader import Digits

AUGMENT = [{"crop": {"padding": 1}}, {"noise": {"deviation": 0.1}}]


def config(factory: str, augment: Any = None) -> RunConfig:
    return RunConfig.from_values(
        {
            "data": {"source": "digits", "num_train": 64, "augment": augment},
            "model": {"name": f"tests.examples.perceptron:{factory}"},
            "training": {
                "optimizer": "adamw",
                "epochs": 2,
                "batch_size": 16,
                "learning_rate": 0.01,
            },
            "storage": {"encoding": "float32"},
        }
    )


class Loop:
    """A plain torch loop; `model` is the configured one unless given."""

    def __init__(self, configuration: RunConfig, out: Path, model: nn.Module | None = None) -> None:
        built = build(configuration.model, Shape((1, 8, 8), 10), configuration.seed)
        self.config, self.model = configuration, (model or built).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.loss = nn.CrossEntropyLoss()
        self.recorder = Recorder(self.model, self.loss, configuration, out, self.optimizer)

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        self.optimizer.zero_grad()
        self.loss(self.model(inputs), targets).backward()
        self.optimizer.step()


CASES = {
    "dropout and batch normalisation": ("normalised", None),
    "dropout and augmentation": ("dropping", AUGMENT),
}


@pytest.mark.parametrize("name", CASES)
def test_a_loop_leaves_the_run_of_the_built_in_training(name: str, tmp_path: Path) -> None:
    configuration = config(*CASES[name])
    loop, digits = Loop(configuration, tmp_path / "loop"), Digits()
    schedule = Schedule.draw(configuration.training, 64, configuration.seed)
    for positions in schedule.sample_ids:
        ids = loop.recorder.sample_ids[positions]
        inputs = loop.recorder.draw(ids, torch.from_numpy(digits.images[ids]))
        loop.step(inputs, torch.from_numpy(digits.classes[ids]))
        loop.recorder.step()
        # What happens between steps in eval mode is the network's own business.
        loop.model.eval()(torch.from_numpy(digits.images[:5]))
        loop.model.train()
    run = loop.recorder.finish()
    here = train(configuration, tmp_path / "here")
    trained = here.trajectory().trained()
    torch.testing.assert_close(run.trajectory().trained(), trained, rtol=0, atol=1e-5)
    tensors = {**dict(loop.model.named_parameters()), **dict(loop.model.named_buffers())}
    names = run.problem().network.layout.names
    recorded = torch.cat([tensors[key].detach().reshape(-1) for key in names])
    assert torch.equal(run.trajectory().trained(), recorded)
    if name == "dropout and augmentation":
        mine, theirs = (precompute(each).read_rows_at(list(range(64))) for each in (run, here))
        assert np.linalg.norm(mine - theirs) < 1e-4 * np.linalg.norm(theirs)


def test_dropout_does_something_and_is_given_back(tmp_path: Path) -> None:
    loop = Loop(config("dropping"), tmp_path / "loop")
    inputs, targets, ids = next(iter(loop.recorder.loader()))
    hidden = loop.model[:4](inputs)
    plain = loop.model[:3](inputs)
    dropped = hidden == 0
    assert 0.1 < float(dropped.float().mean()) < 0.5
    torch.testing.assert_close(hidden[~dropped], plain[~dropped] / 0.7)
    # Of a sample alone, in another order, the draw is the same.
    loop.recorder.draw(ids.flip(0))
    assert torch.equal(loop.model[:4](inputs.flip(0)), hidden.flip(0))
    loop.recorder.draw(ids)
    loop.step(inputs, targets)
    loop.recorder.step()
    # The next step draws anew.
    loop.recorder.draw(ids)
    assert not torch.equal(loop.model[:4](inputs) == 0, dropped)
    loop.recorder.finish()
    assert type(loop.model[3]) is nn.Dropout
    assert loop.model[3].training


def test_the_loader_hands_out_augmented_inputs_of_its_dataset(tmp_path: Path) -> None:
    loop = Loop(config("perceptron", AUGMENT), tmp_path / "loop")
    for dataset in (None, Digits()):
        inputs, _, ids = next(iter(loop.recorder.loader(dataset, seed=3)))
        plain = torch.from_numpy(Digits().images[ids])
        assert not torch.allclose(inputs, plain, atol=0.01)
        assert torch.equal(inputs, loop.recorder.draw(ids, plain))
        assert torch.equal(inputs, loop.recorder.draw(ids))


def test_a_minibatch_that_was_not_announced_is_refused_where_dropout_is_drawn(
    tmp_path: Path,
) -> None:
    loop = Loop(config("dropping"), tmp_path / "loop")
    inputs, _, ids = next(iter(loop.recorder.loader()))
    with pytest.raises(ModelError, match="the minibatch has 4, and one of 16 is announced"):
        loop.model(inputs[:4])
    loop.recorder.draw(ids)
    loop.step(inputs, torch.from_numpy(Digits().classes[ids]))
    loop.recorder.step()
    with pytest.raises(ModelError, match="the minibatch has 16, and none is announced"):
        loop.model(inputs)


OTHERS = {
    "other share": (
        "dropping",
        [nn.Dropout(0.2)],
        r"at '3' the model has Dropout, p=0\.2, .* dropout with p=0\.3",
    ),
    "of channels": ("dropping", [nn.Dropout1d(0.3)], r"at '3' the model has Dropout1d, p=0\.3"),
    "none": ("dropping", [nn.Identity()], r"at '3' the model has Identity"),
    "frozen in the factory": (
        "dropping_in_eval",
        [nn.Dropout(0.3)],
        r"3 \(Dropout, p=0\.3\) is in train mode in the loop and in eval mode in what",
    ),
    "of another kind": ("dropping", [nn.AlphaDropout(0.3)], r"3 \(AlphaDropout\) draws at random"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_dropout_other_than_the_factorys_is_refused(name: str, tmp_path: Path) -> None:
    factory, (part,), message = OTHERS[name]
    model = examples.dropping((1, 8, 8), 10)
    model.set_submodule("3", part)
    with pytest.raises(ModelError, match=message):
        Loop(config(factory), tmp_path / "loop", model)


@pytest.mark.parametrize(("factory", "name"), [("dropping", "3"), ("normalised", "2")])
def test_a_part_in_another_mode_is_refused_at_the_step(
    factory: str, name: str, tmp_path: Path
) -> None:
    loop = Loop(config(factory), tmp_path / "loop")
    inputs, targets, _ = next(iter(loop.recorder.loader()))
    loop.model.get_submodule(name).eval()
    loop.step(inputs, targets)
    with pytest.raises(ModelError, match=rf"{name} \(.*\) is in eval mode in the loop"):
        loop.recorder.step()
