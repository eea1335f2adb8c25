"""The recursion against differentiated training, retraining and dense matrices."""

from itertools import product
from pathlib import Path

import pytest
import torch

from tests import tolerances
from tests.cases import Case, compute, run_of
from tests.oracles import (
    dense_product,
    relative_error,
    retrained_without,
    trajectory,
    weight_derivatives,
    weighted_training,
)

FORMS = ("r-operator", "reverse", "forward-over-reverse", "explicit")
MOMENTA = ((0.0, False), (0.6, False), (0.6, True))


def every_convention(network: str, own_rows: str) -> list[Case]:
    """All combinations of denominator, L2 share, clipping, momentum and kind of unit."""
    clips = ("none", "active")
    return [
        Case(network, denominator, own_rows, l2_share, clip, momentum, nesterov, unit)
        for denominator, l2_share, clip, (momentum, nesterov), unit in product(
            ("remaining", "batch"), ("step", "sample"), clips, MOMENTA, ("sample", "user")
        )
    ]


def some_conventions(network: str, own_rows: str) -> list[Case]:
    """Every value of every convention, and every pair of values of most."""
    choices = [
        ("remaining", "step", "none", 0.0, False, "user"),
        ("remaining", "step", "active", 0.6, True, "sample"),
        ("remaining", "sample", "active", 0.6, False, "user"),
        ("batch", "step", "active", 0.0, False, "sample"),
        ("batch", "sample", "none", 0.6, True, "user"),
        ("batch", "sample", "active", 0.6, False, "user"),
        ("batch", "step", "inactive", 0.6, False, "sample"),
    ]
    return [Case(network, *a[:1], own_rows, *a[1:]) for a in choices]  # type: ignore[arg-type]


def check_clipping_is_as_named(case: Case, clip_factors: tuple[float, ...]) -> None:
    fired = [factor < 1 for factor in clip_factors]
    if case.clip == "active":
        assert any(fired), "the case is named after clipping that fires"
        assert not all(fired), "and after clipping that does not always fire"
    else:
        assert not any(fired)


def check_against_jvp(case: Case, folder: Path, forms: tuple[str, ...]) -> None:
    run = run_of(case)
    expected = weight_derivatives(run, case.owned_Nn, case.convention)
    for form in forms:
        computed = compute(case.but(hvp=form), folder / form)
        check_clipping_is_as_named(case, computed.trajectory.clip_factors)
        assert relative_error(computed.trajectory.trained(), trajectory(run)[-1]) < tolerances.JVP
        assert relative_error(computed.rows_NP, expected) < tolerances.JVP, form


@pytest.mark.parametrize("case", every_convention("logistic", "included"), ids=str)
def test_logistic_rows_are_the_derivative_of_training(case: Case, tmp_path: Path) -> None:
    check_against_jvp(case, tmp_path, ("r-operator",))


@pytest.mark.parametrize("case", some_conventions("logistic", "included"), ids=str)
def test_every_form_gives_the_derivative_of_training(case: Case, tmp_path: Path) -> None:
    check_against_jvp(case, tmp_path, FORMS)


@pytest.mark.parametrize("network", ["mlp-tanh", "mlp-silu", "mlp-relu"])
@pytest.mark.parametrize("case", some_conventions("", "included"), ids=str)
def test_mlp_rows_are_the_derivative_of_training(case: Case, network: str, tmp_path: Path) -> None:
    check_against_jvp(case.but(network=network), tmp_path, ("r-operator",))


CNNS = [
    Case("cnn-tanh", "remaining", "included", "step", "active", 0.6, True, "user", epochs=2),
    Case("cnn-silu", "batch", "included", "sample", "active", 0.6, False, "sample", epochs=2),
    Case("cnn-relu", "remaining", "included", "step", "none", 0.0, False, "sample", epochs=2),
]


@pytest.mark.parametrize("case", CNNS, ids=str)
def test_cnn_rows_are_the_derivative_of_training(case: Case, tmp_path: Path) -> None:
    check_against_jvp(case, tmp_path, FORMS)


SMOOTHED = [
    Case("mlp-tanh", own_rows="included", label_smoothing=0.2),
    Case("logistic", "batch", "included", clip="active", unit="user", label_smoothing=0.1),
]


