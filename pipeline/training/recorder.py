"""Recording a user's training loop, so that its samples can be unlearned later.

    recorder = Recorder(model, loss, config, "runs/mine", optimizer)
    for inputs, targets, sample_ids in recorder.loader():
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()
        recorder.step()            # before scheduler.step; or recorder.step(sample_ids, learning_rate)
    run = recorder.finish()        # then: unlearn precompute runs/mine

After each step the recorder takes the same step from the configuration's data and conventions and
compares the two. A step that cannot be replayed is refused at once, with the reason. This costs one
more gradient per step.
"""

# B minibatch rows, P parameters, T steps

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pipeline.config import RunConfig
from pipeline.data import Dataset, load
from pipeline.data.augment import augment
from pipeline.errors import DataError, ModelError, TrajectoryError
from pipeline.models.train_mode import refuse_unfollowed, sample_keys
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule
from pipeline.run.trained_part import as_the_model_takes_them
from pipeline.training.loader import Loader, Sample, TrainingSamples, WithIds, data_loader
from pipeline.training.loop_checks import (
    Loss,
    check_loss,
    frozen_tensors,
    learning_rate_of,
    refuse_optimizer,
    refuse_precision,
)
from pipeline.training.loop_modes import LoopModes
from pipeline.training.recording import Recording, begun
from pipeline.training.step import OptimizerState, take_step

# A step in float32 may differ by rounding; a step on other inputs differs by far more.
STEP_TOLERANCE = 1e-3


