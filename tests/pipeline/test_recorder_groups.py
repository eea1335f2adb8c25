"""Loops whose optimizer has parameter groups: followed where the configuration says the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import Recorder, RunConfig
from pipeline.errors import ConfigError
from pipeline.models.registry import Shape, build
from pipeline.training.retraining import retrain

# The example's tensors are 1.weight, 1.bias, 3.weight and 3.bias.
GROUPS = [
    {"parameters": "*.bias", "weight_decay": 0.0},
    {"parameters": "3.*", "learning_rate": 0.002},
]


def config(groups: list[dict[str, Any]], optimizer: str = "adamw") -> RunConfig:
    return RunConfig.from_values(
        {
            "data": {"source": "digits", "num_train": 64},
            "model": {"name": "tests.examples.perceptron:perceptron"},
            "training": {
                "optimizer": optimizer,
                "epochs": 2,
                "batch_size": 16,
                "learning_rate": 0.01,
                "weight_decay": 0.1,
                "groups": groups,
            },
        }
    )


def optimizer_of(model: nn.Module, **changes: Any) -> torch.optim.Optimizer:
    """torch's groups as `GROUPS` says."""
    kind = changes.pop("kind", torch.optim.AdamW)
    named = dict(model.named_parameters())
    groups = {
        "biases": {"params": [named["1.bias"], named["3.bias"]], "weight_decay": 0.0},
        "hidden": {"params": [named["1.weight"]]},
        "last": {"params": [named["3.weight"]], "lr": 0.002},
    }
    for name, values in changes.items():
        groups[name] |= values
    return kind(list(groups.values()), lr=0.01, weight_decay=0.1)


class Loop:
    def __init__(self, out: Path, configuration: RunConfig, **changes: Any) -> None:
        self.model = build(configuration.model, Shape((1, 8, 8), 10), 1).train()
        self.optimizer = optimizer_of(self.model, **changes)
        self.loss = nn.CrossEntropyLoss()
        self.recorder = Recorder(self.model, self.loss, configuration, out, self.optimizer)

    def run(self, scheduler: Any) -> list[float]:
        rates = []
        for _ in range(2):
            for inputs, targets, _ in self.recorder.loader():
                self.optimizer.zero_grad()
                self.loss(self.model(inputs), targets).backward()
                self.optimizer.step()
                rates.append(self.optimizer.param_groups[1]["lr"])
                self.recorder.step()
                scheduler.step()
        return rates


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_groups_with_decay_and_rate_of_their_own_are_followed(name: str, tmp_path: Path) -> None:
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    loop = Loop(tmp_path / "run", config(GROUPS, name), kind=kinds[name])
    rates = loop.run(torch.optim.lr_scheduler.CosineAnnealingLR(loop.optimizer, T_max=8))
    run = loop.recorder.finish()
    trajectory = run.trajectory()
    # A minimum of 0 keeps torch's rates of all groups in proportion, to rounding.
    assert trajectory.schedule.learning_rates == pytest.approx(rates)
    trained = torch.cat([p.detach().reshape(-1) for p in loop.model.parameters()])
    assert torch.equal(trajectory.trained(), trained)
    again_P = retrain(run.problem(), trajectory.schedule, torch.zeros(64, dtype=torch.bool))
    torch.testing.assert_close(again_P, trained, rtol=0, atol=1e-5)


def test_groups_that_say_the_same_need_no_configuration(tmp_path: Path) -> None:
    same = {"biases": {"weight_decay": 0.1}, "last": {"lr": 0.01}}
    Loop(tmp_path / "run", config([]), **same)


OTHERS = {
    "decay": (GROUPS[1:], {}, r"weight_decay 0\.0 for parameter '1\.bias', the configuration 0\.1"),
    "rate": (
        GROUPS[:1],
        {},
        r"rate 0\.002 for parameter '3\.weight' and 0\.01 for '1\.bias', the configuration 0\.01",
    ),
    "rate of the configuration": (
        GROUPS,
        {"last": {"lr": 0.01}},
        r"rate 0\.01 for parameter '3\.weight' and .* the configuration 0\.002 and 0\.01",
    ),
    "rate of one tensor in a group": (
        [GROUPS[0], {"parameters": "1.weight", "learning_rate": 0.1}, GROUPS[1]],
        {},
        r"rate 0\.01 for parameter '1\.weight' .* the configuration 0\.1",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_groups_that_differ_are_refused_by_the_parameters_name(name: str, tmp_path: Path) -> None:
    groups, changes, message = OTHERS[name]
    with pytest.raises(ConfigError, match=message):
        Loop(tmp_path / "run", config(groups), **changes)


def test_rates_that_leave_their_proportion_are_refused_at_the_step(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run", config(GROUPS))
    falling = [lambda step: 1.0, lambda step: 1.0, lambda step: 0.5**step]
    scheduler = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, falling)
    with pytest.raises(ConfigError, match=r"rate 0\.001 for parameter '3\.weight'"):
        loop.run(scheduler)
    assert loop.recorder.num_steps == 1


def test_a_warmup_that_starts_at_no_rate_keeps_the_groups_proportion(tmp_path: Path) -> None:
    configuration = config(GROUPS)
    model = build(configuration.model, Shape((1, 8, 8), 10), 1).train()
    optimizer = optimizer_of(model)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4))
    Recorder(model, None, configuration, tmp_path / "run", optimizer)


def test_the_optimizer_and_the_model_hold_the_same_tensors(tmp_path: Path) -> None:
    configuration = config(GROUPS)
    model = build(configuration.model, Shape((1, 8, 8), 10), 1).train()
    some = torch.optim.AdamW(list(model.parameters())[:3], lr=0.01, weight_decay=0.1)
    with pytest.raises(ConfigError, match=r"does not update parameter '3\.bias'"):
        Recorder(model, None, configuration, tmp_path / "run", some)
    more = torch.optim.AdamW([*model.parameters(), nn.Parameter(torch.zeros(7, 3))], lr=0.01)
    with pytest.raises(ConfigError, match=r"a tensor of shape \(7, 3\) that is no trainable"):
        Recorder(model, None, configuration, tmp_path / "run", more)
