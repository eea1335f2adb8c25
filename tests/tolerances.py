"""Every tolerance of the tests, with what it allows for. Relative, in float64 unless said."""

JVP = 1e-9
"""A row against forward-mode differentiation of the whole training."""
RIDGE = 1e-10
"""A left-out row against real retraining where the loss is quadratic."""
DENSE = 1e-10
"""A row against the product of dense matrices."""
LEAVE_ONE_OUT = 1e-12
"""The leave-one-out engine, and retraining, against plain retraining."""
HVP = 1e-11
"""A Hessian-vector product or gradient against the dense matrix."""
HVP_FLOAT32 = 2e-5
"""The forms among each other in float32."""
HALVING = (3.8, 4.2)
"""By what a second-order error falls when its argument halves."""
BY_HAND = 1e-10
"""Training and rows against a plain loop of torch, in float64."""
ADAM_RIDGE = 1e-8
"""A row of Adam against retraining: eps 1e-8 beside small roots magnifies rounding."""
ADAM_FLOAT32 = 1e-4
"""Parameters that Adam moved in float32, against retraining."""
