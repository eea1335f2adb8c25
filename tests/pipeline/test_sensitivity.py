import dataclasses
import math

import pytest

from pipeline.certificates.measured_bounds import PublishedFormula, published_residual
from pipeline.certificates.privacy import (
    Budget,
    check_budget,
    epsilon_spent,
    plan_release,
    spent_mu,
)
from pipeline.certificates.sensitivity import (
    Condition,
    Declaration,
    UnitsBound,
    unit_buckets,
)
from pipeline.errors import BudgetSpentError, RequestError, RetrainRequiredError
from tests.pipeline.fake_store import make_record

BOUNDS = (
    UnitsBound(1, residual=0.01, rounding=0.001, distance=0.5, distance_rounding=0.0005),
    UnitsBound(10, residual=0.2, rounding=0.002, distance=1.0, distance_rounding=0.0005),
    UnitsBound(50, residual=9.0, rounding=0.004, distance=3.0, distance_rounding=0.0005),
)
DECLARED = Declaration(
    "certified", BOUNDS, row_error=0.003, residual_source="proof", row_error_source="caps"
)


def test_delta_is_the_sum_of_its_terms() -> None:
    sensitivity = DECLARED.for_units(10)
    assert {term.name: term.value for term in sensitivity.terms} == {
        "residual": 0.2,
        "row_error": pytest.approx(10 * 0.003),
        "rounding": 0.002,
    }
    assert sensitivity.total == pytest.approx(0.232)
    assert sensitivity.alternative == pytest.approx(1.0005)


@pytest.mark.parametrize(("num_units", "bucket"), [(1, 1), (2, 10), (10, 10), (11, 50), (50, 50)])
def test_more_units_need_more_and_a_bucket_tells_no_number(num_units: int, bucket: int) -> None:
    assert DECLARED.for_units(num_units).max_units == bucket


def test_where_rows_do_not_help_the_trained_parameters_are_released() -> None:
    sensitivity = DECLARED.for_units(50)
    assert not sensitivity.update
    assert sensitivity.total == pytest.approx(3.0005)
    assert sensitivity.alternative == pytest.approx(9.0 + 50 * 0.003 + 0.004)


def test_past_the_capacity_retraining_is_required() -> None:
    with pytest.raises(RetrainRequiredError, match=r"51 units .* at most 50"):
        DECLARED.for_units(51)


def test_a_declaration_survives_json() -> None:
    declaration = Declaration(
        "calibrated",
        (UnitsBound(3, 0.1),),
        conditions=(Condition("a", True, "b"),),
        evidence={"x": [1, 2.5]},
    )
    again = Declaration.from_json(declaration.to_json())
    assert again == declaration
    assert again.digest() == declaration.digest() != DECLARED.digest()


@pytest.mark.parametrize("text", ["{}", '{"bounds": [], "conditions": [], "colour": 1}'])
def test_json_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a declaration"):
        Declaration.from_json(text)


