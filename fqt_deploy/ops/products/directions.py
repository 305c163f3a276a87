"""Which products of floats a layer makes in which direction, before any of them runs on bits."""

from __future__ import annotations

from fqt_deploy.ops.products.conv2d import Conv2d
from fqt_deploy.ops.products.conv2d_input_grad import Conv2dInputGrad
from fqt_deploy.ops.products.conv2d_weight_grad import Conv2dWeightGrad
from fqt_deploy.ops.products.grouped_conv import GroupedConv
from fqt_deploy.ops.products.grouped_conv_input_grad import GroupedConvInputGrad
from fqt_deploy.ops.products.linear import Linear
from fqt_deploy.ops.products.linear_input_grad import LinearInputGrad
from fqt_deploy.ops.products.linear_weight_grad import LinearWeightGrad

FORWARD = (Conv2d.target, Linear.target)
INPUT_GRAD = (Conv2dInputGrad.target, LinearInputGrad.target)
WEIGHT_GRAD = (Conv2dWeightGrad.target, LinearWeightGrad.target)
DIRECTIONS = {"forward": FORWARD, "input_grad": INPUT_GRAD, "weight_grad": WEIGHT_GRAD}
"""The products of layers that may run on bits, by direction."""

GROUPED = (GroupedConv.target, GroupedConvInputGrad.target)
"""Forward products of layers that stay in fp32: convolutions with groups or dilation, of one axis or three, and (the
second) transposed ones."""
