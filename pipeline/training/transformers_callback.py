"""Recording a training by `transformers.Trainer`, so that its samples can be unlearned later.

    recorder = Recorder(Scores(model), None, config, "runs/mine")
    callback = UnlearnCallback(recorder)
    Trainer(
        model,
        arguments,
        train_dataset=callback.dataset(),
        data_collator=callback.collator(),
        callbacks=[callback],
    ).train()
    run = recorder.finish()

`Scores(model)` is a module of the user's that maps inputs (B, ...) to scores (B, C), with `model`
inside. Needs the packages `transformers` and `accelerate`. The model sees the minibatches that it
would see without the callback: the samples' ids are taken out before.
"""

# B minibatch rows

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import default_collate
from torch.utils.hooks import RemovableHandle

from pipeline.errors import ConfigError, TrajectoryError
from pipeline.training.loader import Sample, TrainingSamples
from pipeline.training.loop_checks import TrainerSettings, refuse_trainer
from pipeline.training.recorder import Recorder

try:
    from transformers import (
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
        default_data_collator,
    )
except ImportError as error:
    raise ImportError(
        "recording a training of transformers.Trainer needs transformers and accelerate; install them "
        "with `pip install transformers accelerate`, or this project with its extra `transformers`"
    ) from error

IDS = "sample_ids"


class UnlearnCallback(TrainerCallback):
    """Records every optimizer step of a `transformers.Trainer`.

    Args:
        recorder: Made before the training, of a network whose parameters are the trained model's.
        inputs: The argument of the model's forward that the run's inputs are.
        labels: The argument that the classes are.
    """

    def __init__(
        self, recorder: Recorder, inputs: str = "input_ids", labels: str = "labels"
    ) -> None:
        self.recorder, self._keys = recorder, (inputs, labels)

    def dataset(self, dataset: TorchDataset[Any] | None = None) -> TrainingSamples:
        """Return the training samples with their ids, for the trainer's `train_dataset`.

        Args:
            dataset: A map-style dataset whose item i is row i of the source: mappings that hold inputs
                and labels; every training sample is compared once with the run's data. None serves
                the run's own data.

        Raises:
            DataError: If the dataset differs from the run's data; the first such sample is named.
        """
        return self.recorder.samples(dataset, self._keys)

    def collator(self, collate: Callable[[list[Any]], Any] | None = None) -> Collator:
        """Return the trainer's `data_collator`, which keeps the ids beside what `collate` makes."""
        return Collator(self._keys, collate or default_data_collator)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        **others: Any,
    ) -> None:
        """Refuse what cannot be followed, before the first step.

        Raises:
            ConfigError: The message names the setting.
        """
        recorder = self.recorder
        smoothing = recorder.config.training.label_smoothing
        if args.label_smoothing_factor != smoothing:
            raise ConfigError(
                f"the trainer has label_smoothing_factor {args.label_smoothing_factor}, the "
                f"configuration training.label_smoothing {smoothing}; make them agree"
            )
        if args.neftune_noise_alpha is not None:
            raise ConfigError(
                "the trainer adds noise to embeddings (neftune_noise_alpha), which cannot be replayed; "
                "remove the setting"
            )
        refuse_trainer(_settings(args, state), recorder.config, recorder.num_steps)
        recorder.follow(getattr(optimizer, "optimizer", optimizer))
        _release(model)
        _HOOKS[model] = model.register_forward_pre_hook(self._taken, with_kwargs=True)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        **others: Any,
    ) -> None:
        """Record the step: the trainer has taken it, and its scheduler not yet.

        Raises:
            DataError, ModelError: As `Recorder.step`.
        """
        self.recorder.step()

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **others: Any,
    ) -> None:
        """Leave the model as it was."""
        _release(model)

    def _taken(
        self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the samples' ids out of what the model is called with; announce the minibatch."""
        if not model.training:
            return inputs, named
        if IDS not in named:
            raise TrajectoryError(
                "the minibatch holds no sample ids; give the Trainer UnlearnCallback's dataset() as "
                "train_dataset and its collator() as data_collator"
            )
        named = dict(named)
        ids, key = named.pop(IDS), self._keys[0]
        named[key] = self.recorder.draw(ids, named[key])
        return inputs, named


class Collator:
    """Makes a minibatch of training samples, their ids under `sample_ids`; other items as without it.

    Args:
        keys: Names of inputs and classes in a minibatch.
        collate: Makes a minibatch of a dataset's items.
    """

    def __init__(self, keys: tuple[str, str], collate: Callable[[list[Any]], Any]) -> None:
        self._keys, self._collate = keys, collate

    def __call__(self, samples: list[Any]) -> Any:
        """Return the minibatch; a trainer hands the items of its test set to the same collator."""
        if not isinstance(samples[0], Sample):
            return self._collate(samples)
        items = [sample.item for sample in samples]
        if isinstance(items[0], Mapping):
            minibatch = dict(self._collate(items))
        else:
            minibatch = dict(zip(self._keys, default_collate(items), strict=True))
        return minibatch | {IDS: torch.tensor([sample.sample_id for sample in samples])}


# By model: a training that fails has no end, and its callback must not take the next one's ids.
_HOOKS: WeakKeyDictionary[nn.Module, RemovableHandle] = WeakKeyDictionary()


def _release(model: nn.Module) -> None:
    """Remove the hook of a training that has ended, however it did."""
    hook = _HOOKS.pop(model, None)
    if hook is not None:
        hook.remove()


def _settings(args: TrainingArguments, state: TrainerState) -> TrainerSettings:
    low = next((f"{name}=True" for name in ("fp16", "bf16", "tf32") if getattr(args, name)), None)
    return TrainerSettings(
        accumulated=args.gradient_accumulation_steps,
        devices=max(args.world_size, args.n_gpu),
        low_precision=low,
        clip_norm=args.max_grad_norm or None,
        steps_taken=state.global_step,
    )
