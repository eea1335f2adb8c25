"""The recorder's loader: training samples alone, under the ids of the source's rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from pipeline import Recorder, RunConfig, precompute
from pipeline.data import load
from pipeline.errors import ConfigError, DataError, ModelError, TrajectoryError
from pipeline.models.registry import Shape, build
from pipeline.training.retraining import retrain

NUM_ROWS = 1797


def config(**sections: Any) -> RunConfig:
    values: dict[str, Any] = {
        "data": {"source": "digits", "num_train": 64},
        "model": {"name": "tests.examples.perceptron:perceptron"},
        "training": {
            "optimizer": "adamw",
            "epochs": 3,
            "batch_size": 16,
            "learning_rate": 0.01,
            "weight_decay": 0.1,
            "clip_norm": 1.0,
        },
        "storage": {"encoding": "float32"},
    }
    return RunConfig.from_values(values | sections)


class Loop:
    """AdamW with a cosine schedule and clipping, as one would write it."""

    def __init__(self, out: Path, configuration: RunConfig | None = None) -> None:
        self.config = configuration or config()
        module = build(self.config.model, Shape((1, 8, 8), 10), self.config.seed)
        self.model = module.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, weight_decay=0.1)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=12)
        self.loss = nn.CrossEntropyLoss()
        self.recorder = Recorder(self.model, self.loss, self.config, out, self.optimizer)

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        self.optimizer.zero_grad()
        self.loss(self.model(inputs), targets).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


class Digits(Dataset[tuple[np.ndarray, int]]):
    """scikit-learn's own reading of the rows, scaled as the source scales them."""

    def __init__(self) -> None:
        digits = load_digits()
        self.images = (digits.images / 16).astype(np.float32)[:, None]
        self.classes = digits.target

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self.images[row], int(self.classes[row])


def test_each_pass_draws_every_training_sample_once_and_no_other(tmp_path: Path) -> None:
    recorder = Loop(tmp_path / "run").recorder
    rows, digits = load(config().data, config().seed).rows, Digits()
    assert rows is not None
    loader = recorder.loader(batch_size=10)
    assert len(loader) == 7
    passes = []
    for _ in range(2):
        minibatches = list(loader)
        assert [len(ids) for _, _, ids in minibatches] == [10] * 6 + [4]
        for inputs, targets, ids in minibatches:
            assert np.array_equal(inputs, digits.images[ids])
            assert np.array_equal(targets, digits.classes[ids])
        passes.append(torch.cat([ids for _, _, ids in minibatches]))
        assert sorted(passes[-1].tolist()) == sorted(rows.trained.tolist())
    assert not torch.equal(*passes)


def test_the_order_depends_on_the_seed_alone(tmp_path: Path) -> None:
    recorder = Loop(tmp_path / "run").recorder

    def order(**options: Any) -> list[int]:
        return torch.cat([ids for _, _, ids in recorder.loader(**options)]).tolist()

    torch.manual_seed(5)
    first = order(seed=1)
    torch.manual_seed(6)
    assert first == order(seed=1) == order(seed=1, dataset=Digits(), num_workers=1)
    assert first != order(seed=2)
    assert order() == order(seed=config().seed)
    assert order(shuffle=False) == recorder.sample_ids.tolist()


@pytest.mark.parametrize("dataset", [None, Digits()], ids=["the run's data", "a dataset"])
def test_steps_without_arguments_record_what_the_loop_did(
    dataset: Digits | None, tmp_path: Path
) -> None:
    loop = Loop(tmp_path / "run")
    drawn, rates = [], []
    loader = loop.recorder.loader(dataset)
    for _ in range(3):
        for inputs, targets, ids in loader:
            loop.step(inputs, targets)
            drawn.append(ids)
            rates.append(loop.scheduler.get_last_lr()[0])
            loop.recorder.step()
            loop.scheduler.step()
    run = loop.recorder.finish()
    problem, trajectory = run.problem(), run.trajectory()
    assert trajectory.schedule.learning_rates == tuple(rates)
    positions = trajectory.schedule.sample_ids
    assert [problem.data.sample_ids[batch].tolist() for batch in positions] == [
        ids.tolist() for ids in drawn
    ]
    # Retraining takes these minibatches at these rates, and knows nothing of the loop.
    nobody = torch.zeros(64, dtype=torch.bool)
    again_P = retrain(problem, trajectory.schedule, nobody)
    torch.testing.assert_close(again_P, trajectory.trained(), rtol=0, atol=1e-5)
    unit = torch.zeros(64, dtype=torch.bool)
    unit[int(positions[0][0])] = True
    moved_P = retrain(problem, trajectory.schedule, unit) - again_P
    row_P = torch.from_numpy(precompute(run).read_rows_at([int(positions[0][0])])[0])
    assert float((row_P - moved_P).norm()) < 0.15 * float(moved_P.norm())


