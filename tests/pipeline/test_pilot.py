"""A pilot's figures against their definitions, its budget, and its continuation."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.approximators.block import BlockRecursion
from pipeline.approximators.groups import with_engine
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, DataError, ModelError
from pipeline.evaluation import pilot_experiment
from pipeline.evaluation.pilot import Pilot, curve_of, sizes_of, without_choice
from pipeline.evaluation.pilot_design import Budget, Design, TrialSet, design
from pipeline.evaluation.pilot_experiment import SetErrors, alike_units, carry_out
from pipeline.evaluation.pilot_figures import figures, recommended, verdict
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory
from pipeline.training.retraining import retrain
from pipeline.training.train import record

N = 40


def config_of(**sections: Any) -> RunConfig:
    values: dict[str, Any] = {
        "data": {"source": "digits", "num_train": N},
        "model": {"name": "mlp", "hidden": [6], "activation": "tanh"},
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.3, "l2": 0.01},
        "recursion": {"dtype": "float64"},
        "evaluation": {"deletions": [1, 4, 0.5]},
    }
    return RunConfig.from_values(values | sections)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Problem, Trajectory]:
    problem = Problem.of(config_of())
    return problem, record(problem, tmp_path_factory.mktemp("trained"))


def moved(trained: tuple[Problem, Trajectory], units: Sequence[int]) -> Tensor:
    problem, trajectory = trained
    forgotten_n = torch.zeros(N, dtype=torch.bool)
    forgotten_n[list(units)] = True
    return retrain(problem, trajectory.schedule, forgotten_n) - trajectory.trained()


FOUR = TrialSet((7, 3, 30, 11), clustered=False, is_summed=True, is_split=True)
SINGLE = TrialSet((5,), clustered=False, is_summed=True, is_split=False)
SMALL = Design((SINGLE, FOUR), (1, 4), (), with_roughness=True, as_one=(1,))


def test_figures_are_those_of_the_formulas(
    trained: tuple[Problem, Trajectory], tmp_path: Path
) -> None:
    problem, trajectory = trained
    found = carry_out(problem, trajectory, SMALL, tmp_path / "parts")
    target_P = moved(trained, FOUR.units)
    size = float(torch.linalg.vector_norm(target_P))
    for engine in ("hvp", "leave-one-out"):
        block = BlockRecursion(with_engine(problem, engine), trajectory, range(N))
        block.advance(trajectory.num_steps)
        rows_mP = torch.from_numpy(block.rows()).double()[list(FOUR.units)]
        # Each unit owns one sample: (n - n_u) / (n - M) = 39 / 36.
        distance = float(torch.linalg.vector_norm(rows_mP.sum(0) * 39 / 36 - target_P))
        assert found.sets[1].errors[engine] == pytest.approx(distance / size, rel=1e-4)
    halves_P = moved(trained, (7, 3)) + moved(trained, (30, 11))
    split = float(torch.linalg.vector_norm(halves_P * 38 / 36 - target_P)) / size
    assert found.sets[1].non_additivity == pytest.approx(split, rel=1e-9)
    single = found.sets[0]
    assert single.errors["leave-one-out"] < 1e-9 < single.errors["hvp"] == single.linearisation
    assert [each.units for each in found.sets] == [1, 4]
    assert len(found.retrain_seconds) == 4
    assert found.roughness is not None
    assert 0.5 < found.roughness < 5


def test_a_set_as_one_unit_is_the_unit_of_a_run_that_has_it(
    trained: tuple[Problem, Trajectory], tmp_path: Path
) -> None:
    problem, trajectory = trained
    found = carry_out(problem, trajectory, SMALL, tmp_path / "parts")
    owners_n = torch.arange(N)
    owners_n[list(FOUR.units)] = 7
    as_users = replace(problem, data=replace(problem.data, unit_of_sample=owners_n))
    block = BlockRecursion(as_users, trajectory, range(7, 8))
    block.advance(trajectory.num_steps)
    target_P = moved(trained, FOUR.units)
    distance = torch.linalg.vector_norm(torch.from_numpy(block.rows()[0]).double() - target_P)
    expected = float(distance / torch.linalg.vector_norm(target_P))
    assert found.sets[1].linearisation == pytest.approx(expected, rel=1e-4)


def test_an_interrupted_pilot_continues_where_it_stopped(
    trained: tuple[Problem, Trajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, trajectory = trained
    whole = carry_out(problem, trajectory, SMALL, tmp_path / "whole")
    calls = 0

    def interrupted(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return retrain(*args)

    monkeypatch.setattr(pilot_experiment, "retrain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        carry_out(problem, trajectory, SMALL, tmp_path / "parts")
    progress: list[tuple[int, int]] = []
    again = carry_out(
        problem,
        trajectory,
        SMALL,
        tmp_path / "parts",
        progress=lambda *at: progress.append(at),
    )
    # One perturbed start, one single, one set and two halves; two were kept.
    assert calls == 3 + 3
    assert again.sets == whole.sets
    assert again.roughness == whole.roughness
    assert progress[-1][0] == progress[-1][1]


@pytest.mark.parametrize("budget", [Budget(), Budget(14, 40), Budget(8, 24), Budget(3, 3)])
@pytest.mark.parametrize("num_units", [4, 5, 24, 200, 2000])
def test_a_design_keeps_to_its_budget(budget: Budget, num_units: int) -> None:
    generator = np.random.default_rng(num_units)
    for seed in range(20):
        sizes = generator.integers(1, num_units, generator.integers(1, 9)).tolist()
        made = design(sizes, num_units, range(num_units // 2), seed, budget)
        assert made.num_retrainings <= budget.retrainings
        assert made.num_approximators <= budget.approximators
        assert sorted({*made.sizes, *made.left_out}) == sorted(set(sizes))
        assert any(each.is_summed for each in made.sets)
        for each in made.sets:
            assert len(set(each.units)) == len(each.units) < num_units
            assert set(each.units) <= set(range(num_units))
            assert sorted(each.halves[0] + each.halves[1]) == sorted(each.units)
            assert not each.is_split or all(each.halves)


def test_small_sizes_are_measured_and_larger_ones_compared_with_their_halves() -> None:
    made = design([1, 8, 60, 120], 600, range(50), 0)
    summed = {len(each.units) for each in made.sets if each.is_summed and not each.clustered}
    split = {len(each.units) for each in made.sets if each.is_split and not each.clustered}
    assert summed == {1, 8, 60}
    assert split == {8, 60, 120}
    assert made.left_out == ()


def test_too_few_units_and_one_class_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 4 units, found 3"):
        design([1], 3, [], 0)
    problem = Problem.of(config_of())
    one = replace(problem, data=replace(problem.data, targets=torch.zeros(N, dtype=torch.int64)))
    with pytest.raises(DataError, match="of one class"):
        alike_units(one, 0)


def test_alike_units_are_of_one_class_or_near_each_other() -> None:
    problem = Problem.of(config_of())
    what, units = alike_units(problem, 0)
    assert what == "one class"
    assert len(set(problem.data.targets[units].tolist())) == 1
    owners_n = torch.arange(N) // 5
    names = tuple(map(str, range(8)))
    users = replace(problem, data=replace(problem.data, units=names, unit_of_sample=owners_n))
    what, units = alike_units(users, 0)
    assert (what, len(units)) == ("one cluster", 4)
    means = problem.data.inputs.reshape(8, -1).double().reshape(8, 5, -1).mean(1)
    apart = torch.linalg.vector_norm(means - means[units[0]], dim=1)
    assert set(units) == set(apart.argsort()[:4].tolist())


def measured(units: int, error: float, split: float | None = None) -> SetErrors:
    both = {"hvp": error, "leave-one-out": error / 2}
    return SetErrors(units, units, False, both, None, split)


def test_a_size_without_approximators_is_scaled_from_the_largest_with_them() -> None:
    larger = SetErrors(64, 64, False, {}, None, 0.09)
    found = figures([measured(1, 0.02), measured(16, 0.1, 0.04), larger], "hvp", clustered=False)
    # The halves say 9/4, the sizes 2: their geometric mean.
    assert found[-1].relative_error == pytest.approx(0.1 * math.sqrt(9 / 4 * 2))
    assert (found[-1].how, found[-2].how) == ("estimated", "measured")
    assert found[-1].low < found[-1].relative_error < found[-1].high
    # Halves that see a tenth of the error say nothing of it: growth with the root alone.
    blind = [measured(16, 0.4, 0.04), larger]
    assert figures(blind, "hvp", clustered=False)[-1].relative_error == pytest.approx(0.8)


def test_the_engine_with_the_smaller_largest_error_is_recommended() -> None:
    def by_engine(errors: dict[str, Sequence[float]]) -> str:
        sets = [
            SetErrors(units, units, False, {e: of[place] for e, of in errors.items()}, None, None)
            for place, units in enumerate((1, 8))
        ]
        return recommended({e: figures(sets, e, clustered=False) for e in errors})

    assert by_engine({"hvp": (0.02, 0.1), "leave-one-out": (0, 0.05)}) == "leave-one-out"
    # Not worth its time.
    assert by_engine({"hvp": (0.02, 0.1), "leave-one-out": (0, 0.09)}) == "hvp"
    assert by_engine({"hvp": (0.9, 0.5), "leave-one-out": (0, 9.0)}) == "hvp"
    assert by_engine({"hvp": (0.9, math.inf), "leave-one-out": (0, 9.0)}) == "leave-one-out"
    assert by_engine({"hvp": (0.9, math.inf)}) == "hvp"


def test_the_verdict_names_what_is_near_and_what_is_not() -> None:
    near, rough, bad = measured(1, 0.02), measured(10, 0.3), measured(20, 0.7)

    def of(*sets: SetErrors) -> str:
        return verdict(figures(sets, "hvp", clustered=False), "user", "hvp", 0.5)

    assert of(near) == "with hvp, 1 user ends within 2% of retraining"
    assert "up to 10 users end within 20%" in of(near, measured(10, 0.2))
    assert "10 users: 30%, much is left" in of(near, rough)
    assert "20 users: 70%, retrain instead" in of(near, rough, bad)
    assert "worse than not deleting" in of(measured(1, 9.0))
    assert "1 user: >1000%, worse" in of(measured(1, 3e17))
    assert "1 user ends within <0.1% of" in of(measured(1, 1e-9))
    assert "diverge" in of(measured(1, math.inf))


def test_a_result_gives_the_curve_that_a_run_keeps(tmp_path: Path) -> None:
    made = Pilot.of(config_of(recursion={"engine": "auto"}), tmp_path, Budget(8, 24))
    result = made.result(trajectory := made.train(), made.measure(trajectory))
    assert set(result["engines"]) == {"hvp", "leave-one-out"}
    curve = curve_of(result, "hvp")
    assert curve is not None
    assert [point.units for point in curve.points] == [
        entry["units"] for entry in result["engines"]["hvp"]
    ]
    assert curve.at(1).error == result["engines"]["hvp"][0]["relative_error"]
    assert curve_of(result, "weighing") is None
    assert made.design.sizes == (1, 4, 20)


class Counting(nn.Module):
    """A model that vmap does not take: it looks at a value."""

    def __init__(self, num_inputs: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_inputs, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.linear(inputs.flatten(1))
        return outputs * 2 if outputs.sum().item() > 1e9 else outputs


def counting(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return the model."""
    return Counting(math.prod(input_shape), num_classes)


def test_a_model_that_no_engine_follows_is_refused_in_one_line(tmp_path: Path) -> None:
    config = config_of(model={"name": "tests.pipeline.test_pilot:counting"})
    with pytest.raises(ModelError, match="approximators of this model cannot be") as refused:
        Pilot.of(config, tmp_path)
    assert "\n" not in str(refused.value)


def test_sizes_are_those_of_the_evaluation_and_the_capacity() -> None:
    config = config_of(certificate={"kind": "calibrated", "max_units": 7})
    assert sizes_of(config, N) == [1, 4, 7, 20]
    with pytest.raises(ConfigError, match="only 4 units"):
        sizes_of(config, 4)


def test_a_problem_refuses_an_engine_that_is_still_open() -> None:
    config = config_of(recursion={"engine": "auto"})
    with pytest.raises(ConfigError, match=r"recursion\.engine: auto is settled by"):
        Problem.of(config)
    assert without_choice(config).recursion.engine == "hvp"
