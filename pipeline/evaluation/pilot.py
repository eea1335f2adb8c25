"""A pilot of a configuration: from its sizes to figures, in a folder of its own.

    DIR/pilot/pilot.json     the figures; no unit is named
    DIR/pilot/parts/         its training, and finished retrainings and approximators, until the figures
                             are written

DIR may become, or be, the run directory of the same configuration.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from blake3 import blake3

from pipeline import __version__
from pipeline.approximators.groups import GroupRows, engines_of, propagate
from pipeline.config import RunConfig
from pipeline.config_yaml import one_line
from pipeline.errors import ConfigError, ModelError, PipelineError
from pipeline.evaluation.accuracy import Quality, held_out_quality
from pipeline.evaluation.pilot_design import STANDARD, Budget, Design, design
from pipeline.evaluation.pilot_experiment import Findings, alike_units, carry_out
from pipeline.evaluation.pilot_figures import (
    SizeFigures,
    curve,
    figures,
    left_out_words,
    recommended,
    verdict,
)
from pipeline.evaluation.trials import num_units_to_delete
from pipeline.progress import Progress, silent
from pipeline.run.directory import PILOT, RunDirectory
from pipeline.run.error_curve import ErrorCurve
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule
from pipeline.run.settings import canonical_text, fixed_settings, recorded_data_digest
from pipeline.run.trajectory import Trajectory
from pipeline.training.replay import Replay, write_state
from pipeline.training.step import OptimizerState
from pipeline.training.train import record

_RESULT = "pilot.json"
TIMED_STEPS = 3


@dataclass(frozen=True)
class Pilot:
    """A pilot that is designed.

    Attributes:
        problem: With the engine hvp, whatever the configuration asks for.
        design: Which sets.
        alike: What units of the clustered set have in common.
        engines: That the conventions allow.
        folder: Of the pilot.
    """

    problem: Problem
    design: Design
    alike: str
    engines: tuple[str, ...]
    folder: Path

    @staticmethod
    def of(config: RunConfig, directory: Path, budget: Budget = STANDARD) -> "Pilot":
        """Load data and model, and design the pilot of a configuration.

        Args:
            config: Of the run to come.
            directory: The pilot lies in a folder of it.
            budget: At most this.

        Raises:
            ConfigError: If there are too few units, or a size leaves none.
            DataError: If there is one class alone.
            ModelError: If the engines cannot follow the model.
        """
        problem = Problem.of(without_choice(config))
        num_units = len(problem.data.units)
        what, alike = alike_units(problem, config.seed)
        made = design(sizes_of(config, num_units), num_units, alike, config.seed, budget)
        engines = engines_of(config)
        _check_followed(problem, engines)
        return Pilot(problem, made, what, engines, directory.absolute() / PILOT)

    @property
    def settings(self) -> str:
        """A digest of what training fixes, the engine apart."""
        return settings_digest(self.problem.config, self.problem.data_digest)

    @property
    def digest(self) -> str:
        """Of everything that decides the figures, the machine's speed apart."""
        text = f"{__version__} {self.settings} {self.engines} {self.design}"
        return blake3(text.encode()).hexdigest(length=16)

    def known(self) -> dict[str, Any] | None:
        """Return the result of an earlier, equal pilot."""
        result = read_result(self.folder.parent)
        return result if result is not None and result.get("pilot_digest") == self.digest else None

    def expected_seconds(self) -> float:
        """Return about how long the pilot takes, from a few steps that are taken and thrown away."""
        primal, products = timed_steps(self.problem, self.engines)
        num_passes = 1 + self.design.num_approximators // 32
        num_trainings = 1 + self.design.num_retrainings + num_passes
        num_steps = self.schedule().num_steps
        per_unit = sum(products.values())
        return num_steps * (num_trainings * primal + self.design.num_approximators * per_unit)

    def schedule(self) -> Schedule:
        """Return the run's minibatches."""
        config = self.problem.config
        return Schedule.draw(config.training, self.problem.data.num_samples, config.seed)

    def train(self, progress: Progress = silent) -> Trajectory:
        """Train, or open the training of an interrupted pilot.

        Raises:
            DivergedError: If a gradient is not finite.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Named by what it depends on: the training of another configuration stays untouched.
        folder = self.folder / "parts" / f"trajectory-{self.settings}"
        if (folder / "digest").is_file():
            return Trajectory.open(folder)
        return record(self.problem, folder, progress)

    def measure(self, trajectory: Trajectory, progress: Progress = silent) -> Findings:
        """Retrain and compare; what is finished is kept.

        Raises:
            DivergedError: If a retraining is not finite.
        """
        parts = self.folder / "parts"
        return carry_out(self.problem, trajectory, self.design, parts, self.engines, progress)

    def quality(self, trajectory: Trajectory) -> Quality:
        """Return how well the trained model does on the test samples."""
        with self.problem.arithmetic():
            trained_P = trajectory.trained().to(self.problem.initial_P)
            return held_out_quality(self.problem, trained_P)

    def result(self, trajectory: Trajectory, found: Findings) -> dict[str, Any]:
        """Return the figures, costs of the full run apart."""
        engines = self.engines
        by_engine = {e: figures(found.sets, e, clustered=False) for e in engines}
        alike = {e: figures(found.sets, e, clustered=True) for e in engines}
        engine = recommended(by_engine)
        quality = self.quality(trajectory)
        accuracy = quality.accuracy_if_any
        notes = [left_out_words(self.design)] if self.design.left_out else []
        return {
            "name": self.problem.config.name,
            "num_units": len(self.problem.data.units),
            "num_parameters": self.problem.num_parameters,
            "num_steps": trajectory.num_steps,
            "engines": {e: [each.entry() for each in of] for e, of in by_engine.items()},
            "alike": self.alike,
            "clustered": {e: [each.entry() for each in of] for e, of in alike.items()},
            "recommended": engine,
            "accuracy": accuracy,
            "accuracy_range": _accuracy_range(accuracy, len(self.problem.data.test_targets)),
            "test_figures": quality.figures,
            "roughness": found.roughness,
            "retrain_seconds": median(found.retrain_seconds),
            "product_seconds": found.product_seconds,
            "retrainings": self.design.num_retrainings,
            "approximators": self.design.num_approximators,
            "verdict": verdict(
                by_engine[engine],
                self.problem.config.data.unit,
                engine,
                self.problem.config.evaluation.max_error,
            ),
            "notes": notes,
            "settings_digest": self.settings,
            "pilot_digest": self.digest,
        }


def _accuracy_range(accuracy: float | None, num_samples: int) -> list[float] | None:
    """Return two standard errors around an accuracy on so many samples; None of none."""
    if accuracy is None:
        return None
    error = 2 * (accuracy * (1 - accuracy) / num_samples) ** 0.5
    return [max(0.0, accuracy - error), min(1.0, accuracy + error)]


def without_choice(config: RunConfig) -> RunConfig:
    """Return the configuration with the engine hvp: a problem needs one, and a pilot computes both."""
    recursion = config.recursion.model_copy(update={"engine": "hvp"})
    return config.model_copy(update={"recursion": recursion})


def sizes_of(config: RunConfig, num_units: int) -> list[int]:
    """Return the numbers of units that a configuration means to delete together, ascending.

    Raises:
        ConfigError: If one of them leaves no unit.
    """
    sizes = {num_units_to_delete(entry, num_units) for entry in config.evaluation.deletions}
    most = config.certificate.max_units
    if most is not None and most < num_units:
        sizes.add(most)
    return sorted(sizes | {1})


def settings_digest(config: RunConfig, data_digest: str | None) -> str:
    """Return a digest of what training fixes but for the engine, and of the data.

    Args:
        config: As a problem or a run directory has resolved it.
        data_digest: Of the training data.
    """
    text = canonical_text(fixed_settings(without_choice(config)))
    return blake3(f"{text} {data_digest}".encode()).hexdigest(length=16)


def read_result(directory: Path) -> dict[str, Any] | None:
    """Return the figures of a directory's pilot; None if there are none.

    Raises:
        ConfigError: If the file is damaged.
    """
    path = directory / PILOT / _RESULT
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result["engines"], dict) or not isinstance(result["recommended"], str):
            raise ValueError("it holds no figures")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged ({error!r:.80}); remove it, and repeat `unlearn pilot`"
        ) from error
    return dict(result)


# What a report keeps of a pilot.
_REPORTED = (
    "engines",
    "alike",
    "clustered",
    "recommended",
    "accuracy",
    "roughness",
    "costs",
    "break_even_requests",
    "verdict",
    "retrainings",
    "approximators",
)


def pilot_of(run: RunDirectory) -> dict[str, Any] | None:
    """Return what a run's report says of its pilot; None if there is none of the same training."""
    result = read_result(run.path)
    if result is None or not is_of(result, run):
        return None
    return {key: result[key] for key in _REPORTED if key in result}


