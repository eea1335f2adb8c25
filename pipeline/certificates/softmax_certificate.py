"""When the proved bound may be called certified: its conditions, and the declaration they allow."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.certificates.sensitivity import Condition, Declaration, UnitsBound
from pipeline.certificates.softmax_problem import SoftmaxProblem

# What the bound on rounding is derived for; TF32 and bfloat16 products round much earlier.
_FULL_PRECISION = ("float32", "float64")


@dataclass(frozen=True)
class TrainingFacts:
    """What the conditions are checked against.

    Attributes:
        denominator: `retraining.denominator`.
        own_rows: `recursion.own_rows`.
        l2_share: `retraining.l2_share`.
        momentum: `training.momentum`.
        clip_norm: `training.clip_norm`, or None.
        starts_at_zero: Whether w_0 = 0.
        largest_learning_rate: Over all steps.
        largest_feature_norm: As measured on the training set, the bias feature included.
        row_norm_cap: `storage.row_norm_cap`, or None.
        engine: `recursion.engine`.
        expected_fraction: `recursion.expected_fraction`.
        dtype: `recursion.dtype`.
    """

    denominator: str
    own_rows: str
    l2_share: str
    momentum: float
    clip_norm: float | None
    starts_at_zero: bool
    largest_learning_rate: float
    largest_feature_norm: float
    row_norm_cap: float | None
    engine: str = "hvp"
    expected_fraction: float = 0.0
    dtype: str = "float32"


def softmax_conditions(problem: SoftmaxProblem, training: TrainingFacts) -> tuple[Condition, ...]:
    """Return the conditions of the proof, checked; one that failed withdraws `certified`."""
    eta = training.largest_learning_rate
    curvature = eta * (problem.smoothness + 2 * problem.l2)
    enough = 2 * problem.gradient
    no_clipping = training.clip_norm is None or (
        training.starts_at_zero and training.clip_norm >= enough
    )
    largest = training.largest_feature_norm
    cap, fraction = training.row_norm_cap, training.expected_fraction
    return (
        Condition("denominator is batch", training.denominator == "batch", training.denominator),
        Condition("own rows are left out", training.own_rows == "left-out", training.own_rows),
        Condition("l2_share is step", training.l2_share == "step", training.l2_share),
        Condition("no momentum", training.momentum == 0, str(training.momentum)),
        Condition("eta (L + 2 lam) <= 2", curvature <= 2, f"{curvature:.6g}"),
        Condition(
            f"no clipping, or w_0 = 0 and clip norm >= 2 G = {enough:.6g}",
            no_clipping,
            f"clip norm {training.clip_norm}, w_0 = 0: {training.starts_at_zero}",
        ),
        Condition(
            f"every feature norm <= R = {problem.feature_norm:.6g}",
            largest <= problem.feature_norm * (1 + 4 * problem.roundoff),
            f"{largest:.6g}",
        ),
        Condition("a row norm cap was declared", cap is not None, str(cap)),
        Condition("rows follow the linear recursion", training.engine == "hvp", training.engine),
        Condition("Hessians are not scaled", fraction == 0, f"expected fraction {fraction}"),
        Condition("full precision", training.dtype in _FULL_PRECISION, training.dtype),
    )


def certified_declaration(
    problem: SoftmaxProblem,
    training: TrainingFacts,
    bounds: Sequence[UnitsBound],
    row_error: float,
) -> Declaration:
    """Return the declaration of a proved bound, with its conditions and constants.

    Args:
        problem: The constants.
        training: What the conditions are checked against.
        bounds: From `softmax_bounds`.
        row_error: row_error_cap * row_norm_cap.
    """
    return Declaration(
        kind="certified",
        bounds=tuple(bounds),
        row_error=row_error,
        residual_source="proved for L2-regularised softmax regression, worst placement",
        row_error_source="row_error_cap * row_norm_cap for each unit, both declared",
        conditions=softmax_conditions(problem, training),
        evidence={
            "proof": "docs/certificate.md",
            "R": problem.feature_norm,
            "lam": problem.l2,
            "G": problem.gradient,
            "L": problem.smoothness,
            "M": problem.hessian_lipschitz,
        },
    )
