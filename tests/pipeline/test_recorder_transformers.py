"""A training by transformers.Trainer is recorded as it was taken, or refused by name."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline import Recorder, RunConfig, precompute
from pipeline.errors import ConfigError, TrajectoryError
from pipeline.training.retraining import retrain

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
UnlearnCallback = import_module("pipeline.training.transformers_callback").UnlearnCallback
examples = import_module("tests.examples.bert")
# Warnings of other libraries about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")

NUM, LENGTH, CLASSES, BATCH, EPOCHS = 24, 6, 3, 8, 2
RATE = 0.003


class Texts(Dataset[dict[str, Tensor]]):
    """Tokens whose class is that of the most frequent third of the vocabulary."""

    def __init__(self) -> None:
        self.tokens = np.random.default_rng(3).integers(1, 31, (NUM, LENGTH))
        thirds = self.tokens // 11
        self.classes = np.array([np.bincount(row, minlength=CLASSES).argmax() for row in thirds])

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {
            "input_ids": torch.from_numpy(self.tokens[row]),
            "labels": torch.tensor(self.classes[row]),
        }


def config(folder: Path, **training: Any) -> RunConfig:
    texts = Texts()
    np.savez(
        folder / "texts.npz",
        x=texts.tokens,
        y=texts.classes,
        x_test=texts.tokens[:9],
        y_test=texts.classes[:9],
    )
    return RunConfig.from_values(
        {
            "data": {"source": "arrays", "path": str(folder / "texts.npz")},
            "model": {"name": "tests.examples.bert:small_bert"},
            "training": {
                "optimizer": "adamw",
                "epochs": EPOCHS,
                "batch_size": BATCH,
                "learning_rate": RATE,
                "weight_decay": 0.0,
                "clip_norm": 1.0,
                **training,
            },
            "storage": {"encoding": "float32"},
        }
    )


def arguments(folder: Path, **options: Any) -> Any:
    values: dict[str, Any] = {
        "output_dir": str(folder / "trainer"),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": RATE,
        "warmup_steps": 2,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return transformers.TrainingArguments(**values | options)


class Loop:
    """A model, its recorder and its trainer; `seen` are the tokens that the model was given."""

    def __init__(self, folder: Path, arguments: Any, configuration: RunConfig, **data: Any) -> None:
        torch.manual_seed(1)
        self.scores = examples.small_bert((LENGTH,), CLASSES)
        self.recorder = Recorder(self.scores, None, configuration, folder / "run")
        self.callback = UnlearnCallback(self.recorder)
        given = {
            "train_dataset": self.callback.dataset(Texts()),
            "data_collator": self.callback.collator(),
        }
        self.trainer = transformers.Trainer(
            self.scores.model, arguments, callbacks=[self.callback], **given | data
        )
        self.seen: list[Tensor] = []
        embeddings = self.scores.model.bert.embeddings
        embeddings.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, inputs: Any, named: Any) -> None:
        if module.training and torch.is_grad_enabled():
            self.seen.append(named["input_ids"].clone())


def test_the_runs_own_tokens_stay_whole_numbers_and_one_training_is_one_recording(
    tmp_path: Path,
) -> None:
    loop = Loop(tmp_path, arguments(tmp_path, max_steps=1), config(tmp_path))
    loop.trainer.train_dataset = loop.callback.dataset()
    loop.trainer.train()
    run = loop.recorder.finish()
    ids = run.problem().data.sample_ids[run.trajectory().schedule.sample_ids[0]]
    assert loop.seen[0].dtype == torch.int64
    assert np.array_equal(loop.seen[0], Texts().tokens[ids])
    with pytest.raises(ConfigError, match="stands at step 0, the recorder at 1"):
        loop.trainer.train()


# What the trainer exempts from weight decay.
GROUPS = [{"parameters": pattern, "weight_decay": 0.0} for pattern in ("*.bias", "*LayerNorm*")]


def test_a_training_is_recorded_as_it_was_taken(tmp_path: Path) -> None:
    options = {"eval_strategy": "epoch", "weight_decay": 0.1}
    configuration = config(tmp_path, weight_decay=0.1, groups=GROUPS)
    loop = Loop(tmp_path, arguments(tmp_path, **options), configuration, eval_dataset=Texts())
    loop.trainer.train()
    run = loop.recorder.finish()
    problem, trajectory = run.problem(), run.trajectory()
    rates = [RATE * share for share in (0, 1 / 2, 1, 3 / 4, 2 / 4, 1 / 4)]
    assert trajectory.schedule.learning_rates == pytest.approx(rates)
    positions = trajectory.schedule.sample_ids
    for tokens, batch in zip(loop.seen, positions, strict=True):
        assert np.array_equal(tokens, Texts().tokens[problem.data.sample_ids[batch]])
    parameters = [p for p in loop.scores.parameters() if p.requires_grad]
    trained = torch.cat([p.detach().reshape(-1) for p in parameters])
    assert torch.equal(trajectory.trained(), trained)
    # Retraining takes these minibatches at these rates, and knows nothing of the trainer.
    nobody = torch.zeros(NUM, dtype=torch.bool)
    again_P = retrain(problem, trajectory.schedule, nobody)
    assert float((again_P - trained).norm()) < 1e-4 * float(trained.norm())
    store, unit = precompute(run), nobody.clone()
    unit[5] = True
    moved_P = retrain(problem, trajectory.schedule, unit) - again_P
    row_P = torch.from_numpy(store.read_rows_at([5])[0])
    assert float((row_P - moved_P).norm()) < 0.2 * float(moved_P.norm())


OTHER_SETTINGS = {
    "accumulation": ({"gradient_accumulation_steps": 2}, "over 2 minibatches"),
    "mixed precision": ({"bf16": True}, "set to bf16=True"),
    "clipping at another norm": ({"max_grad_norm": 2.0}, "at norm 2, the configuration at norm 1"),
    "no clipping": ({"max_grad_norm": 0.0}, "at no norm, the configuration at norm 1"),
    "label smoothing": ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor 0\.1.* 0\.0"),
    "noise": ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha"),
    "another optimizer": ({"optim": "sgd"}, "uses SGD, the configuration training.optimizer adamw"),
    "another decay": ({"weight_decay": 0.1}, r"weight_decay 0\.1.*0\.0"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """A loop that no step was taken of; each test gives it a trainer of its own."""
    folder = tmp_path_factory.mktemp("loop")
    return Loop(folder, arguments(folder), config(folder))


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_a_trainer_that_cannot_be_followed_is_refused(
    name: str, begun: Loop, tmp_path: Path
) -> None:
    options, message = OTHER_SETTINGS[name]
    trainer = transformers.Trainer(
        begun.scores.model,
        arguments(tmp_path, **options),
        callbacks=[begun.callback],
        train_dataset=begun.trainer.train_dataset,
        data_collator=begun.trainer.data_collator,
    )
    with pytest.raises(ConfigError, match=message):
        trainer.train()
    assert begun.recorder.num_steps == 0


def test_a_training_that_failed_leaves_nothing_on_the_model(tmp_path: Path) -> None:
    loop = Loop(tmp_path, arguments(tmp_path, max_steps=1), config(tmp_path))
    loop.recorder.step = lambda: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        loop.trainer.train()
    loop.trainer.remove_callback(loop.callback)
    loop.trainer.optimizer = loop.trainer.lr_scheduler = None
    recorder = Recorder(loop.scores, None, config(tmp_path), tmp_path / "again")
    callback = UnlearnCallback(recorder)
    loop.trainer.add_callback(callback)
    loop.trainer.train()
    assert recorder.num_steps == 1
    recorder.finish()
    plain = loop.trainer.data_collator([Texts()[0]])
    loop.scores.model.train()(**plain)


def test_minibatches_without_ids_are_refused(tmp_path: Path) -> None:
    loop = Loop(tmp_path, arguments(tmp_path), config(tmp_path), train_dataset=Texts())
    with pytest.raises(TrajectoryError, match="holds no sample ids"):
        loop.trainer.train()


def test_without_transformers_the_import_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "pipeline.training.transformers_callback")
    with pytest.raises(ImportError, match="pip install transformers accelerate"):
        import_module("pipeline.training.transformers_callback")