class Recorder:
    """Follows an SGD, Adam or AdamW loop and leaves a run directory that `unlearn precompute` accepts.

    >>> import tempfile
    >>> import numpy as np
    >>> from pipeline import Recorder, RunConfig
    >>> folder = tempfile.mkdtemp()
    >>> x, y = np.random.default_rng(0).normal(size=(20, 4)).astype("float32"), np.arange(20) % 2
    >>> np.savez(f"{folder}/mine.npz", x=x, y=y, x_test=x, y_test=y)
    >>> config = RunConfig.from_values({
    ...     "data": {"source": "arrays", "path": f"{folder}/mine.npz"},
    ...     "training": {"epochs": 1, "batch_size": 5, "learning_rate": 0.1, "l2": 0.01},
    ... })
    >>> model, loss = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), nn.CrossEntropyLoss()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    >>> recorder = Recorder(model, loss, config, f"{folder}/run", optimizer)
    >>> for inputs, targets, sample_ids in recorder.loader():
    ...     optimizer.zero_grad()
    ...     loss(model(inputs), targets).backward()
    ...     optimizer.step()
    ...     recorder.step()
    >>> recorder.finish().trajectory().num_steps
    4
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None,
        config: RunConfig,
        out: str | Path,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Record the start of the loop; call before its first step.

        Args:
            model: The trained model. `config.model.name` must name a factory of the same network. Its
                active dropout is replaced by one that draws from (seed, step, sample id).
            loss: The mean over a minibatch: of outputs (B, C) and targets (B,). None where a trainer
                computes it out of sight: then the first step shows whether it is another one.
            config: Names the data, the factory and the conventions. `training` must state what the
                loop does (l2, clip_norm, momentum, nesterov); its epochs and learning rate are not
                used.
            out: The run directory to make.
            optimizer: If given, it is checked before the first step, and `step` knows its learning
                rate.

        Raises:
            ConfigError, ModelError: If the loop cannot be followed; the message says why.
        """
        refuse_optimizer(optimizer, model, config)
        refuse_precision(model)
        refuse_unfollowed(model)
        problem = Problem.of(config)
        if loss is not None:
            check_loss(loss, problem)
        frozen = frozen_tensors(model, problem)
        self._model, self._run = model, RunDirectory.create(out, problem)
        if self._run.is_trained():
            raise TrajectoryError(f"{self._run.path} is trained already; choose another folder")
        # From here on the start is read back from disk, as a worker reads it.
        self._problem = begun(self._run, model, frozen)
        self._modes = LoopModes(model, self._problem.network.training)
        self._recording = Recording(self._run, self._problem)
        self._state = OptimizerState.start(self._problem.initial_P, config.training)
        self._optimizer = optimizer
        self._drawn: Tensor | None = None

    @property
    def sample_ids(self) -> Tensor:
        """Ids of the samples that train, (n,) int64: what minibatches are drawn from."""
        return self._problem.data.sample_ids

    @property
    def config(self) -> RunConfig:
        """The configuration whose steps the loop takes."""
        return self._run.config

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the loop is expected to train: float32, or float64 if so configured."""
        return self._problem.initial_P.dtype

    @property
    def model(self) -> nn.Module:
        """The loop's network."""
        return self._model

    @property
    def num_steps(self) -> int:
        """Steps recorded so far."""
        return self._recording.num_steps

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Check an optimizer that was made after the recorder; `step` then knows its learning rate.

        Raises:
            ConfigError: If it is not the configuration's.
        """
        refuse_optimizer(optimizer, self._model, self.config)
        self._optimizer = optimizer

    def samples(
        self,
        dataset: TorchDataset[Any] | None = None,
        keys: tuple[str, str] = ("inputs", "labels"),
    ) -> TrainingSamples:
        """Return the training samples as a map-style dataset of pairs (item, sample id).

        Args:
            dataset: A map-style dataset whose item i is row i of the source; every training sample is
                compared once with the run's data. None serves the run's own data.
            keys: Where items are mappings, the keys of inputs and targets.

        Raises:
            DataError: If the dataset differs from the run's data; the first such sample is named.
        """
        return TrainingSamples(self._whole_inputs, dataset, keys)

    def loader(
        self,
        dataset: TorchDataset[Any] | None = None,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int | None = None,
        **dataloader_options: Any,
    ) -> Loader:
        """Return minibatches (inputs, targets, sample ids) of training samples, on the CPU.

        Each minibatch that is handed out is drawn (`draw`), so that `step` needs no ids.

        Args:
            dataset: As for `samples`.
            batch_size: B; None takes `training.batch_size`.
            shuffle: Draw a new order for each pass, from `seed`.
            seed: None takes the configuration's.
            dataloader_options: Of `torch.utils.data.DataLoader`, such as `num_workers`.

        Raises:
            ConfigError: For an option that decides which samples are drawn.
            DataError: As `samples`.
        """
        collate = WithIds(dataloader_options.pop("collate_fn", None))
        samples = self.samples(dataset)
        batches = self.batches(samples, collate, batch_size, shuffle, seed, **dataloader_options)
        return Loader(samples, batches, self.draw)

    def batches(
        self,
        samples: TrainingSamples,
        collate: Callable[[list[Sample]], Any],
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int | None = None,
        **dataloader_options: Any,
    ) -> "DataLoader[Any]":
        """Return torch's own loader of what `collate` makes of samples; nothing is noted."""
        size = self.config.training.batch_size if batch_size is None else batch_size
        seed = self.config.seed if seed is None else seed
        options = {"batch_size": size, "shuffle": shuffle, **dataloader_options}
        return data_loader(samples, collate, seed, options)

    def draw(self, sample_ids: Sequence[int] | Tensor, inputs: Tensor | None = None) -> Tensor:
        """Announce the next step's minibatch and return its inputs as the step must see them.

        They are augmented where `data.augment` says so; dropout is drawn for these samples. `step` then
        needs no ids.

        Args:
            sample_ids: Ids of the samples, in the order of the minibatch.
            inputs: Their inputs (B, ...) as the data source has them; None takes the run's own, on the
                CPU.

        Raises:
            DataError: If an id is not of the training set, or comes twice.
        """
        ids = torch.as_tensor(sample_ids, dtype=torch.int64).cpu()
        positions = self._positions_of(ids)
        if inputs is None:
            inputs = self._whole_inputs.inputs[positions]
        self._drawn, seed, augmentation = ids, self.config.seed, self.config.data.augment
        self._modes.announce(sample_keys(seed, self.num_steps, ids))
        if augmentation is None:
            return inputs
        return augment(inputs, ids, self.num_steps, seed, augmentation)

    @cached_property
    def _whole_inputs(self) -> Dataset:
        """The samples as the whole model takes them, on the CPU, although a head trains on features."""
        data, part = self._problem.data, self._problem.part
        assert part is not None
        config, device = self.config, torch.device("cpu")
        if part.has_features:
            loaded = load(config.data, config.seed, config.training.loss)
            own = ":" in config.model.name
            data = loaded.to(self._problem.device, self.dtype, keep_integers=own)
            whole = deepcopy(self._model).eval().to(self._problem.device)
            data = as_the_model_takes_them(whole, data, self.dtype)
        return data.to(device, self.dtype, keep_integers=True)

    def step(
        self,
        sample_ids: Sequence[int] | Tensor | None = None,
        learning_rate: float | None = None,
    ) -> None:
        """Record a step that the loop has just taken; call before the scheduler's own step.

        Args:
            sample_ids: Ids of the samples, in the order of the minibatch: their rows in the source.
                None: those of the minibatch that `loader` or `draw` gave last.
            learning_rate: The rate of this step. None: the optimizer's as it is now. With
                `training.groups`, that of parameters in no group: the groups' follow in proportion.

        Raises:
            DataError: If an id is not of the training set, or comes twice.
            ModelError: If the step was not the configuration's; the message lists likely reasons.
            TrajectoryError: If ids or rate are left out and not known.
        """
        ids = self._ids_drawn() if sample_ids is None else sample_ids
        rate = self.learning_rate() if learning_rate is None else float(learning_rate)
        self._record(torch.as_tensor(ids, dtype=torch.int64).cpu(), rate)
        self._drawn = None
        self._modes.announce(None)

    def _ids_drawn(self) -> Tensor:
        if self._drawn is None:
            raise TrajectoryError(
                f"no minibatch was drawn since step {self.num_steps}; take each from recorder.loader "
                "or announce it to recorder.draw, and record one step for each, or give sample_ids"
            )
        return self._drawn

    def learning_rate(self) -> float:
        """Return the rate that the optimizer has now; with groups, that of all other parameters.

        Raises:
            ConfigError: If rates of groups are not in the configuration's proportion.
            TrajectoryError: If no optimizer is known.
        """
        if self._optimizer is None:
            raise TrajectoryError(
                "the step's learning rate is not known; hand the optimizer to the Recorder, or give "
                "learning_rate"
            )
        return learning_rate_of(self._optimizer, self._model, self.config.training)

    def _record(self, ids: Tensor, learning_rate: float) -> None:
        positions = self._positions_of(ids)
        self._modes.check()
        refuse_precision(self._model)
        schedule = Schedule((positions,), (learning_rate,))
        with self._problem.arithmetic():
            _, expected, factor = take_step(self._problem, self._state, schedule, 0)
        layout = self._problem.network.layout
        taken_P = layout.read(self._model).to(expected.parameters_P)
        self._compare(taken_P, expected)
        # The loop's own parameters are kept; a replay is compared with them at each checkpoint.
        self._state = replace(expected, parameters_P=taken_P)
        self._recording.add(positions, learning_rate, factor, self._state)

    def _positions_of(self, ids: Tensor) -> Tensor:
        """Return the positions of a minibatch's samples in the training set (B,)."""
        if ids.dim() != 1 or not len(ids):
            raise DataError(f"sample_ids has shape {tuple(ids.shape)}; expected (B,), B at least 1")
        if len(ids.unique()) < len(ids):
            values, counts = ids.unique(return_counts=True)
            twice = int(values[counts > 1][0])
            raise DataError(
                f"sample {twice} comes twice in step {self.num_steps}; a minibatch takes each "
                "sample once: draw without replacement"
            )
        return self._problem.data.positions_of(ids)

    def _compare(self, taken_P: Tensor, expected: OptimizerState) -> None:
        step_P = expected.parameters_P - self._state.parameters_P
        scale = float(torch.linalg.vector_norm(step_P))
        # Rounding of the parameters is not counted as a difference of steps.
        scale += float(torch.linalg.vector_norm(taken_P)) * torch.finfo(taken_P.dtype).eps * 100
        distance = float(torch.linalg.vector_norm(taken_P - expected.parameters_P))
        if distance <= STEP_TOLERANCE * scale:
            return
        raise ModelError(
            f"step {self.num_steps} of the loop is not the step of the configuration: it differs by "
            f"{distance / scale:.2g} of its length. Likely reasons: learning_rate is not the step's "
            "(call recorder.step before scheduler.step), the loop clips gradients or has momentum and "
            "the configuration says otherwise, it accumulates gradients over several minibatches, the "
            "inputs were augmented otherwise than by recorder.draw or normalised otherwise than by the "
            "data source, the ids are not the minibatch's, the loss is another one, or the loop uses "
            "mixed precision, functional dropout or another optimizer"
        )

    def finish(self) -> RunDirectory:
        """Write the trajectory; return the run, ready for `unlearn precompute`.

        The model is given torch's own dropout back.

        Raises:
            TrajectoryError: If no step was recorded.
        """
        self._recording.finish(self._state)
        self._modes.restore()
        return self._run
