"""Ops that quantize values and gradients, and what they need: statistics, grids, scales."""
