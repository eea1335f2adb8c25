"""Recording a training by PyTorch Lightning, so that its samples can be unlearned later.

    recorder = Recorder(module.network, None, config, "runs/mine")
    callback = UnlearnCallback(recorder)
    Trainer(callbacks=[callback], max_epochs=10).fit(module, callback.loader())
    run = recorder.finish()

Needs the package `lightning` or `pytorch_lightning`. The module's `training_step` sees the minibatches
that it would see without the callback: the samples' ids are taken out before.
"""

# B minibatch rows

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pipeline.errors import ConfigError, TrajectoryError
from pipeline.training.loader import Sample, WithIds
from pipeline.training.loop_checks import TrainerSettings, refuse_trainer
from pipeline.training.recorder import Recorder

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise ImportError(
            "recording a Lightning training needs PyTorch Lightning; install it with "
            "`pip install lightning`, or this project with its extra `lightning`"
        ) from error

IDS = "sample_ids"


class UnlearnCallback(Callback):
    """Records every optimizer step of a Lightning training.

    Args:
        recorder: Made before the training, of the network whose parameters the module trains.
        inputs: Where minibatches are dictionaries, the key of the inputs.
        labels: The key of the classes.
    """

    def __init__(self, recorder: Recorder, inputs: str = "inputs", labels: str = "labels") -> None:
        self.recorder, self._keys = recorder, (inputs, labels)
        self._rates: list[float] = []

    def loader(
        self,
        dataset: TorchDataset[Any] | None = None,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int | None = None,
        **dataloader_options: Any,
    ) -> DataLoader[Any]:
        """Return the training samples' loader, for `Trainer.fit` or a module's `train_dataloader`.

        Arguments and errors are those of `Recorder.loader`.
        """
        collate = WithIdsInPlace(dataloader_options.pop("collate_fn", None))
        samples = self.recorder.samples(dataset, self._keys)
        return self.recorder.batches(
            samples, collate, batch_size, shuffle, seed, **dataloader_options
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be followed, before the first step.

        Raises:
            ConfigError: The message names the setting.
        """
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                f"the module has {len(trainer.optimizers)} optimizers; the recorder follows one"
            )
        recorder = self.recorder
        refuse_trainer(self._settings(trainer, pl_module), recorder.config, recorder.num_steps)
        recorder.follow(trainer.optimizers[0])

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the samples' ids out of the minibatch, and announce it to the recorder.

        Raises:
            DataError: As `Recorder.draw`.
            TrajectoryError: If the minibatch is not of this callback's loader.
        """
        ids, self._rates = taken_ids(batch), []
        place = self._keys[0] if isinstance(batch, dict) else 0
        batch[place] = self.recorder.draw(ids, batch[place])

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Note the rate that the step is about to use: schedulers step before a minibatch ends."""
        self._rates.append(self.recorder.learning_rate())

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Record the step.

        Raises:
            TrajectoryError: If the minibatch made no step, or several.
            DataError, ModelError: As `Recorder.step`.
        """
        if len(self._rates) != 1:
            raise TrajectoryError(
                f"minibatch {batch_idx} made {len(self._rates)} optimizer steps; the recorder follows "
                "one step for each minibatch"
            )
        self.recorder.step(learning_rate=self._rates[0])

    def _settings(self, trainer: Trainer, module: LightningModule) -> TrainerSettings:
        plain = "64-true" if self.recorder.dtype == torch.float64 else "32-true"
        precision = str(trainer.precision)
        return TrainerSettings(
            accumulated=trainer.accumulate_grad_batches,
            devices=trainer.world_size,
            low_precision=None if precision == plain else f"precision {precision!r}",
            clip_norm=self._clip_norm(trainer, module),
            steps_taken=trainer.global_step,
        )

    def _clip_norm(self, trainer: Trainer, module: LightningModule) -> float | None:
        """Return the trainer's threshold; what a module's own method does, the first step shows."""
        # The module may be of either package, whichever the callback is of.
        if not type(module).configure_gradient_clipping.__module__.endswith(".core.module"):
            return self.recorder.config.training.clip_norm
        value = trainer.gradient_clip_val or None
        algorithm = trainer.gradient_clip_algorithm or "norm"
        if value is not None and algorithm != "norm":
            raise ConfigError(
                f"the trainer clips gradients by {algorithm.lower()}, which cannot be followed; set "
                "gradient_clip_algorithm to norm"
            )
        return value


class WithIdsInPlace(WithIds):
    """A collate function of minibatches in which the samples' ids stand last, or under `sample_ids`."""

    def __call__(self, samples: list[Sample]) -> Any:
        """Return a list, or a dictionary where the items are mappings."""
        minibatch, ids = super().__call__(samples)
        if isinstance(minibatch, Mapping):
            return {**minibatch, IDS: ids}
        return [*minibatch, ids]


def taken_ids(batch: Any) -> Tensor:
    """Remove the ids from a minibatch of `WithIdsInPlace`, and return them (B,).

    Raises:
        TrajectoryError: If it holds none.
    """
    if isinstance(batch, dict) and IDS in batch:
        ids: Tensor = batch.pop(IDS)
        return ids
    if isinstance(batch, list) and len(batch) == 3:
        ids = batch.pop()
        return ids
    raise TrajectoryError(
        "the minibatch holds no sample ids; give the training the loader of UnlearnCallback.loader"
    )
