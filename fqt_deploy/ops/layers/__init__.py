"""Ops of normalization, pooling and dropout layers."""
