"""Data attribution by unrolled differentiation: one influence estimate (approximator) for each unit."""
