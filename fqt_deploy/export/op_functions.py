"""Calls of ``fqt`` ops in ONNX: a node of domain ``ai.fqt``, and the model-local function behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from onnx import FunctionProto
from torch import Tensor

from fqt_deploy.ops.lib.onnx_body import KERNEL, Attributes, call_attributes, function_proto, kernel_key, operands_of
from fqt_deploy.ops.spec import OPS, OpSpec


@dataclass(frozen=True)
class OpCall:
    """What a node of domain ``ai.fqt`` takes.

    Attributes:
        operands: one for each input of the function: the given argument, or the neutral value of an absent one.
        attributes: of the node; ``fqt_kernel`` is what a plug-in finds its kernel by, and the function ignores.
    """

    operands: tuple[Any, ...]
    attributes: Attributes


def op_call(spec: OpSpec, arguments: Sequence[Any], values: Sequence[Any]) -> OpCall:
    """The call of an op with ``arguments``.

    Args:
        spec: the op.
        arguments: of the call; a tensor may be anything that stands for one, absent ones are None.
        values: the same with real or fake tensors.

    Raises:
        ValueError: if ONNX Runtime could not compute the result exactly.
    """
    assert spec.onnx is not None, f"{spec.name} has no ONNX body"
    neutral: Mapping[str, Tensor] = spec.onnx.neutral(*values) if spec.onnx.neutral is not None else {}
    given = operands_of(spec.reference, arguments)
    operands = [neutral[name] if argument is None else argument for name, argument in given.items()]
    attributes = call_attributes(spec.reference, spec.onnx, values)
    return OpCall(tuple(operands), {**attributes, KERNEL: kernel_key(spec.name, values)})


@cache
def op_function(name: str, attributes: tuple[str, ...]) -> FunctionProto:
    """The model-local function of the op ``name`` whose calls give ``attributes``."""
    spec = OPS[name]
    assert spec.onnx is not None, f"{name} has no ONNX body"
    return function_proto(name, spec.reference, spec.onnx, attributes)
