"""A pilot: the error of deletions, measured on a few sets before any approximator is stored.

    relative error     |w_T + sum of approximators - w_U| / |D(U)|       D(U) = w_U - w_T
    linearisation      |D(U) - approximator of U as one unit| / |D(U)|
    non-additivity     |D(U) - [(n - h1) D(U1) + (n - h2) D(U2)] / (n - m)| / |D(U)|

w_U is retrained without U, U1 and U2 are halves of U of h1 and h2 samples, m = h1 + h2. The last needs
no approximator (docs/method.md). What is finished is kept in the pilot's folder until the end.
"""

# n samples, N units, P parameters

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from pipeline import tensor_file
from pipeline.approximators.groups import ENGINES, propagate, with_engine
from pipeline.data.lazy_inputs import in_parts
from pipeline.deletion.weights import (
    DeletionRule,
    DeletionState,
    apply_deletion,
    deletion_rule,
    unit_weights,
)
from pipeline.errors import DataError
from pipeline.evaluation.comparison import distances, l2_distance
from pipeline.evaluation.pilot_design import Design, TrialSet
from pipeline.progress import Progress, silent
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory
from pipeline.training.retraining import retrain
from pipeline.training.step import buffer_names

# Of the start, relative to its norm.
PERTURBATION = 1e-3
# Approximators that are computed in one pass stay below this, and are lost if it is interrupted.
PASS_BYTES = 1 << 29
PASS_GROUPS = 32


@dataclass(frozen=True)
class SetErrors:
    """One set of units, left out by each engine and by retraining.

    Attributes:
        units: How many.
        mass: Of their samples.
        clustered: Whether they are alike, and not drawn at random.
        errors: Relative error of the sum of approximators, by engine; infinite where they diverged.
        linearisation: Of the engine hvp; None where the set was not computed as one unit.
        non_additivity: None where the halves were not left out.
    """

    units: int
    mass: int
    clustered: bool
    errors: dict[str, float]
    linearisation: float | None
    non_additivity: float | None


@dataclass
class Findings:
    """What a pilot measured.

    Attributes:
        sets: One for each set of the design.
        roughness: |change of w_T| / |change of w_0| of a perturbed start; None: not asked for.
        retrain_seconds: Of each retraining.
        product_seconds: One HVP (gradient) of each engine; empty where nothing was computed.
    """

    sets: list[SetErrors]
    roughness: float | None
    retrain_seconds: list[float] = field(default_factory=list)
    product_seconds: dict[str, float] = field(default_factory=dict)


