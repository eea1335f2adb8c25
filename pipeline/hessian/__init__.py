"""Hessian-vector products: one interface, its forms, the R-operator, and how many run together."""