def test_the_ids_and_the_rate_can_still_be_given(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    inputs, targets, ids = next(iter(loop.recorder.loader()))
    loop.step(inputs, targets)
    loop.scheduler.step()
    with pytest.raises(ModelError, match=r"before scheduler\.step"):
        loop.recorder.step()
    loop.recorder.step(ids.tolist(), learning_rate=0.01)
    assert loop.recorder.num_steps == 1


def test_a_minibatch_of_ones_own_is_announced_instead_of_loaded(tmp_path: Path) -> None:
    recorder, digits = (loop := Loop(tmp_path / "run")).recorder, Digits()
    ids = recorder.sample_ids[[5, 2, 9]]
    inputs = recorder.draw(ids.tolist())
    assert np.array_equal(inputs, digits.images[ids])
    own = torch.from_numpy(digits.images[ids])
    assert recorder.draw(ids, own) is own
    loop.step(inputs, torch.from_numpy(digits.classes[ids]))
    recorder.step()
    with pytest.raises(DataError, match="held out"):
        recorder.draw([5])


def test_a_step_without_a_new_minibatch_is_refused(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    with pytest.raises(TrajectoryError, match="no minibatch was drawn since step 0"):
        loop.recorder.step()
    inputs, targets, _ = next(iter(loop.recorder.loader()))
    loop.step(inputs, targets)
    loop.recorder.step()
    with pytest.raises(TrajectoryError, match="no minibatch was drawn since step 1"):
        loop.recorder.step()


def test_the_rate_must_be_known(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    other = Recorder(loop.model, loop.loss, config(), tmp_path / "other")
    inputs, targets, _ = next(iter(other.loader()))
    with pytest.raises(TrajectoryError, match="hand the optimizer to the Recorder"):
        other.step()
    with pytest.raises(ConfigError, match=r"training\.optimizer adamw"):
        other.follow(torch.optim.SGD(loop.model.parameters(), lr=0.01))
    other.follow(loop.optimizer)
    loop.step(inputs, targets)
    other.step()


def test_an_optimizer_that_has_taken_steps_is_refused(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "run")
    inputs, targets, _ = next(iter(loop.recorder.loader()))
    loop.step(inputs, targets)
    with pytest.raises(ConfigError, match="has taken steps already"):
        Recorder(loop.model, loop.loss, config(), tmp_path / "other", loop.optimizer)


class Changed(Digits):
    """One row is another."""

    def __init__(self, row: int, image: np.ndarray | None = None) -> None:
        super().__init__()
        if image is None:
            self.classes[row] = (self.classes[row] + 1) % 10
        else:
            self.images[row] = image


class Short(Digits):
    def __len__(self) -> int:
        return 64


class Triples(Digits):
    def __getitem__(self, row: int) -> Any:
        return (*super().__getitem__(row), row)


class Mappings(Digits):
    def __getitem__(self, row: int) -> Any:
        return {"inputs": self.images[row], "class": self.classes[row]}


class Flat(Digits):
    def __getitem__(self, row: int) -> Any:
        return self.images[row].reshape(64), self.classes[row]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(Digits())

    def __len__(self) -> int:
        return NUM_ROWS


TRAINED = 47  # trains; 5 is held out, 2 is left out of the 64


WRONG = {
    "inputs": (Changed(TRAINED, np.full((1, 8, 8), 3.0)), r"sample 47: inputs .*by up to 3;"),
    "class": (Changed(TRAINED), r"sample 47: targets .*, \d there and \d here"),
    "length": (Short(), f"has 64 items, the source {NUM_ROWS} rows"),
    "triples": (Triples(), "is a tuple of 3; expected a pair"),
    "mapping": (Mappings(), "has no 'labels'; expected"),
    "shape": (Flat(), r"shape \(64,\) there and \(1, 8, 8\) here"),
    "stream": (Stream(), "Stream is no map-style dataset"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_dataset_of_other_samples_is_refused(name: str, tmp_path: Path) -> None:
    dataset, message = WRONG[name]
    with pytest.raises(DataError, match=message):
        Loop(tmp_path / "run").recorder.loader(dataset)


def test_rows_that_do_not_train_are_not_compared_and_rounding_is_no_difference(
    tmp_path: Path,
) -> None:
    dataset = Changed(5, np.full((1, 8, 8), 3.0))
    dataset.images *= np.float32(1 + 1e-6)
    Loop(tmp_path / "run").recorder.loader(dataset)


@pytest.mark.parametrize("option", ["batch_sampler", "generator"])
def test_options_that_decide_what_is_drawn_are_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"loader takes no {option}"):
        Loop(tmp_path / "run").recorder.loader(**{option: None})


def test_a_head_on_features_is_served_whole_inputs(tmp_path: Path) -> None:
    values = config().model_dump(mode="json")
    values["model"] |= {"trainable": "head"}
    loop = Loop.__new__(Loop)
    loop.config = RunConfig.from_values(values)
    model = build(loop.config.model, Shape((1, 8, 8), 10), loop.config.seed)
    for part in list(model.children())[:-1]:
        part.requires_grad_(False)
    loop.model, loop.loss = model, nn.CrossEntropyLoss()
    trained = [p for p in model.parameters() if p.requires_grad]
    loop.optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    loop.recorder = Recorder(model, loop.loss, loop.config, tmp_path / "run", loop.optimizer)
    for inputs, targets, ids in loop.recorder.loader(Digits()):
        assert inputs.shape[1:] == (1, 8, 8) and len(inputs) == len(ids)
        loop.step(inputs, targets)
        loop.recorder.step()
    assert loop.recorder.finish().trajectory().num_steps == 4
