"""Element-wise trigonometric functions."""

from __future__ import annotations

import torch

from fqt_deploy.ops.aten.aten_op import aten
from fqt_deploy.ops.aten.pointwise import pointwise
from fqt_deploy.ops.aten.samples import MIXED, call
from fqt_deploy.ops.lib.late_modules import tirx
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Nan, zero_with_any

_ANGLES = [call(MIXED), call(torch.linspace(-50.0, 50.0, 41))]
"""Some of them many turns away from zero, as positions of rotary embeddings are."""

pointwise(
    aten.sin.default, expression=lambda x: tirx.sin(x), onnx="Sin", flops=20, samples=_ANGLES,
    zero=zero_with_any("self"), sign=ANY_SIGN, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.cos.default, expression=lambda x: tirx.cos(x), onnx="Cos", flops=20, samples=_ANGLES, zero=NEVER_ZERO,
    sign=ANY_SIGN, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.tan.default, expression=lambda x: tirx.tan(x), onnx="Tan", flops=30, samples=[call(MIXED)],
    zero=zero_with_any("self"), sign=ANY_SIGN, nan=Nan.KEPT,
)  # fmt: skip
pointwise(
    aten.atan.default, expression=lambda x: tirx.atan(x), onnx="Atan", flops=20, samples=_ANGLES,
    zero=zero_with_any("self"), sign=ANY_SIGN, nan=Nan.KEPT,
)  # fmt: skip