def alike_units(problem: Problem, seed: int) -> tuple[str, list[int]]:
    """Return units that are alike, and in what: "one class", or "one cluster" around one of them.

    Raises:
        DataError: If all training samples are of one class, so that there is nothing to learn.
    """
    data = problem.data
    generator = np.random.default_rng([seed, 8])
    targets_n = data.targets.cpu().numpy()
    owners_n = data.unit_of_sample.cpu().numpy()
    num_units = len(data.units)
    if data.has_classes and len(np.unique(targets_n)) < 2:
        raise DataError(
            f"all {data.num_samples:,} training samples are of one class: a model learns nothing from "
            "them, and no deletion can be compared; add samples of another class"
        )
    if data.has_classes and targets_n.ndim == 1:
        lowest, highest = np.full(num_units, targets_n.max()), np.full(num_units, targets_n.min())
        np.minimum.at(lowest, owners_n, targets_n)
        np.maximum.at(highest, owners_n, targets_n)
        pure = np.nonzero(lowest == highest)[0]
        if 2 * len(pure) > num_units:
            chosen = generator.choice(lowest[pure])
            of_class = pure[lowest[pure] == chosen]
            found = generator.permutation(of_class)
            # Some samples of every class remain.
            return "one class", [int(unit) for unit in found[: max(1, len(found) // 2)]]
    means = _mean_inputs(problem)
    centre = int(generator.integers(num_units))
    order = np.argsort(np.linalg.norm(means - means[centre], axis=1), kind="stable")
    return "one cluster", [int(unit) for unit in order[: num_units // 2]]


def _mean_inputs(problem: Problem) -> np.ndarray:
    """Return the mean input of each unit, (N, features) float64."""
    data = problem.data
    width = data.inputs[:1].nelement()
    sums = torch.zeros(
        len(data.units), width, dtype=torch.float64, device=data.unit_of_sample.device
    )
    done = 0
    for part in in_parts(data.inputs):
        owners = data.unit_of_sample[done : done + len(part)]
        sums.index_add_(0, owners, part.flatten(1).double())
        done += len(part)
    counts = torch.bincount(data.unit_of_sample, minlength=len(data.units)).clamp(min=1)
    means: np.ndarray = (sums / counts[:, None]).cpu().numpy()
    return means


class Kept:
    """Finished parts of a pilot in a folder, each under a digest of what decides it."""

    def __init__(self, folder: Path, trajectory: Trajectory) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._digest = folder, trajectory.digest

    def vector(
        self, kind: str, samples: Tensor, make: Callable[[], Tensor]
    ) -> tuple[Tensor, float]:
        """Return a vector that was kept, or make and keep it; and the seconds that it took."""
        arrays, facts = self.arrays(kind, [samples], lambda: ({"vector": make().cpu()}, {}))
        return arrays["vector"], float(facts["seconds"])

    def arrays(
        self,
        kind: str,
        groups: Sequence[Tensor],
        make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]],
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and facts that were kept, or make and keep them."""
        path = self._path(kind, groups)
        try:
            arrays, facts = tensor_file.read(path)
        except tensor_file.DamagedFileError:
            # Not there, or of an interrupted write: made anew.
            began = time.perf_counter()
            made, facts = make()
            facts = {**facts, "seconds": time.perf_counter() - began}
            tensor_file.write(path, {name: value.numpy() for name, value in made.items()}, facts)
            return made, facts
        return {name: torch.from_numpy(value) for name, value in arrays.items()}, facts

    def _path(self, kind: str, groups: Sequence[Tensor]) -> Path:
        hasher = blake3(f"{self._digest} {kind}".encode())
        for samples in groups:
            hasher.update(len(samples).to_bytes(8, "little"))
            hasher.update(samples.cpu().numpy().astype(np.int64).tobytes())
        return self._folder / f"{hasher.hexdigest(length=16)}.safetensors"


def carry_out(
    problem: Problem,
    trajectory: Trajectory,
    design: Design,
    folder: Path,
    engines: Sequence[str] = ENGINES,
    progress: Progress = silent,
) -> Findings:
    """Retrain, compute approximators and compare; an interrupted call is continued by the next.

    Args:
        problem: Data, network, conventions.
        trajectory: Its training.
        design: Which sets.
        folder: Where finished parts are kept, mode 0700: they describe people.
        engines: Of the approximators; hvp is one of them.
        progress: In steps, of all retrainings and passes.

    Raises:
        DivergedError: If a retraining is not finite.
    """
    kept = Kept(folder, trajectory)
    return _Pilot(problem, trajectory, design, kept, engines, progress).findings()


class _Pilot:
    def __init__(
        self,
        problem: Problem,
        trajectory: Trajectory,
        design: Design,
        kept: Kept,
        engines: Sequence[str],
        progress: Progress,
    ) -> None:
        self._problem, self._trajectory, self._design = problem, trajectory, design
        self._kept, self._progress = kept, progress
        self._engines = engines
        self._trained_P = trajectory.trained()
        self._masses = problem.unit_masses()
        self._passes = self._groups_by_pass()
        self._total = trajectory.num_steps * (design.num_retrainings + len(self._passes))
        self._done = 0
        self._retrain_seconds: list[float] = []

    def findings(self) -> Findings:
        rows, seconds = self._rows()
        roughness = self._roughness() if self._design.with_roughness else None
        sets = [self._compared(place, each, rows) for place, each in enumerate(self._design.sets)]
        return Findings(sets, roughness, self._retrain_seconds, seconds)

    # Approximators

    def _groups_by_pass(self) -> list[dict[str, list[tuple[int, ...]]]]:
        units = [(unit,) for unit in self._design.summed_units]
        sets = [self._design.sets[place].units for place in self._design.as_one]
        buffers = 1 + len(buffer_names(self._problem.config.training))
        row_bytes = self._problem.num_parameters * self._problem.initial_P.element_size() * buffers
        at_once = max(2, min(PASS_GROUPS, PASS_BYTES // (len(self._engines) * row_bytes)))
        passes: list[dict[str, list[tuple[int, ...]]]] = []
        for start in range(0, len(units), at_once):
            part = units[start : start + at_once]
            passes.append({engine: list(part) for engine in self._engines})
        for start in range(0, len(sets), at_once):
            passes.append({"hvp": sets[start : start + at_once]})
        return passes

    def _rows(self) -> tuple[dict[tuple[str, tuple[int, ...]], Tensor], dict[str, float]]:
        """Return the approximator of each group by engine, and the seconds of one product."""
        rows: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        products = dict.fromkeys(self._engines, 0)
        seconds = dict.fromkeys(self._engines, 0.0)
        for groups in self._passes:
            members = [self._samples(units) for units in groups["hvp"]]
            found, facts = self._kept.arrays(
                f"approximators {sorted(groups)}",
                members,
                lambda groups=groups: self._pass(groups),  # type: ignore[misc]
            )
            self._advance()
            for engine, of_engine in groups.items():
                products[engine] += facts[engine][0]
                seconds[engine] += facts[engine][1]
                for units, row_P in zip(of_engine, found[engine], strict=True):
                    rows[engine, units] = row_P
        measured = {e: seconds[e] / products[e] for e in self._engines if products[e]}
        return rows, measured

    def _pass(
        self, groups: dict[str, list[tuple[int, ...]]]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        members = {engine: list(map(self._samples, of)) for engine, of in groups.items()}
        found = propagate(self._problem, self._trajectory, members, self._steps)
        rows = {engine: each.rows_GP for engine, each in found.items()}
        return rows, {engine: [each.num_products, each.seconds] for engine, each in found.items()}

    # Retrainings

    def _retrained(self, units: Sequence[int]) -> Tensor:
        samples = self._samples(units)
        forgotten_n = torch.zeros(self._problem.data.num_samples, dtype=torch.bool)
        forgotten_n[samples.cpu()] = True
        schedule = self._trajectory.schedule
        found_P, seconds = self._kept.vector(
            "retrained",
            samples,
            lambda: retrain(
                self._problem, schedule, forgotten_n.to(self._problem.device), self._steps
            ),
        )
        self._retrain_seconds.append(seconds)
        self._advance()
        return found_P

    def _roughness(self) -> float:
        start_P = self._problem.initial_P
        parameters = slice(self._problem.network.layout.trained.num_parameters)
        generator = torch.Generator().manual_seed(self._problem.config.seed)
        moved_P = torch.zeros_like(start_P, device="cpu")
        moved_P[parameters] = torch.randn(len(moved_P[parameters]), generator=generator).to(moved_P)
        # A start at 0, as logistic regression has, is moved by as much as one of norm 1.
        norm = float(torch.linalg.vector_norm(start_P)) or 1.0
        moved_P *= PERTURBATION * norm / float(torch.linalg.vector_norm(moved_P))
        other = replace(self._problem, initial_P=start_P + moved_P.to(start_P))
        none_n = torch.zeros(self._problem.data.num_samples, dtype=torch.bool)
        none_n = none_n.to(self._problem.device)
        schedule = self._trajectory.schedule
        ended_P, _ = self._kept.vector(
            "perturbed", torch.empty(0), lambda: retrain(other, schedule, none_n, self._steps)
        )
        self._advance()
        grown = l2_distance(ended_P[parameters], self._trained_P[parameters])
        return grown / float(torch.linalg.vector_norm(moved_P))

    # Comparison

    def _compared(
        self, place: int, each: TrialSet, rows: dict[tuple[str, tuple[int, ...]], Tensor]
    ) -> SetErrors:
        retrained_P = self._retrained(each.units)
        errors = {}
        if each.is_summed:
            for engine in self._engines:
                parts = [rows[engine, (unit,)] for unit in each.units]
                errors[engine] = self._error(engine, parts, [(u,) for u in each.units], retrained_P)
        linearisation = None
        if place in self._design.as_one:
            as_one_P = rows["hvp", each.units]
            linearisation = self._error("hvp", [as_one_P], [each.units], retrained_P)
        elif len(each.units) == 1:
            linearisation = errors["hvp"]
        split = self._split(each, retrained_P) if each.is_split else None
        mass = self._mass(each.units)
        return SetErrors(len(each.units), mass, each.clustered, errors, linearisation, split)

    def _split(self, each: TrialSet, retrained_P: Tensor) -> float:
        moved = [self._retrained(half) - self._trained_P for half in each.halves]
        # What retraining moves is no row: it divides by what remains, whatever the rows leave in.
        return self._error("leave-one-out", moved, list(each.halves), retrained_P)

    def _error(
        self,
        engine: str,
        rows: Sequence[Tensor],
        groups: Sequence[Sequence[int]],
        retrained_P: Tensor,
    ) -> float:
        """Return the relative error of the corrected sum of rows, one for each group of units."""
        rule = self._rule(engine)
        counts = [self._mass(group) for group in groups]
        weights = np.array(unit_weights(rule, counts) or [1] * len(counts), dtype=np.float64)
        sum_P = np.zeros(len(self._trained_P))
        for weight, row_P in zip(weights, rows, strict=True):
            sum_P += weight * row_P.numpy()
        variances = self._problem.network.layout.variances()
        state = DeletionState(sum_P, sum(counts))
        with np.errstate(over="ignore", invalid="ignore"):
            unlearned_P = apply_deletion(rule, self._trained_P.numpy(), state, variances)
        found = distances(self._trained_P, torch.from_numpy(unlearned_P), retrained_P)
        return found.relative_error if np.isfinite(found.relative_error) else float("inf")

    def _rule(self, engine: str) -> DeletionRule:
        return deletion_rule(with_engine(self._problem, engine).config, sum(self._masses))

    def _mass(self, units: Sequence[int]) -> int:
        return sum(self._masses[unit] for unit in units)

    def _samples(self, units: Sequence[int]) -> Tensor:
        """Return the positions of the units' samples, ascending."""
        chosen = torch.tensor(sorted(units), device=self._problem.device)
        return self._problem.data.samples_of(chosen).nonzero().squeeze(1)

    # Progress

    def _steps(self, done: int, total: int) -> None:
        self._progress(min(self._done + done, self._total - 1), self._total)

    def _advance(self) -> None:
        self._done += self._trajectory.num_steps
        self._progress(min(self._done, self._total), self._total)
