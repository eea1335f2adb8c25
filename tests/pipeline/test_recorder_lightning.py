"""A training by PyTorch Lightning is recorded as it was taken, or refused by name."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline import Recorder, RunConfig
from pipeline.errors import ConfigError, ModelError, TrajectoryError
from pipeline.models.registry import Shape, build
from pipeline.training.loop_checks import TrainerSettings, refuse_trainer
from pipeline.training.retraining import retrain
from tests.examples.perceptron import dropping
from tests.pipeline.test_recorder_loader import Digits

lightning = pytest.importorskip("lightning")
pytorch_lightning = pytest.importorskip("pytorch_lightning")
UnlearnCallback = import_module("pipeline.training.lightning_callback").UnlearnCallback
# Warnings of other libraries about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")

BATCH, EPOCHS, STEPS = 16, 2, 8


def config(**training: Any) -> RunConfig:
    return RunConfig.from_values(
        {
            "data": {"source": "digits", "num_train": 64},
            "model": {"name": "tests.examples.perceptron:perceptron"},
            "training": {
                "optimizer": "adamw",
                "epochs": EPOCHS,
                "batch_size": BATCH,
                "learning_rate": 0.01,
                "weight_decay": 0.1,
                "clip_norm": 0.5,
                **training,
            },
        }
    )


class Steps:
    """The body of a LightningModule, as one would write it; it notes what it is given."""

    parameters: Any

    def __init__(self) -> None:
        super().__init__()
        self.network = build(config().model, Shape((1, 8, 8), 10), config().seed)
        self.seen: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        self.seen.append(inputs)
        return nn.functional.cross_entropy(self.network(inputs), targets)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, STEPS)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Module(Steps, lightning.LightningModule):
    pass


class OlderModule(Steps, pytorch_lightning.LightningModule):
    pass


class MappingModule(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert batch.keys() == {"inputs", "labels"}
        return super().training_step((batch["inputs"], batch["labels"]), batch_idx)


class TwiceModule(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        for _ in range(2):
            loss = super().training_step(batch, batch_idx)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
        return loss


class DoublingModule(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 2 * super().training_step(batch, batch_idx)


class Mappings(Digits):
    def __getitem__(self, row: int) -> Any:
        image, number = super().__getitem__(row)
        return {"inputs": image, "labels": number}


def trainer(callback: Any, library: Any = lightning, **options: Any) -> Any:
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    values = {"max_epochs": EPOCHS, "gradient_clip_val": 0.5, "accelerator": "cpu"}
    return library.Trainer(
        callbacks=[callback], **dict.fromkeys(quiet, False), **{**values, **options}
    )


def callback_for(module: Any, out: Path, **training: Any) -> Any:
    return UnlearnCallback(Recorder(module.network, None, config(**training), out))


CASES = {
    "lightning": (lightning, Module, None),
    "pytorch_lightning": (pytorch_lightning, OlderModule, None),
    "a dataset of pairs": (lightning, Module, Digits()),
    "a dataset of mappings": (lightning, MappingModule, Mappings()),
}


@pytest.mark.parametrize("name", CASES)
def test_a_training_is_recorded_as_it_was_taken(name: str, tmp_path: Path) -> None:
    library, kind, dataset = CASES[name]
    module = kind()
    callback = callback_for(module, tmp_path / "run")
    trainer(callback, library).fit(module, callback.loader(dataset))
    run = callback.recorder.finish()
    problem, trajectory = run.problem(), run.trajectory()
    rates = [0.01 * (1 - 0.5 * step / STEPS) for step in range(STEPS)]
    assert trajectory.schedule.learning_rates == pytest.approx(rates)
    images, positions = Digits().images, trajectory.schedule.sample_ids
    for inputs, batch in zip(module.seen, positions, strict=True):
        assert np.array_equal(inputs, images[problem.data.sample_ids[batch]])
    trained = torch.cat([p.detach().reshape(-1) for p in module.network.parameters()])
    assert torch.equal(trajectory.trained(), trained)
    again_P = retrain(problem, trajectory.schedule, torch.zeros(64, dtype=torch.bool))
    torch.testing.assert_close(again_P, trained, rtol=0, atol=1e-5)


def test_dropout_and_augmentation_are_followed(tmp_path: Path) -> None:
    values = config().model_dump(mode="json")
    values["model"]["name"] = "tests.examples.perceptron:dropping"
    values["data"]["augment"] = [{"noise": {"deviation": 0.1}}]
    module = Module()
    module.network = dropping((1, 8, 8), 10)
    callback = UnlearnCallback(
        Recorder(module.network, None, RunConfig.from_values(values), tmp_path / "run")
    )
    trainer(callback).fit(module, callback.loader(Digits()))
    run = callback.recorder.finish()
    problem, schedule = run.problem(), run.trajectory().schedule
    for step, (inputs, positions) in enumerate(zip(module.seen, schedule.sample_ids, strict=True)):
        assert torch.equal(inputs, problem.minibatch(positions, step).inputs)
    again_P = retrain(problem, schedule, torch.zeros(64, dtype=torch.bool))
    torch.testing.assert_close(again_P, run.trajectory().trained(), rtol=0, atol=1e-5)


OTHER_SETTINGS = {
    "clipping at another norm": (
        {"gradient_clip_val": 1.0},
        r"at norm 1, the configuration at norm 0\.5",
    ),
    "no clipping": ({"gradient_clip_val": None}, r"at no norm, the configuration at norm 0\.5"),
    "clipping by value": ({"gradient_clip_algorithm": "value"}, "clips gradients by value"),
    "accumulation": ({"accumulate_grad_batches": 2}, "accumulates gradients over 2 minibatches"),
    "mixed precision": ({"precision": "bf16-mixed"}, "set to precision 'bf16-mixed'"),
    "low precision": ({"precision": "bf16-true"}, "set to precision 'bf16-true'"),
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_a_trainer_that_cannot_be_followed_is_refused(name: str, tmp_path: Path) -> None:
    options, message = OTHER_SETTINGS[name]
    module = Module()
    callback = callback_for(module, tmp_path / "run")
    with pytest.raises(ConfigError, match=message):
        trainer(callback, **options).fit(module, callback.loader())
    assert callback.recorder.num_steps == 0


def test_another_optimizer_is_refused_before_the_first_step(tmp_path: Path) -> None:
    module = Module()
    callback = callback_for(module, tmp_path / "run", weight_decay=0.2)
    with pytest.raises(ConfigError, match=r"weight_decay 0\.1.*0\.2"):
        trainer(callback).fit(module, callback.loader())


def test_clipping_with_an_l2_term_is_refused(tmp_path: Path) -> None:
    module = Module()
    values = {"optimizer": "adam", "weight_decay": None, "l2": 0.1}
    callback = callback_for(module, tmp_path / "run", **values)
    with pytest.raises(ConfigError, match="without their L2 term"):
        trainer(callback).fit(module, callback.loader())


def test_several_devices_and_a_training_under_way_are_refused() -> None:
    settings: dict[str, Any] = {
        "accumulated": 1,
        "devices": 1,
        "low_precision": None,
        "clip_norm": 0.5,
        "steps_taken": 3,
    }
    refuse_trainer(TrainerSettings(**settings), config(), recorded=3)
    with pytest.raises(ConfigError, match="stands at step 3, the recorder at 0"):
        refuse_trainer(TrainerSettings(**settings), config(), recorded=0)
    with pytest.raises(ConfigError, match="among 2 devices"):
        refuse_trainer(TrainerSettings(**settings | {"devices": 2}), config(), recorded=3)


def test_steps_that_are_not_the_configurations_are_refused(tmp_path: Path) -> None:
    module = DoublingModule()
    values = {"optimizer": "sgd", "weight_decay": None, "clip_norm": None}
    callback = callback_for(module, tmp_path / "run", **values)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.01)
    with pytest.raises(ModelError, match="the loss is another one"):
        trainer(callback, gradient_clip_val=None).fit(module, callback.loader())


def test_two_steps_for_a_minibatch_are_refused(tmp_path: Path) -> None:
    module = TwiceModule()
    callback = callback_for(module, tmp_path / "run", clip_norm=None)
    with pytest.raises(TrajectoryError, match="minibatch 0 made 2 optimizer steps"):
        trainer(callback, gradient_clip_val=None).fit(module, callback.loader())


def test_minibatches_without_ids_are_refused(tmp_path: Path) -> None:
    module = Module()
    callback = callback_for(module, tmp_path / "run")
    with pytest.raises(TrajectoryError, match=r"UnlearnCallback\.loader"):
        trainer(callback).fit(module, DataLoader(Digits(), batch_size=BATCH))


def test_without_lightning_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "pipeline.training.lightning_callback")
    with pytest.raises(ImportError, match="pip install lightning"):
        import_module("pipeline.training.lightning_callback")
