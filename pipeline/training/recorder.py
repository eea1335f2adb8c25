"""Recording a user's training loop, so that its samples can be unlearned later.

    recorder = Recorder(model, loss, config, "runs/mine", optimizer)
    for sample_ids in minibatches:
        optimizer.zero_grad()
        loss(model(x[sample_ids]), y[sample_ids]).backward()
        optimizer.step()
        recorder.step(sample_ids, learning_rate)
    run = recorder.finish()        # then: unlearn precompute runs/mine

The loop itself is not changed. After each step the recorder takes the same step from the
configuration's data and conventions and compares the two. A step that cannot be replayed is refused
at once, with the reason. This costs one more gradient per step.
"""

# B minibatch rows, P parameters, T steps

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.config import RunConfig
from pipeline.data.augment import augment
from pipeline.errors import DataError, ModelError, TrajectoryError
from pipeline.models.parameters import ParameterLayout
from pipeline.models.train_mode import active_parts, refuse_unfollowed
from pipeline.run.checkpoints import checkpoint_path, finish
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.run.sample_record import write_samples
from pipeline.run.schedule import Schedule
from pipeline.run.settings import write_settings
from pipeline.run.trained_part import write_frozen, write_start
from pipeline.run.trajectory import write_schedule
from pipeline.training.loop_checks import Loss, check_loss, refuse_optimizer, refuse_precision
from pipeline.training.replay import write_state
from pipeline.training.step import OptimizerState, take_step
from pipeline.training.train import CHECKPOINTS, numerics

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
    >>> inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    >>> for sample_ids in torch.arange(20).split(5):
    ...     optimizer.zero_grad()
    ...     loss(model(inputs[sample_ids]), targets[sample_ids]).backward()
    ...     optimizer.step()
    ...     recorder.step(sample_ids, learning_rate=0.1)
    >>> recorder.finish().trajectory().num_steps
    4
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        config: RunConfig,
        out: str | Path,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Record the start of the loop; call before its first step.

        Args:
            model: The trained model. `config.model.name` must name a factory of the same network.
            loss: The mean over a minibatch: of outputs (B, C) and targets (B,).
            config: Names the data, the factory and the conventions. `training` must state what the
                loop does (l2, clip_norm, momentum, nesterov); its epochs and learning rate are not
                used.
            out: The run directory to make.
            optimizer: If given, it is checked before the first step.

        Raises:
            ConfigError, ModelError: If the loop cannot be followed; the message says why.
        """
        refuse_optimizer(optimizer, config)
        refuse_precision(model)
        refuse_unfollowed(model)
        _refuse_dropout(model)
        problem = Problem.of(config)
        check_loss(loss, problem)
        frozen = _frozen_of(model, problem)
        self._model, self._run = model, RunDirectory.create(out, problem)
        if self._run.is_trained():
            raise TrajectoryError(f"{self._run.path} is trained already; choose another folder")
        # From here on the start is read back from disk, as a worker reads it.
        self._problem = _begun(self._run, model, frozen)
        self._state = OptimizerState.start(self._problem.initial_P, config.training)
        self._positions: list[Tensor] = []
        self._rates: list[float] = []
        self._factors: list[float] = []
        self._checkpoints: list[int] = []
        every = config.recursion.checkpoint_every
        self._every, self._thins_out = (1, True) if every == "auto" else (every, False)

    @property
    def sample_ids(self) -> Tensor:
        """Ids of the samples that train, (n,) int64: what minibatches are drawn from."""
        return self._problem.data.sample_ids

    def augment(self, sample_ids: Sequence[int] | Tensor, inputs: Tensor) -> Tensor:
        """Return a minibatch's inputs as the next step must see them: `data.augment` applied.

        Args:
            sample_ids: As `step` will be given them.
            inputs: The samples as the data source has them (B, ...).

        Raises:
            DataError: If an id is not of the training set, or comes twice.
        """
        ids = torch.as_tensor(sample_ids, dtype=torch.int64).cpu()
        self._check_ids(ids)
        self._problem.data.positions_of(ids)
        config = self._problem.config
        if config.data.augment is None:
            return inputs
        return augment(inputs, ids, len(self._positions), config.seed, config.data.augment)

    def step(self, sample_ids: Sequence[int] | Tensor, learning_rate: float) -> None:
        """Record a step that the loop has just taken.

        Args:
            sample_ids: Ids of the samples, in the order of the minibatch: their rows in the source.
            learning_rate: The rate of this step: read it before the scheduler's own step.

        Raises:
            DataError: If an id is not of the training set, or comes twice.
            ModelError: If the step was not the configuration's; the message lists likely reasons.
        """
        ids = torch.as_tensor(sample_ids, dtype=torch.int64).cpu()
        self._check_ids(ids)
        positions = self._problem.data.positions_of(ids)
        if self._model.training:
            refuse_unfollowed(self._model)
            _refuse_dropout(self._model)
        refuse_precision(self._model)
        schedule = Schedule((positions,), (float(learning_rate),))
        with self._problem.arithmetic():
            _, expected, factor = take_step(self._problem, self._state, schedule, 0)
        layout = self._problem.network.layout
        taken_P = layout.read(self._model).to(expected.parameters_P)
        self._compare(taken_P, expected)
        self._positions.append(positions)
        self._rates.append(float(learning_rate))
        self._factors.append(factor)
        # The loop's own parameters are kept; a replay is compared with them at each checkpoint.
        self._state = replace(expected, parameters_P=taken_P)
        if len(self._positions) % self._every == 0:
            self._keep()

    def _keep(self) -> None:
        """Write a checkpoint; when there are too many, remove every other one."""
        folder = self._run.trajectory_folder
        write_state(folder, len(self._positions), self._state, self._problem.network.layout)
        self._checkpoints.append(len(self._positions))
        if self._thins_out and len(self._checkpoints) == 2 * CHECKPOINTS:
            for step in self._checkpoints[::2]:
                checkpoint_path(folder, step).unlink()
            self._checkpoints = self._checkpoints[1::2]
            self._every *= 2

    def _check_ids(self, ids: Tensor) -> None:
        if ids.dim() != 1 or not len(ids):
            raise DataError(f"sample_ids has shape {tuple(ids.shape)}; expected (B,), B at least 1")
        if len(ids.unique()) < len(ids):
            values, counts = ids.unique(return_counts=True)
            twice = int(values[counts > 1][0])
            raise DataError(
                f"sample {twice} comes twice in step {len(self._positions)}; a minibatch takes each "
                "sample once: draw without replacement"
            )

    def _compare(self, taken_P: Tensor, expected: OptimizerState) -> None:
        step_P = expected.parameters_P - self._state.parameters_P
        scale = float(torch.linalg.vector_norm(step_P))
        # Rounding of the parameters is not counted as a difference of steps.
        scale += float(torch.linalg.vector_norm(taken_P)) * torch.finfo(taken_P.dtype).eps * 100
        distance = float(torch.linalg.vector_norm(taken_P - expected.parameters_P))
        if distance <= STEP_TOLERANCE * scale:
            return
        raise ModelError(
            f"step {len(self._positions)} of the loop is not the step of the configuration: it "
            f"differs by {distance / scale:.2g} of its length. Likely reasons: learning_rate is not "
            "the step's (call recorder.step before scheduler.step), the loop clips gradients or has "
            "momentum and the configuration says otherwise, the inputs were augmented otherwise than "
            "by recorder.augment or normalised otherwise than by the data source, the ids are not the "
            "minibatch's, the loss is another one, or the loop uses mixed precision, dropout or "
            "another optimizer"
        )

    def finish(self) -> RunDirectory:
        """Write the trajectory; return the run, ready for `unlearn precompute`.

        Raises:
            TrajectoryError: If no step was recorded.
        """
        if not self._positions:
            raise TrajectoryError("no step was recorded; call recorder.step after each step")
        folder = self._run.trajectory_folder
        write_state(folder, len(self._positions), self._state, self._problem.network.layout)
        write_schedule(folder, Schedule(tuple(self._positions), tuple(self._rates)), self._factors)
        write_samples(folder, self._problem.data, self._problem.sample_masses())
        write_settings(folder, self._problem.config, self._problem.data_digest)
        finish(folder, numerics(self._problem))
        return self._run


def _refuse_dropout(model: nn.Module) -> None:
    """Refuse torch's own dropout, which draws by the place in the minibatch."""
    parts = dict(model.named_modules())
    dropping = [name for name in sorted(active_parts(model)) if hasattr(parts[name], "p")]
    if dropping:
        raise ModelError(
            f"{dropping[0]} draws dropout by the place of a sample in the minibatch, so the run could "
            "not be replayed; set p to 0"
        )


