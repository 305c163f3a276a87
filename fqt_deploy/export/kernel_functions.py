"""Calls of kernels in ONNX: a node of domain ``ai.fqt.kernels``, and the model-local function behind it.

The function is the kernel in standard ops and calls of domain ``ai.fqt``, so that a runtime without the compiled kernel
computes the same. Equal kernels share one. It holds no constants: they are inputs behind the operands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from onnx import AttributeProto, FunctionProto, helper, numpy_helper
from torch import fx

from fqt_deploy.core.buffer import buffers_of
from fqt_deploy.core.call import call_of
from fqt_deploy.export.call_writer import CallWriter
from fqt_deploy.export.graph_writer import GraphWriter, operand_of
from fqt_deploy.export.kernel_calls import KernelCall, KernelCalls
from fqt_deploy.ops.lib.onnx_body import CHECK, DOMAIN, KERNELS, OPSET, OnnxValue, Reference, make_node
from fqt_deploy.ops.op import op_of


@dataclass(frozen=True)
class _Function:
    """The function of a kernel.

    Attributes:
        proto: the function.
        constants: what its inputs behind the operands are.
    """

    proto: FunctionProto
    constants: tuple[NDArray[Any], ...]


@dataclass
class KernelWriter:
    """Writes calls of kernels into one graph.

    Attributes:
        writer: collects the nodes.
        op_functions: functions of ops that those of kernels call, by name.
    """

    writer: GraphWriter
    op_functions: dict[str, FunctionProto] = field(default_factory=dict)
    _functions: dict[str, _Function] = field(default_factory=dict)
    _checks: list[FunctionProto] = field(default_factory=list)
    _renamed: dict[str, str] = field(default_factory=dict)

    def check(self, kernels: KernelCalls) -> None:
        """Write the node that lets a plug-in refuse the file, where it has not all of ``kernels``.

        A kernel that it has not would be computed by its function, hundreds of times slower and without a word. The
        node passes on the smallest input that a kernel reads, so that no runtime drops it.
        """
        read = {value for call in kernels.calls for value in call.operands}
        inputs = [
            value for buffer, value in kernels.values.items() if buffer.root.op == "placeholder" and value in read
        ]
        if not inputs:  # what is all views, or constant, has nothing to replace
            return
        value = min(inputs, key=lambda value: math.prod(value.shape))
        passed = OnnxValue(f"{CHECK}/{value.name}", value.dtype, value.shape)
        self._renamed[value.name] = passed.name
        self.writer.begin_unnamed(CHECK)
        self.writer.node(CHECK, [value.name], [passed.name], {"kernels": kernels.digest}, KERNELS)
        self.writer.declare(passed)
        body = [make_node("Identity", ["value"], ["result"], "result", {})]
        opsets = [helper.make_opsetid("", OPSET)]
        self._checks.append(
            helper.make_function(
                KERNELS, CHECK, ["value"], ["result"], body, opsets, ["kernels"],
                doc_string="The value. A plug-in refuses a file whose kernels it was not made of.",
            )
        )  # fmt: skip

    def write(self, call: KernelCall) -> None:
        """Write one call.

        Raises:
            FqtError: FQT203 for an op that ONNX Runtime could not compute exactly.
        """
        function = self._functions.get(call.name)
        if function is None:
            function = self._functions[call.name] = self._function(call)
        self.writer.begin(call.group.root)
        constants = [self.writer.constant(array, array.dtype.name) for array in function.constants]
        inputs = [*(self._renamed.get(operand.name, operand.name) for operand in call.operands), *constants]
        numbers = {name: int(getattr(call_of(call.group.root), name)) for name in call.group.numbers}
        self.writer.node(call.name, inputs, [result.name for result in call.results], numbers, KERNELS)
        for result in call.results:
            self.writer.declare(result)

    def functions(self) -> list[FunctionProto]:
        """All functions that what was written needs."""
        return [*self.op_functions.values(), *self._checks, *(function.proto for function in self._functions.values())]

    def _function(self, call: KernelCall) -> _Function:
        group, writer = call.group, GraphWriter()
        body = CallWriter(writer, self.op_functions)
        inputs = [OnnxValue(f"operand_{i}", value.dtype, value.shape) for i, value in enumerate(call.operands)]
        for i, (leaf, position) in enumerate(zip(group.leaves, call.positions, strict=True)):
            writer.begin_unnamed(f"leaf_{i}")
            wanted = operand_of(f"leaf_{i}", leaf.meta["val"])
            body.values[leaf] = _in_shape(writer, inputs[position], wanted)
        for i, member in enumerate(group.members):
            label = f"{_op_name(member)}_{i}"
            writer.begin_unnamed(label)
            body.write(member, [label])
        outputs = [f"result_{i}" if len(call.results) > 1 else "result" for i in range(len(call.results))]
        computed = [operand_of(name, b.value) for name, b in zip(outputs, buffers_of(group.root), strict=True)]
        written = [
            value if value.shape == result.shape else OnnxValue(f"{value.name}_in_its_shape", value.dtype, value.shape)
            for value, result in zip(computed, call.results, strict=True)
        ]
        writer.begin_unnamed(_op_name(group.root))
        references = {name: Reference(name, AttributeProto.INT) for name in group.numbers}
        body.write(group.root, [value.name for value in written], references)
        for value, name, result in zip(written, outputs, call.results, strict=True):
            _in_shape(writer, value, OnnxValue(name, result.dtype, result.shape))
        proto = helper.make_function(
            KERNELS,
            call.name,
            [*(value.name for value in inputs), *writer.constants],
            outputs,
            writer.nodes,
            [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
            list(group.numbers),
            doc_string=" ".join(_op_name(node) for node in (*group.members, group.root)),
        )
        return _Function(proto, tuple(numpy_helper.to_array(tensor) for tensor in writer.constants.values()))


def _in_shape(writer: GraphWriter, value: OnnxValue, wanted: OnnxValue) -> OnnxValue:
    """The value ``value`` itself, or, where it has another shape, reshaped into ``wanted``."""
    if value.shape == wanted.shape:
        return value
    writer.node("Reshape", [value.name, writer.constant(wanted.shape, "int64")], [wanted.name], {})
    return wanted


def _op_name(node: fx.Node) -> str:
    op = op_of(node)
    assert op is not None, node.target
    return op.name
