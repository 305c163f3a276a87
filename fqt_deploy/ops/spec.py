"""What an op is: one ``OpSpec`` per file in this folder, and nothing about it anywhere else."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._library.custom_ops import CustomOpDef

from fqt_deploy.ops.lib.onnx_body import OnnxFunction

OPS: dict[str, OpSpec] = {}
"""Every registered op by name, in registration order."""


class OpKind(enum.Enum):
    """How code generation may group an op with its neighbours."""

    ELEMENTWISE = "elementwise"
    """Each output element is a cheap expression of a few input elements: may be inlined into its consumers."""
    ROOT = "root"
    """A reduction or packing loop nest: element-wise producers may be inlined into it."""
    PRODUCT = "product"
    """A contraction or hand-scheduled kernel: reads only materialized tensors."""
    COMPOSITE = "composite"
    """Has no kernel of its own: ``decompose`` spells it in other ops before code generation."""
    UPDATE = "update"
    """An optimizer update: writes some of its operands in place."""


@dataclass(frozen=True)
class Cost:
    """Work of one call, for the roofline column of the profiler.

    Attributes:
        flops: floating point operations.
        bit_ops: single-bit multiply-accumulates times two.
        bytes_moved: bytes read plus bytes written, each operand once.
    """

    flops: int = 0
    bit_ops: int = 0
    bytes_moved: int = 0


@dataclass(frozen=True)
class OpSpec:
    """Everything the compiler knows about one op.

    Attributes:
        name: the op is ``torch.ops.fqt.<name>``.
        kind: how it may be grouped with its neighbours.
        reference: plain PyTorch; its annotations are the schema and its result is the oracle of every test.
        fake: shape and dtype rule; raises ``ValueError`` on illegal shapes.
        compute: TVM TE loop nest: takes ``reference``'s arguments with every tensor replaced by a ``te.Tensor``,
            returns one ``te.Tensor`` or a tuple of them. Target-independent: targets only schedule it.
        cost: work of one call, from the same arguments as ``fake``.
        sample_inputs: small and edge-case argument tuples, fixed seed.
        integer_exact: compiled outputs must equal the reference bit for bit; otherwise ``tolerance`` applies.
        tolerance: largest relative error allowed for floating point outputs.
        decompose: for ``COMPOSITE`` ops, ``(emit, *nodes)`` -> the result's node, or a tuple of one for each output;
            ``compute`` is None.
        onnx: the op in ONNX; None for ``COMPOSITE`` ops, which are never exported.
    """

    name: str
    kind: OpKind
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    compute: Callable[..., Any] | None
    cost: Callable[..., Cost]
    sample_inputs: Callable[[], Iterator[tuple[Any, ...]]]
    integer_exact: bool = True
    tolerance: float = 1e-5
    decompose: Callable[..., Any] | None = None
    onnx: OnnxFunction | None = None

    def register(self) -> CustomOpDef:
        """Define ``fqt::<name>`` in PyTorch and add it to ``OPS``; a duplicate name is a ``ValueError``."""
        if self.name in OPS:
            raise ValueError(f"op {self.name!r} is already registered")
        op = torch.library.custom_op(f"fqt::{self.name}", self.reference, mutates_args=())
        op.register_fake(self.fake)
        OPS[self.name] = self
        return op


def tensor_bytes(*tensors: torch.Tensor) -> int:
    """Total size of ``tensors`` in bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)
