"""A quantized gradient as one object: codes, and the grid they stand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import Call, call_of
from fqt_deploy.core.graph import Emitter, behind_views

fqt = torch.ops.fqt


@dataclass(frozen=True)
class QuantizedValue:
    """``scale * codes + zero``, with one scale and zero for each index of an axis.

    Attributes:
        codes: the quantizer, [N, P, C] uint8.
        scale: [G] float32.
        zero: [G] float32.
        axis: 0 where the groups are samples, 2 where they are channels.
    """

    codes: fx.Node
    scale: fx.Node
    zero: fx.Node
    axis: int

    @classmethod
    def of(cls, operand: Any) -> QuantizedValue | None:
        """The quantized value that ``operand`` is a view of, or None."""
        node = behind_views(operand)
        if node.target is not fqt.dequantize.default:
            return None
        call = call_of(node)
        return cls(call.codes, call.scale, call.zero, call.axis)

    @property
    def quantizer(self) -> Call:
        """The call that makes the codes."""
        return call_of(self.codes)

    def dequantized(self, emit: Emitter) -> fx.Node:
        """Insert the value as floats, [N, P, C] float32."""
        return emit(fqt.dequantize.default, self.codes, self.scale, self.zero, self.axis)