def is_of(result: Mapping[str, Any], run: RunDirectory) -> bool:
    """Whether a pilot's training was the same as a trained run's."""
    data_digest = recorded_data_digest(run.trajectory_folder)
    return bool(result["settings_digest"] == settings_digest(run.config, data_digest))


def result_path(directory: Path) -> Path:
    """Return where a directory's pilot keeps its figures."""
    return directory / PILOT / _RESULT


def curve_of(result: Mapping[str, Any], engine: str) -> ErrorCurve | None:
    """Return a pilot's figures of one engine as a run keeps them; None if it has none."""
    entries = result["engines"].get(engine)
    if not entries:
        return None
    return curve([_figures(entry) for entry in entries], engine)


def _figures(entry: Mapping[str, Any]) -> SizeFigures:
    values = dict(entry)
    low, high = values.pop("range")
    error = values.pop("relative_error")
    infinite = (float("inf") if value is None else value for value in (error, low, high))
    error, low, high = infinite
    return SizeFigures(relative_error=error, low=low, high=high, **values)


def _check_followed(problem: Problem, engines: Sequence[str]) -> None:
    """Refuse a model that the engines cannot follow, before anything is trained.

    Raises:
        ModelError: The message has the first line of what it raised.
    """
    try:
        _first_steps(problem, engines, 1)
    except PipelineError:
        raise
    except Exception as error:
        # A user's model under torch's transforms raises whatever it likes.
        raise ModelError(
            f"approximators of this model cannot be computed: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error


def timed_steps(problem: Problem, engines: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Return the seconds of one training step, and of one product of each engine."""
    # The first time warms up.
    for _ in range(2):
        primal, found = _first_steps(problem, engines, TIMED_STEPS)
    return primal, {e: each.seconds / max(1, each.num_products) for e, each in found.items()}


def _first_steps(
    problem: Problem, engines: Sequence[str], num_steps: int
) -> tuple[float, dict[str, GroupRows]]:
    """Take the first steps of training and throw them away; return seconds a step, and rows."""
    config = problem.config
    schedule = Schedule.draw(config.training, problem.data.num_samples, config.seed)
    stop = min(num_steps, schedule.num_steps)
    with TemporaryDirectory() as folder:
        state = OptimizerState.start(problem.initial_P, config.training)
        write_state(Path(folder), 0, state, problem.network.layout)
        factors = (1.0,) * schedule.num_steps
        untrained = Trajectory(Path(folder), schedule, factors, (0,), "untrained")
        replay = Replay.start(problem, untrained)
        began = time.perf_counter()
        with problem.arithmetic():
            for _ in replay.steps(stop):
                pass
        seconds = (time.perf_counter() - began) / stop
        # Units of the first minibatch: they are propagated from the first step on.
        groups = [torch.tensor([i]) for i in schedule.sample_ids[0][: problem.chunk].tolist()]
        members = dict.fromkeys(engines, groups)
        return seconds, propagate(problem, untrained, members, num_steps=stop)
