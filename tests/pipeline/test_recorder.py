"""A training loop of one's own leaves the run that training here would leave."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import Recorder, RunConfig, RunDirectory, precompute, train
from pipeline.errors import ConfigError, DataError, ModelError, TrajectoryError
from pipeline.models.registry import Shape, build
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule

FACTORY = "tests.examples.perceptron:perceptron"


def config(**training: Any) -> RunConfig:
    return RunConfig.from_values(
        {
            "data": {"source": "digits", "num_train": 64},
            "model": {"name": FACTORY},
            "training": {
                "epochs": 3,
                "batch_size": 16,
                "learning_rate": 0.05,
                "learning_rate_decay": 0.99,
                "l2": 0.01,
                **training,
            },
            "storage": {"encoding": "float32"},
        }
    )


def network(configuration: RunConfig) -> nn.Module:
    module = build(configuration.model, Shape((1, 8, 8), 10), configuration.seed)
    return module.train()


Prepare = Callable[[Tensor], Tensor]


class Loop:
    """A plain torch loop: nothing here comes from the project but the calls of the recorder."""

    def __init__(self, configuration: RunConfig, out: Path, **changes: Any) -> None:
        training = configuration.training
        problem = Problem.of(configuration)
        self.x, self.y = problem.data.inputs, problem.data.targets
        self.ids = problem.data.sample_ids
        self.schedule = Schedule.draw(training, 64, configuration.seed)
        self.model = changes.pop("model", None) or network(configuration)
        kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        kind = changes.pop("optimizer", kinds[training.optimizer])
        self.clip_norm = training.clip_norm
        options = {"lr": 0.05, "weight_decay": training.l2 or training.weight_decay or 0.0}
        if kind is torch.optim.SGD:
            options |= {"momentum": training.momentum, "nesterov": training.nesterov}
        self.optimizer = kind(self.model.parameters(), **{**options, **changes})
        weights = training.class_weights
        self.loss = nn.CrossEntropyLoss(
            None if weights is None else torch.tensor(weights),
            label_smoothing=training.label_smoothing,
        )
        self.recorder = Recorder(self.model, self.loss, configuration, out, self.optimizer)

    def step(self, number: int, prepare: Prepare = lambda x: x) -> None:
        positions, rate = self.schedule.sample_ids[number], self.schedule.learning_rates[number]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        self.loss(self.model(prepare(self.x[positions])), self.y[positions]).backward()
        if self.clip_norm is not None:
            # The decay belongs to the gradient that is clipped, so it is added before.
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.recorder.step(self.ids[positions].tolist(), rate)

    def run(self) -> RunDirectory:
        for number in range(self.schedule.num_steps):
            self.step(number)
        return self.recorder.finish()


LOOPS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "clipping": {"clip_norm": 1.0, "l2": 0.0},
    "label smoothing": {"label_smoothing": 0.1},
    "class weights": {"class_weights": [0.2, 1, 1, 3, 1, 1, 0.5, 1, 1, 7]},
    "adam": {"optimizer": "adam", "learning_rate": 0.01},
    "adamw, clipping, cosine with warmup": {
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "learning_rate_decay": 1.0,
        "l2": 0.0,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "schedule": "cosine",
        "warmup_steps": 3,
    },
}


@pytest.mark.parametrize("name", LOOPS)
def test_the_rows_are_those_of_the_built_in_training(name: str, tmp_path: Path) -> None:
    configuration = config(**LOOPS[name])
    recorded = precompute(Loop(configuration, tmp_path / "loop").run())
    trained = precompute(train(configuration, tmp_path / "here"))
    mine, theirs = (store.read_rows_at(list(range(64))) for store in (recorded, trained))
    assert np.linalg.norm(mine - theirs) < 1e-6 * np.linalg.norm(theirs)


def test_the_loops_own_parameters_are_the_trained_model(tmp_path: Path) -> None:
    loop = Loop(config(), tmp_path / "loop")
    assert torch.equal(loop.recorder.sample_ids, loop.ids)
    trajectory = loop.run().trajectory()
    expected = torch.cat([p.detach().reshape(-1) for p in loop.model.parameters()])
    assert torch.equal(trajectory.trained(), expected)
    assert trajectory.num_steps == 12 and len(trajectory.checkpoints) == 13


def test_checkpoints_are_thinned_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.recording.CHECKPOINTS", 2)
    trajectory = Loop(config(), tmp_path / "loop").run().trajectory()
    assert trajectory.checkpoints == (0, 4, 8, 12)


def test_a_start_from_other_weights_is_the_recorded_start(tmp_path: Path) -> None:
    other = network(config().model_copy(update={"seed": 7}))
    run = Loop(config(), tmp_path / "loop", model=other).run()
    drawn = torch.cat([p.detach().reshape(-1) for p in network(config()).parameters()])
    assert not torch.equal(run.problem().initial_P, drawn)
    assert torch.equal(run.problem().initial_P, run.trajectory().parameters_before(0))


REFUSED = {
    "Adam": (
        {"optimizer": torch.optim.Adam},
        ConfigError,
        "uses Adam, the configuration training.optimizer sgd",
    ),
    "other decay": ({"weight_decay": 0.2}, ConfigError, "weight_decay 0.2.*0.01"),
    "other momentum": ({"momentum": 0.5}, ConfigError, "momentum 0.5.*0.0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_that_cannot_be_followed_is_refused(name: str, tmp_path: Path) -> None:
    changes, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        Loop(config(), tmp_path / "loop", **changes)


def test_adam_is_refused_on_its_first_step_even_if_it_is_not_handed_in(tmp_path: Path) -> None:
    loop = Loop(config(), tmp_path / "loop")
    loop.optimizer = torch.optim.Adam(loop.model.parameters(), weight_decay=0.01)
    with pytest.raises(ModelError, match="step 0 of the loop is not the step"):
        loop.step(0)


def test_augmentation_is_refused_on_the_first_step(tmp_path: Path) -> None:
    loop = Loop(config(), tmp_path / "loop")
    with pytest.raises(ModelError, match="inputs were augmented"):
        loop.step(0, lambda x: x.flip(3))


def test_a_loop_that_draws_its_minibatches_from_the_recorder_is_followed(tmp_path: Path) -> None:
    plain = config()
    transforms = [{"crop": {"padding": 1}}, {"noise": {"deviation": 0.1}}]
    values = plain.model_dump(mode="json")
    configuration = RunConfig.from_values(
        {**values, "data": {**values["data"], "augment": transforms}}
    )
    loop = Loop(configuration, tmp_path / "loop")
    for number, positions in enumerate(loop.schedule.sample_ids):
        ids = loop.ids[positions]
        loop.step(number, lambda x, ids=ids: loop.recorder.draw(ids, x))  # type: ignore[misc]
    recorded = precompute(loop.recorder.finish())
    trained = precompute(train(configuration, tmp_path / "here"))
    mine, theirs = (store.read_rows_at(list(range(64))) for store in (recorded, trained))
    assert np.linalg.norm(mine - theirs) < 1e-6 * np.linalg.norm(theirs)
    # Without configuration there is nothing to do; ids are checked as those of a step are.
    recorder = Loop(plain, tmp_path / "plain").recorder
    assert torch.equal(recorder.draw(loop.ids[:2], loop.x[:2]), loop.x[:2])
    with pytest.raises(DataError, match="held out"):
        loop.recorder.draw([47, 5], loop.x[:2])


def test_mixed_precision_is_refused_on_the_first_step(tmp_path: Path) -> None:
    loop = Loop(config(), tmp_path / "loop")
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ModelError, match="mixed precision"),
    ):
        loop.step(0)


def test_another_network_than_the_factorys_is_refused(tmp_path: Path) -> None:
    wider = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 10))
    with pytest.raises(ModelError, match="or of other shapes"):
        Loop(config(), tmp_path / "loop", model=wider)
    with pytest.raises(ModelError, match=r"'0\.bias' is only in one"):
        Loop(config(), tmp_path / "loop", model=nn.Sequential(nn.Linear(64, 10)))


def test_another_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"of cross-entropy with training\.label_smoothing 0 is"):
        Recorder(
            network(config()), nn.CrossEntropyLoss(label_smoothing=0.1), config(), tmp_path / "run"
        )


IDS = {
    "twice": ([1, 5, 5], "sample 5 comes twice in step 0"),
    "outside": ([47, 1797], r"sample 1797 is not in the source, whose rows are 0..1796"),
    "negative": ([47, -1], r"sample -1 is not in the source, whose rows are 0..1796"),
    "of the test part": ([47, 5], "sample 5 is held out for testing"),
    "not drawn": ([47, 2], "sample 2 is left out of the training set"),
    "none": ([], r"shape \(0,\)"),
}


@pytest.mark.parametrize("name", IDS)
def test_ids_that_make_no_minibatch_are_refused(name: str, tmp_path: Path) -> None:
    ids, message = IDS[name]
    recorder = Loop(config(), tmp_path / "loop").recorder
    with pytest.raises(DataError, match=message):
        recorder.step(ids, 0.1)


def test_a_recording_without_steps_or_made_twice_is_refused(tmp_path: Path) -> None:
    loop = Loop(config(), tmp_path / "loop")
    with pytest.raises(TrajectoryError, match="no step was recorded"):
        loop.recorder.finish()
    loop.run()
    with pytest.raises(TrajectoryError, match="trained already"):
        Loop(config(), tmp_path / "loop")
