"""``fqt::dropout_mask``: which elements dropout keeps, from the counter-based generator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.counter_random import element_hash, element_hash_compute
from fqt_deploy.ops.lib.onnx_bits import element_hash as element_hash_onnx
from fqt_deploy.ops.lib.onnx_bits import shift_right
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec


def _threshold(probability: float) -> int:
    """Elements whose 24 random bits lie below this are dropped."""
    return round(probability * 2**24)


def reference(key: Tensor, size: list[int], probability: float) -> Tensor:
    """True with probability ``1 - probability``, independently for every element.

    Args:
        key: [2] int32, one random stream.
        size: shape of the mask.
        probability: of being dropped.

    Returns:
        ``size`` bool.
    """
    count = 1
    for extent in size:
        count *= extent
    index = torch.arange(count, dtype=torch.int64).view(size)
    return (element_hash(index, key) >> 8) >= _threshold(probability)


def fake(key: Tensor, size: list[int], probability: float) -> Tensor:
    """Shape rule: ``size``."""
    return key.new_empty(size, dtype=torch.bool)


def compute(key: te.Tensor, size: list[int], probability: float) -> te.Tensor:
    """One hash an element."""

    def keep(*index: Any) -> Any:
        flat: Any = tirx.const(0, "uint32")
        for i, extent in zip(index, size, strict=True):
            flat = flat * tirx.const(extent, "uint32") + i.astype("uint32")
        bits = element_hash_compute(flat, key) >> tirx.const(8, "uint32")
        return bits >= tirx.const(_threshold(probability), "uint32")

    return te.compute(size, keep, name="dropout_mask")


def cost(key: Tensor, size: list[int], probability: float) -> Cost:
    """Ten integer operations an element."""
    count = 1
    for extent in size:
        count *= extent
    return Cost(flops=10 * count, bytes_moved=count)


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Both extremes and a half."""
    key = torch.tensor([12345, -6789], dtype=torch.int32)
    for probability in (0.0, 0.5, 0.9):
        yield key, [7, 5, 3], probability


def onnx_attributes(key: Tensor, size: list[int], probability: float) -> Attributes:
    """The threshold of 24 random bits."""
    return {"size": size, "threshold": _threshold(probability)}


def onnx_body(op: Body, key: str) -> str:
    """One hash an element."""
    size = op.integers("size")
    count = op("ReduceProd", size, op.constant([0], "int64"))
    bits = shift_right(op, element_hash_onnx(op, op.cast(op.range(count), "uint32"), key), 8)
    kept = op("GreaterOrEqual", bits, op.cast(op.integer("threshold"), "uint32"))
    return op("Reshape", kept, size)


dropout_mask = OpSpec(
    "dropout_mask",
    OpKind.ELEMENTWISE,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(onnx_body, onnx_attributes),
).register()
