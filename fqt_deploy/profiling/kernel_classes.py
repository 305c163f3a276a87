"""The classes of kernels by what they are for, and the direction of a layer that each serves."""

from __future__ import annotations

from collections.abc import Mapping

from fqt_deploy.core.manifest import KernelInfo

CLASSES: Mapping[str, tuple[str, ...]] = {
    "1-bit products": (
        "binary_conv2d", "bitplane_conv2d_input_grad", "bitplane_weight_grad", "level_conv2d", "level_weight_grad",
    ),
    "attention": ("attention", "attention_backward", "attention_mask_gradient"),
    "fp32 products": (
        "batch_matmul", "conv2d", "conv2d_input_grad", "conv2d_weight_grad",
        "grouped_conv", "grouped_conv_input_grad", "grouped_conv_weight_grad",
        "linear", "linear_input_grad", "linear_weight_grad",
    ),
    "packing": ("pack_levels", "pack_positions", "pack_signs", "pack_weight", "transpose_packed_weight"),
    "quantizing": (
        "position_statistics", "position_sums", "quantization_grid", "quantize_channels", "quantize_pack_channels",
        "quantize_pack_samples", "quantize_samples", "tap_sums",
    ),
    "selection": ("gather_rows", "scatter_rows", "select_sampled", "select_topk", "stream_key"),
    "normalization": ("channel_gradient_sums", "channel_moments"),
    "optimizer": (
        "adam_update", "dequantize_weight_grad", "sgd_momentum_update", "sgd_update", "weight_scale",
    ),
}  # fmt: skip
"""Ops that kernels are rooted in, by class; any other kernel is element-wise work or a plain reduction."""
REST = "element-wise and sums"
DIRECTIONS = ("forward", "input_grad", "weight_grad", "backward", "optimizer")
"""The parts of a layer's work: ``backward`` is what serves both gradients, or has no weight."""

_CLASS_OF = {op: name for name, ops in CLASSES.items() for op in ops}
_GRADIENTS = ("input_grad", "weight_grad")


def class_of(op: str) -> str:
    """The class of a kernel that is rooted in ``op``; all updates of the optimizers are one."""
    return "optimizer" if op.endswith("_update") else _CLASS_OF.get(op, REST)


def direction_of(kernel: KernelInfo) -> str:
    """One of ``DIRECTIONS``; fp32 products in backward are told apart by their ops."""
    if kernel.phase == "backward":
        return next((gradient for gradient in _GRADIENTS if kernel.op.endswith(gradient)), kernel.phase)
    return kernel.phase
