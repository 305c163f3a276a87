"""Transformers in plain PyTorch that are benchmarked, as model files: too large for the tests of the examples."""