def _frozen_of(model: nn.Module, problem: Problem) -> dict[str, Tensor]:
    """Return the loop's own frozen tensors; check that the factory makes the same network."""
    assert problem.part is not None
    here, layout = model.state_dict(), problem.network.layout
    names = {*problem.part.frozen, *layout.names}
    if here.keys() != names:
        odd = sorted(here.keys() ^ names)[0]
        raise ModelError(
            f"the model and what {problem.config.model.name} makes differ: tensor {odd!r} is only "
            "in one of them; config.model must name a factory of the network that is trained"
        )
    if ParameterLayout.of(model) != layout.trained:
        raise ModelError(
            "the model trains other tensors, or of other shapes, than the configuration's; set "
            "model.trainable and requires_grad alike"
        )
    return {name: here[name].detach().cpu().clone() for name in problem.part.frozen}


def _begun(run: RunDirectory, model: nn.Module, frozen: dict[str, Tensor]) -> Problem:
    """Write where the loop starts; return the problem that starts there."""
    folder = run.trajectory_folder
    folder.mkdir(mode=0o700, exist_ok=True)
    for left_over in folder.iterdir():
        left_over.unlink()
    write_frozen(folder, frozen)
    problem = run.problem()
    assert problem.part is not None
    write_start(folder, problem.part)
    start_P = problem.network.layout.read(model).to(problem.initial_P)
    state = OptimizerState.start(start_P, run.config.training)
    write_state(folder, 0, state, problem.network.layout)
    return replace(problem, initial_P=state.parameters_P)
