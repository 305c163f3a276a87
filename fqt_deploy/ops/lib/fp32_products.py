"""Which ops are products of floats."""

from __future__ import annotations

FP32_PRODUCTS = frozenset(
    {
        "conv2d", "conv2d_input_grad", "conv2d_weight_grad",
        "linear", "linear_input_grad", "linear_weight_grad", "batch_matmul",
    }
)  # fmt: skip
"""Names of the ops that contract two fp32 tensors as one matrix product: without groups, without dilation."""