@pytest.mark.parametrize("case", SMOOTHED, ids=str)
def test_rows_of_smoothed_labels_are_the_derivative_of_training(case: Case, tmp_path: Path) -> None:
    check_against_jvp(case, tmp_path, FORMS)


@pytest.mark.torture
@pytest.mark.parametrize("network", ["mlp-tanh", "mlp-relu", "cnn-tanh", "cnn-silu", "cnn-relu"])
@pytest.mark.parametrize("case", every_convention("", "included"), ids=str)
def test_every_network_in_every_convention_and_form(
    case: Case, network: str, tmp_path: Path
) -> None:
    check_against_jvp(case.but(network=network), tmp_path, FORMS)


def check_against_retraining(case: Case, folder: Path, tolerance: float) -> None:
    run = run_of(case)
    computed = compute(case, folder)
    trained = trajectory(run)[-1]
    for row, owned_n in zip(computed.rows_NP, case.owned_Nn, strict=True):
        expected = retrained_without(run, owned_n, case.convention) - trained
        assert relative_error(row, expected) < tolerance


@pytest.mark.parametrize("case", every_convention("ridge", "left-out"), ids=str)
def test_leave_one_out_rows_of_ridge_regression_are_retraining(case: Case, tmp_path: Path) -> None:
    check_against_retraining(case, tmp_path, tolerances.RIDGE)


@pytest.mark.parametrize("form", ["reverse", "forward-over-reverse"])
@pytest.mark.parametrize("case", some_conventions("ridge", "left-out"), ids=str)
def test_ridge_rows_are_retraining_in_every_form(case: Case, form: str, tmp_path: Path) -> None:
    check_against_retraining(case.but(hvp=form), tmp_path, tolerances.RIDGE)


@pytest.mark.parametrize("case", some_conventions("ridge", "left-out"), ids=str)
def test_a_minibatch_left_empty_contributes_its_l2_term_alone(case: Case, tmp_path: Path) -> None:
    # The last minibatch of each pass over 9 samples holds one sample: its unit leaves it empty.
    case = case.but(num_samples=9)
    sizes = [len(set(case.owners_n[ids].tolist())) for ids in run_of(case).batches]
    assert 1 in sizes
    check_against_retraining(case, tmp_path, tolerances.RIDGE)


def test_full_batch_rows_of_ridge_regression_are_not_retraining(tmp_path: Path) -> None:
    # Guards the oracle itself: if this passed at 1e-10, the test above would prove nothing.
    case = Case("ridge", own_rows="included")
    with pytest.raises(AssertionError):
        check_against_retraining(case, tmp_path, 1e-3)


@pytest.mark.parametrize("clip", ["none", "active"])
@pytest.mark.parametrize("network", ["logistic", "mlp-tanh", "cnn-silu"])
def test_rows_are_the_product_of_dense_matrices(network: str, clip: str, tmp_path: Path) -> None:
    case = Case(network, "batch", "included", clip=clip)
    run = run_of(case)
    computed = compute(case, tmp_path)
    for unit in (0, 5):
        expected = dense_product(run, case.owned_Nn[unit])
        assert relative_error(computed.rows_NP[unit], expected) < tolerances.DENSE


def test_an_expected_fraction_scales_the_hessians_of_the_data_alone(tmp_path: Path) -> None:
    case = Case("mlp-tanh", "batch", "included", clip="active", expected_fraction=0.3)
    expected = dense_product(run_of(case), case.owned_Nn[2], share=0.7)
    found = compute(case, tmp_path).rows_NP[2]
    assert relative_error(found, expected) < tolerances.DENSE


@pytest.mark.parametrize("denominator", ["remaining", "batch"])
@pytest.mark.parametrize("network", ["logistic", "mlp-tanh", "cnn-silu"])
def test_the_error_of_a_weighted_row_is_of_second_order(
    network: str, denominator: str, tmp_path: Path
) -> None:
    case = Case(network, denominator, "included", unit="user")
    run = run_of(case)
    computed = compute(case, tmp_path)
    trained = trajectory(run)[-1]

    def error(unit: int, omega: float) -> float:
        weights_n = 1 - omega * case.owned_Nn[unit].double()
        weighted = weighted_training(run, weights_n, case.convention)
        return float(torch.linalg.vector_norm(weighted - trained - omega * computed.rows_NP[unit]))

    least, most = tolerances.HALVING
    for unit in (0, 1):
        assert least < error(unit, 0.02) / error(unit, 0.01) < most
