"""The sections of `benchmarks/gpu.py`. Each takes a `Bench` and sends rows as it finds them."""
