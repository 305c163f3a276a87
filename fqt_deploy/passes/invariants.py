"""Facts about a graph that passes must keep; each raises ``InvariantError`` naming the offending node."""

from __future__ import annotations

import operator

import torch
from torch import fx

from fqt_deploy.core.diagnostics import InvariantError
from fqt_deploy.core.graph import Stage, TrainingGraph
from fqt_deploy.passes.annotate_layers import FORWARD, products_of
from fqt_deploy.passes.check_operators import is_supported

aten = torch.ops.aten
fqt = torch.ops.fqt

_NORMALIZED_AWAY = (
    aten.convolution.default, aten.convolution_backward.default, aten.mm.default, aten.addmm.default,
    aten.bmm.default, aten._native_batch_norm_legit_functional.default, aten.native_batch_norm_backward.default,
    aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices_backward.default,
)  # fmt: skip
_QUANTIZER_OPS = (
    fqt.dequantize.default, fqt.quantize_samples.default, fqt.quantize_channels.default, fqt.sign.default,
)  # fmt: skip

ILLEGAL: dict[Stage, tuple[object, ...]] = {
    Stage.CAPTURED: (),
    Stage.NORMALIZED: _NORMALIZED_AWAY,
    Stage.QUANTIZED: _NORMALIZED_AWAY,
    Stage.LOWERED: _NORMALIZED_AWAY,
}
"""Ops that must not occur any more once a graph is in a stage."""


def inputs_and_outputs_are_named(graph: TrainingGraph) -> None:
    """Placeholders and outputs correspond one to one to the graph's names."""
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    outputs = graph.output_node().args[0]
    if len(placeholders) != len(graph.inputs):
        raise InvariantError(f"{len(placeholders)} placeholders for {len(graph.inputs)} inputs")
    if len(outputs) != len(graph.outputs):  # type: ignore[arg-type]
        raise InvariantError(f"{len(outputs)} output values for {len(graph.outputs)} outputs")  # type: ignore[arg-type]


def every_value_has_a_shape(graph: TrainingGraph) -> None:
    """Every node but the output knows what it computes."""
    for node in graph.graph.nodes:
        if node.op != "output" and "val" not in node.meta:
            raise InvariantError("a node has no propagated value", node=node)


def ops_are_legal_in_stage(graph: TrainingGraph) -> None:
    """No op occurs that the graph's stage has left behind."""
    for node in graph.calls(*ILLEGAL[graph.stage]):
        raise InvariantError(f"{node.target} is illegal in stage {graph.stage.name}", node=node)


def updated_state_keeps_its_type(graph: TrainingGraph) -> None:
    """An output that is the next value of a state tensor has that tensor's shape and dtype."""
    inputs = dict(zip(graph.inputs, (n for n in graph.graph.nodes if n.op == "placeholder"), strict=True))
    for name, node in zip(graph.outputs, graph.output_node().args[0], strict=True):  # type: ignore[arg-type]
        if name in inputs and isinstance(node, fx.Node):
            old, new = inputs[name].meta["val"], node.meta["val"]
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                raise InvariantError(
                    f"{name} changes from {old.dtype} {list(old.shape)} to {new.dtype} {list(new.shape)}"
                )


def no_float_product_left_in_forward(graph: TrainingGraph) -> None:
    """Every binarized layer's forward product runs on bits."""
    for node in products_of(graph, "forward"):
        if node.target in FORWARD:
            raise InvariantError("a binarized layer still has a floating point product", node=node)


def no_quantizer_left(graph: TrainingGraph) -> None:
    """Quantizers are part of packing; nothing computes on unpacked codes."""
    for node in graph.calls(*_QUANTIZER_OPS):
        quantized = node.target is not fqt.sign.default or any(u.target in FORWARD for u in node.users)
        if quantized:
            raise InvariantError("a quantizer was left unlowered", node=node)


def every_op_has_a_kernel(graph: TrainingGraph) -> None:
    """Code generation knows every op."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem and not is_supported(node):
            raise InvariantError(f"no kernel for {node.target}", node=node)


ALWAYS = (
    inputs_and_outputs_are_named,
    every_value_has_a_shape,
    ops_are_legal_in_stage,
    updated_state_keeps_its_type,
)
"""What holds before and after every pass."""