@pytest.mark.parametrize(
    "bounds",
    [
        (),
        (UnitsBound(0, 0.1),),
        (UnitsBound(2, 0.1), UnitsBound(1, 0.1)),
        (UnitsBound(1, float("nan")),),
        (UnitsBound(1, -0.1),),
    ],
)
def test_impossible_bounds_are_refused(bounds: tuple[UnitsBound, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Declaration("certified", bounds)


def test_buckets() -> None:
    assert unit_buckets(1) == (1,)
    assert unit_buckets(72) == (1, 2, 5, 10, 20, 50, 72)


FORMULA = PublishedFormula(
    learning_rate=0.05,
    decay=0.995,
    num_steps=480,
    steps_per_epoch=32,
    batch_size=32,
    clip_norm=5.0,
    rho=1.01,
)


def quoted_formula(f: PublishedFormula, m: int) -> float:
    """METHOD section 7, `published`, as it is written there."""
    eta, q, steps, per_epoch, rho = (
        f.learning_rate,
        f.decay,
        f.num_steps,
        f.steps_per_epoch,
        f.rho,
    )
    drift = (rho**steps - q**steps) / (rho - q) - (rho**steps - q ** (2 * steps)) / (rho - q**2)
    visits = (rho**steps - q**steps) / (rho**per_epoch - q**per_epoch)
    return (
        2 * eta**2 * f.clip_norm * (1 - q) * drift
        + 2 * eta * f.clip_norm * (m / f.batch_size) * visits * rho**per_epoch * q**per_epoch
    )


@pytest.mark.parametrize("m", [1, 50, 300])
def test_the_published_formula_is_the_quoted_one(m: int) -> None:
    assert published_residual(FORMULA, m) == pytest.approx(quoted_formula(FORMULA, m), rel=1e-9)


def test_the_published_formula_has_no_hole_where_rho_is_the_decay() -> None:
    at = dataclasses.replace(FORMULA, rho=0.995)
    near = dataclasses.replace(FORMULA, rho=0.995 + 1e-9)
    assert published_residual(at, 10) == pytest.approx(published_residual(near, 10), rel=1e-5)


# --- plans and budgets ----------------------------------------------------------------------------


def test_the_plan_scales_the_noise_with_the_number_of_units() -> None:
    one = plan_release(DECLARED, 1, 1.0, 1e-5)
    ten = plan_release(DECLARED, 10, 1.0, 1e-5)
    assert one.sigma == pytest.approx(3.7306316 * 0.014, rel=1e-6)
    assert ten.sigma == pytest.approx(3.7306316 * 0.232, rel=1e-6)
    assert one.update and ten.update
    assert not plan_release(DECLARED, 50, 1.0, 1e-5).update


def test_no_noise_needs_no_declaration_and_keeps_to_a_capacity() -> None:
    assert plan_release(Declaration(), 10_000, None, None).sigma == 0
    assert plan_release(DECLARED, 50, None, None).kind == "none"
    with pytest.raises(RetrainRequiredError):
        plan_release(DECLARED, 51, None, None)


def test_noise_without_a_declaration_is_refused() -> None:
    with pytest.raises(RequestError, match="declares no sensitivity"):
        plan_release(Declaration(), 1, 1.0, 1e-5)


def test_a_failed_condition_is_named() -> None:
    failed = Declaration("certified", BOUNDS, conditions=(Condition("no clipping", False, "0.5"),))
    with pytest.raises(RequestError, match=r"no clipping \(found 0.5\)"):
        plan_release(failed, 1, 1.0, 1e-5)


def test_a_sensitivity_of_zero_is_refused() -> None:
    with pytest.raises(RequestError, match="sensitivity is 0"):
        plan_release(Declaration("calibrated", (UnitsBound(5, 0.0),)), 1, 1.0, 1e-5)


TWICE = math.sqrt(2) / 3.7306316348159374  # mu of two releases at (1, 1e-5)


def test_what_releases_spend_adds_up() -> None:
    mechanism = plan_release(DECLARED, 1, 1.0, 1e-5)
    first = make_record(1, 1.0, 1e-5, mu=spent_mu(None, mechanism))
    second = make_record(2, 1.0, 1e-5, mu=spent_mu(first, mechanism))
    assert epsilon_spent(first, None) == (pytest.approx(1.0), 1e-5)
    assert second.spent_mu == pytest.approx(TWICE)
    assert epsilon_spent(second, None) == (pytest.approx(1.47, rel=5e-3), 1e-5)
    assert epsilon_spent(second, Budget(9.0, 1e-3))[1] == 1e-3


def test_one_release_without_noise_leaves_nothing_bounded() -> None:
    second = spent_mu(make_record(1), plan_release(DECLARED, 1, 1.0, 1e-5))
    assert second is None
    assert epsilon_spent(make_record(2, 1.0, 1e-5, mu=second), None) == (None, 1e-5)
    assert (
        spent_mu(make_record(1, 1.0, 1e-5, mu=0.1), plan_release(DECLARED, 1, None, None)) is None
    )


def test_a_budget_holds_what_it_says_and_no_more() -> None:
    budget = Budget(1.5, 1e-5)
    check_budget(None, [(1.0, 1e-5), (1.0, 1e-5)], budget)
    with pytest.raises(BudgetSpentError, match=r"budget is 1\.5"):
        check_budget(None, [(1.0, 1e-5)] * 3, budget)
    with pytest.raises(BudgetSpentError, match=r"1\.46517 is spent"):
        check_budget(make_record(2, 1.0, 1e-5, mu=TWICE), [(0.5, 1e-5)], budget)


def test_exactly_the_budget_is_held() -> None:
    check_budget(None, [(1.0, 1e-5)], Budget(1.0, 1e-5))


def test_no_budget_holds_a_release_without_noise() -> None:
    with pytest.raises(BudgetSpentError, match="without noise"):
        check_budget(None, [(None, None)], Budget(100.0, 1e-5))
    with pytest.raises(BudgetSpentError, match="earlier release had no noise"):
        check_budget(make_record(1), [(1.0, 1e-5)], Budget(100.0, 1e-5))
    check_budget(make_record(1), [(None, None)], None)


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0.0, 1e-5), (-1.0, 1e-5), (float("nan"), 1e-5), (1.0, 0.0), (1.0, 1.0)]
)
def test_impossible_budgets_are_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ValueError, match="expected a budget"):
        Budget(epsilon, delta)
