"""The R-operator: Hessian-vector products of K tangents that share one primal pass."""

from pipeline.hessian.roperator.network import RLinearization, operator_for
from pipeline.hessian.roperator.tape import Operator, Pairs

__all__ = ["Operator", "Pairs", "RLinearization", "operator_for"]
