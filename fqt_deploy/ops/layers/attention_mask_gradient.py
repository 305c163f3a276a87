"""``fqt::attention_mask_gradient``: the gradient of what is added to the scores of attention, as of a learned bias."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.core.call import Call
from fqt_deploy.ops.layers.attention_backward import AttentionBackward
from fqt_deploy.ops.lib.attention_scores import dropout_attributes, samples_lead
from fqt_deploy.ops.lib.attention_slopes import check_saved, onnx_slopes, slope_stages, slopes
from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, OptionalOperand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, Aligned, AxisOf, Layout, Nan, zero_with_any


def _samples_lead_or_are_summed(call: Call, axis_of: AxisOf, batch: int) -> Aligned | None:
    """Samples lie in front of all tensors; a mask that is the same for all has a gradient summed over them."""
    aligned = samples_lead(call, axis_of, batch)
    if aligned is None:
        return None
    return Aligned(aligned.result if call.mask in aligned.operands else None, aligned.operands)


@define(
    kind=Kind.PRODUCT,
    batch=_samples_lead_or_are_summed,
    zero=zero_with_any("gradient"),
    sign=ANY_SIGN,
    nan=Nan.UNKNOWN,
    layout=Layout.OPAQUE,
)
class AttentionMaskGradient(FqtOp):
    """The gradient of ``attention`` with respect to its mask: the slope of the scores, summed where the mask repeats.

    Attributes:
        gradient, q, k, v, draws, logsumexp, scale, causal, dropout: as those of ``attention_backward``.
        mask: [B or 1, H or 1, N or 1, M] float32.

    Returns:
        The shape of ``mask``, float32.
    """

    gradient: Operand
    q: Operand
    k: Operand
    v: Operand
    mask: Operand
    draws: OptionalOperand
    logsumexp: Operand
    scale: float
    causal: bool
    dropout: float

    tolerance = 1e-4

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        _, slope = slopes(self)
        repeated = [axis for axis, extent in enumerate(self.mask.shape[:3]) if extent == 1]
        return slope.sum(repeated, keepdim=True) if repeated else slope

    def fake(self) -> Tensor:
        """Shape rule: the shape of ``mask``."""
        check_saved(self)
        return self.mask.new_empty(self.mask.shape)

    def compute(self) -> te.Tensor:
        """The slope, summed over the axes along which the mask repeats."""
        _, slope = slope_stages(self, "attention_mask_gradient")
        own = [int(d) for d in self.mask.shape]
        axes = {
            a: te.reduce_axis((0, int(extent)), f"axis{a}")
            for a, extent in enumerate(slope.shape[:3])
            if own[a] == 1
        }  # fmt: skip

        def total(*i: Any) -> Any:
            where = [axes.get(a, at) for a, at in enumerate(i)]
            return te.sum(slope(*where), axis=list(axes.values())) if axes else slope(*where)

        return te.compute(own, total, name="attention_mask_gradient")

    def cost(self) -> Cost:
        """The cost: two products of N times M numbers, of which a causal mask leaves half."""
        flops = 2 * self.q.shape[0] * self.q.shape[1] * self.q.shape[2] * self.k.shape[1]
        flops *= self.q.shape[3] + self.v.shape[3]
        moved = tensor_bytes(self.gradient, self.q, self.k, self.v, self.logsumexp, self.mask, self.mask)
        return Cost(flops=flops // 2 if self.causal else flops, bytes_moved=moved)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples of ``attention_backward`` that have a mask."""
        for sample in AttentionBackward.sample_inputs():
            if sample[4] is not None:
                yield sample

    def onnx_body(self, op: Body) -> str:
        """Writes two matrix products and a sum over the axes along which the mask repeats."""
        _, slope = onnx_slopes(op, self)
        one = op.constant([1], "int64")
        for axis in range(3):
            # A sum over no axes is the slope itself: the axis is one of those to sum over where the mask has one row.
            repeats = op("Equal", op.extent(self.mask, axis), one)
            axes = op("Compress", op.constant([axis], "int64"), repeats, axis=0)
            slope = op("ReduceSum", slope, axes, keepdims=1, noop_with_empty_axes=1)
        return slope

    def onnx_attributes(self) -> Attributes:
        """Returns the scale, whether the attention is causal, and what dropout does, as ONNX attributes."""
        return {"scale": self.scale, "causal": int(self.causal), **dropout_attributes(self.dropout)}

    def onnx_neutral(self) -> dict[str, Tensor]:
        """Numbers that nothing is drawn from."""
        return {"draws": torch.zeros(1, 2)}
