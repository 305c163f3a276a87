"""Calls of a lowered graph as ONNX nodes: standard ones, or one of domain ``ai.fqt`` whose function is noted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import FunctionProto
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.export.graph_writer import GraphWriter
from fqt_deploy.export.op_functions import op_call, op_function
from fqt_deploy.ops.aten.aten_op import AtenOp
from fqt_deploy.ops.lib.onnx_body import DOMAIN, OnnxValue, Reference
from fqt_deploy.ops.op import FqtOp, op_of

_NONE: Mapping[str, Reference] = {}


@dataclass
class CallWriter:
    """Writes calls into one graph, or into the body of one function.

    Attributes:
        writer: collects the nodes.
        functions: those that calls need, by name.
        values: what each fx node is in ONNX; operands of a call are there before it is written.
    """

    writer: GraphWriter
    functions: dict[str, FunctionProto]
    values: dict[fx.Node, OnnxValue] = field(default_factory=dict)

    def write(self, node: fx.Node, names: Sequence[str], references: Mapping[str, Reference] = _NONE) -> None:
        """Write one call and note what its results are.

        Args:
            node: the call.
            names: names of its results.
            references: attributes that the function around the call has, by name.

        Raises:
            FqtError: FQT203 for an op that ONNX Runtime could not compute exactly.
        """
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)  # type: ignore[arg-type]
        op = op_of(node)
        assert op is not None, node.target
        call = op.bound(args, kwargs)
        if isinstance(call, AtenOp):
            value = call.onnx(self.writer, node.meta["val"])
            self.values[node] = self.writer.name_result(value, names[0], node.meta["val"])
        elif isinstance(call, FqtOp):
            self._write_function(call, node, names, references)

    def _write_function(
        self, call: FqtOp, node: fx.Node, names: Sequence[str], references: Mapping[str, Reference]
    ) -> None:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda a: a.meta["val"])
        op = type(call)
        try:
            written = op_call(call, op.bound(args, kwargs))
        except ValueError as error:
            raise FqtError(f"{op.name} cannot be exported to ONNX: {error}", code="FQT203", node=node) from None
        self.functions.setdefault(op.name, op_function(op, tuple(written.attributes)))
        inputs = [self._named(operand) for operand in written.operands]
        self.writer.node(op.name, inputs, names, {**written.attributes, **references}, DOMAIN)
        results: Any = node.meta["val"]
        if not isinstance(results, (tuple, list)):
            self.values[node] = self.writer.typed(names[0], results)
            return
        operands = [self.writer.typed(name, result) for name, result in zip(names, results, strict=True)]
        for user in node.users:
            self.values[user] = operands[call_of(user).index]

    def _named(self, operand: Any) -> str:
        """An operand's name; the neutral value of an absent one becomes a constant."""
        if isinstance(operand, OnnxValue):
            return operand.name
        array = operand.numpy()
        return self.writer.constant(array, array.dtype.name)
