"""Losses and their derivatives, clipping, parameters as one vector."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, hessian

from pipeline.models.losses import CrossEntropy, Loss, SquaredError
from pipeline.models.parameters import ParameterLayout, flat_parameters
from pipeline.training.step import clip_factor
from tests import tolerances
from tests.oracles import cross_entropy, relative_error, squared_error

GENERATOR = torch.Generator().manual_seed(4)
OUTPUTS = torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64) * 3
TANGENTS = torch.randn(5, 2, 3, generator=GENERATOR, dtype=torch.float64)
LOSSES: list[tuple[Loss, Callable[[Tensor, Tensor], Tensor], Tensor]] = [
    (CrossEntropy(), cross_entropy, torch.tensor([0, 2, 1, 1, 0])),
    (SquaredError(), squared_error, torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64)),
]


@pytest.mark.parametrize("loss, oracle, targets", LOSSES)
def test_losses_have_their_derivatives_in_closed_form(
    loss: Loss, oracle: Callable[[Tensor, Tensor], Tensor], targets: Tensor
) -> None:
    assert relative_error(loss.value(OUTPUTS, targets), oracle(OUTPUTS, targets)) < tolerances.HVP
    slopes = grad(lambda z: oracle(z, targets).sum())(OUTPUTS)
    assert relative_error(loss.gradient(OUTPUTS, targets), slopes) < tolerances.HVP
    curvature = hessian(lambda z: oracle(z, targets).sum())(OUTPUTS)
    found = loss.hessian_product(OUTPUTS, targets, TANGENTS)
    for b in range(5):
        expected = TANGENTS[b] @ curvature[b, :, b, :]
        assert relative_error(found[b], expected) < tolerances.HVP


def test_cross_entropy_stays_finite_for_certain_outputs() -> None:
    outputs = torch.tensor([[1e4, -1e4, 0.0]])
    loss, targets = CrossEntropy(), torch.tensor([1])
    assert float(loss.value(outputs, targets)[0]) == 2e4
    assert torch.isfinite(loss.gradient(outputs, targets)).all()
    assert torch.isfinite(loss.hessian_product(outputs, targets, torch.ones(1, 2, 3))).all()


@given(norm=st.floats(1e-3, 1e3), bound=st.floats(1e-3, 1e3))
def test_clipping_shortens_to_the_bound(norm: float, bound: float) -> None:
    gradient = torch.tensor([0.6, -0.8], dtype=torch.float64) * norm
    factor = clip_factor(gradient, bound)
    assert factor <= 1.0
    assert float((factor * gradient).norm()) == pytest.approx(min(norm, bound), rel=1e-12)


def test_without_a_bound_or_a_gradient_nothing_is_clipped() -> None:
    assert clip_factor(torch.tensor([3.0]), None) == 1.0
    assert clip_factor(torch.zeros(3), 0.5) == 1.0


def test_the_flat_vector_lists_parameters_in_their_order_row_major() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    module[0].bias.requires_grad_(False)
    layout = ParameterLayout.of(module)
    assert layout.names == ("0.weight", "2.weight", "2.bias")
    assert layout.num_parameters == 10
    flat_P = flat_parameters(module)
    assert flat_P[1] == module[0].weight[0, 1]
    assert flat_P[6] == module[2].weight[0, 0]
    named = layout.unflatten(flat_P)
    assert torch.equal(named["0.weight"], module[0].weight)
    assert torch.equal(layout.flatten(named), flat_P)
    vectors = torch.arange(20.0).reshape(2, 10)
    assert torch.equal(layout.unflatten(vectors)["2.bias"], torch.tensor([[9.0], [19.0]]))
    flat_P.zero_()
    assert module[0].weight.any(), "the flat vector is a copy"
