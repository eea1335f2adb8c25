"""Retraining against a training loop written a second time."""

from pathlib import Path

import pytest
import torch

from pipeline.errors import DivergedError
from pipeline.run.schedule import Schedule
from pipeline.training.retraining import retrain
from tests import tolerances
from tests.cases import Case, problem_of, run_of
from tests.oracles import relative_error, retrained_without
from tests.pipeline.test_recursion_oracles import every_convention


def schedule_of(case: Case) -> Schedule:
    run = run_of(case)
    return Schedule(run.batches, run.rates)


@pytest.mark.parametrize("case", every_convention("mlp-tanh", "left-out"), ids=str)
def test_retraining_follows_the_definition(case: Case) -> None:
    run, forgotten_n = run_of(case), case.owned_Nn[:2].any(0)
    found = retrain(problem_of(case), schedule_of(case), forgotten_n)
    expected = retrained_without(run, forgotten_n, case.convention)
    assert relative_error(found, expected) < tolerances.LEAVE_ONE_OUT


@pytest.mark.parametrize("form", ["reverse", "forward-over-reverse"])
def test_retraining_does_not_depend_on_the_form_of_hvps(form: str) -> None:
    case = Case("cnn-silu", clip="active", momentum=0.6, hvp=form)
    forgotten_n = case.owned_Nn[3]
    found = retrain(problem_of(case), schedule_of(case), forgotten_n)
    expected = retrained_without(run_of(case), forgotten_n, case.convention)
    assert relative_error(found, expected) < tolerances.LEAVE_ONE_OUT


def test_without_any_sample_only_the_l2_term_is_left() -> None:
    case = Case("mlp-tanh")
    run = run_of(case)
    shrunk = run.initial_P
    for rate in run.rates:
        shrunk = shrunk * (1 - rate * run.l2)
    everyone = torch.ones(case.num_samples, dtype=torch.bool)
    found = retrain(problem_of(case), schedule_of(case), everyone)
    assert relative_error(found, shrunk) < tolerances.LEAVE_ONE_OUT


def test_progress_counts_every_step() -> None:
    case = Case()
    calls: list[tuple[int, int]] = []
    retrain(
        problem_of(case), schedule_of(case), case.owned_Nn[0], lambda a, b: calls.append((a, b))
    )
    assert calls == [(t + 1, 9) for t in range(9)]


def test_divergence_names_the_step(tmp_path: Path) -> None:
    case = Case("ridge")
    run = run_of(case)
    rates = (1e200, 1e200, *run.rates[2:])
    with pytest.raises(DivergedError, match=r"step [123]\b"):
        retrain(problem_of(case), Schedule(run.batches, rates), case.owned_Nn[0])
