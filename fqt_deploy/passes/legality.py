"""What is legal in each stage: which ops occur, which types values have, and what may read what.

``LEGAL`` is the statement, one entry a stage. ``ops_are_legal_in_stage`` holds a graph to that of its stage, before the
first pass and after each one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.diagnostics import InvariantError
from fqt_deploy.core.graph import Stage, TrainingGraph
from fqt_deploy.core.text.literals import type_text
from fqt_deploy.ops.aten.aten_op import is_move
from fqt_deploy.ops.op import OPS, FqtOp
from fqt_deploy.ops.products.directions import FORWARD
from fqt_deploy.passes.check_operators import is_supported

Rule = Callable[[fx.Node], str | None]
"""Says what is wrong with a node, or nothing."""


@dataclass(frozen=True)
class Legality:
    """What is legal in one stage.

    Attributes:
        families: folders of ``fqt_deploy/ops/`` whose ops may occur.
        foreign: whether ops may occur that nothing lowers.
        dtypes: the types that calls may compute; None for any.
        rules: what else holds for every call.
    """

    families: frozenset[str]
    foreign: bool
    dtypes: frozenset[torch.dtype] | None
    rules: tuple[Rule, ...] = ()


def products_read_floats(node: fx.Node) -> str | None:
    """A product computes on float32: signs and dequantized codes are floats."""
    if family(node) != "products":
        return None
    read = next((a for a in node.all_input_nodes if _dtype(a) != torch.float32), None)
    return f"a product reads {_shown(read)}: it computes on f32" if read is not None else None


def products_read_floats_or_words(node: fx.Node) -> str | None:
    """A product computes on float32 alone, or on packed words and integers alone."""
    if family(node) != "products":
        return None
    if len({_dtype(a) for a in node.all_input_nodes}) > 1:
        return f"a product reads {' and '.join(map(_shown, node.all_input_nodes))}: it computes on one type"
    read = next((a for a in node.all_input_nodes if _dtype(a) not in (torch.float32, torch.int32)), None)
    return f"a product reads {_shown(read)}: it computes on f32 or on words, i32" if read is not None else None


def codes_are_moved_or_dequantized(node: fx.Node) -> str | None:
    """Codes of a quantizer are read by ops of quantization and by what moves them: they are no numbers yet."""
    if _moves(node) or family(node) == "quantization":
        return None
    read = next((a for a in node.all_input_nodes if _is_codes(_origin(a))), None)
    if read is None:
        return None
    return f"{node.target} reads {_shown(read)}, which are codes: only what dequantizes or moves them may"


def words_are_moved_packed_or_multiplied(node: fx.Node) -> str | None:
    """Packed words are read by products and packing, and by what moves them: as numbers they mean nothing."""
    if _moves(node) or family(node) in ("packing", "products"):
        return None
    read = next((a for a in node.all_input_nodes if family(_origin(a)) == "packing"), None)
    if read is None:
        return None
    return f"{node.target} reads {_shown(read)}, which are packed words: only products, packing and moves may"


def codes_are_packed(node: fx.Node) -> str | None:
    """Quantizers are part of packing: nothing computes codes by themselves."""
    return f"{node.target} computes codes that are not packed" if _is_codes(node) else None


def binarized_layers_run_on_bits(node: fx.Node) -> str | None:
    """The forward product of a binarized layer is none of floats."""
    record = node.meta.get("record")
    if node.target in FORWARD and record is not None and record.binarized:
        return f"layer {record.path} is binarized, but {node.target} computes it in floating point"
    return None


_COMPUTED = frozenset(
    (torch.float32, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
)  # fmt: skip

LEGAL: dict[Stage, Legality] = {
    # what PyTorch traced; our products and layers come in while it is normalized
    Stage.CAPTURED: Legality(frozenset(("products", "layers")), foreign=True, dtypes=None),
    # every op has a lowering; optimizers and random streams come in
    Stage.NORMALIZED: Legality(
        frozenset(("products", "layers", "selection", "optimizers")),
        foreign=False,
        dtypes=_COMPUTED,
        rules=(products_read_floats,),
    ),
    # signs, quantizers and selections, on floats
    Stage.QUANTIZED: Legality(
        frozenset(("products", "layers", "selection", "optimizers", "quantization")),
        foreign=False,
        dtypes=_COMPUTED,
        rules=(products_read_floats, codes_are_moved_or_dequantized),
    ),
    # packed bits in the place of signs and codes
    Stage.LOWERED: Legality(
        frozenset(("products", "layers", "selection", "optimizers", "quantization", "packing")),
        foreign=False,
        dtypes=_COMPUTED,
        rules=(
            products_read_floats_or_words,
            words_are_moved_packed_or_multiplied,
            codes_are_packed,
            binarized_layers_run_on_bits,
        ),
    ),
}
"""The statement of every stage."""


def ops_are_legal_in_stage(graph: TrainingGraph) -> None:
    """Every call is legal in the graph's stage."""
    legal = LEGAL[graph.stage]
    for node in graph.graph.nodes:
        wrong = _illegality(node, legal) if node.op == "call_function" else None
        if wrong is not None:
            raise InvariantError(f"illegal in stage {graph.stage.name}: {wrong}", node=node)


def family(node: fx.Node) -> str | None:
    """The folder of ``fqt_deploy/ops/`` that a node's op is in; None for an op that is not ours."""
    return _facts(node.target)[0] if node.op == "call_function" else None


@cache
def _facts(target: Any) -> tuple[str | None, bool]:
    """The folder of the op that ``target`` is, if it is ours, and whether it is one that moves elements.

    Kept for every target: all rules ask for it, of all nodes, after every pass.
    """
    op = OPS.get(target)
    folder = op.family() if op is not None and issubclass(op, FqtOp) else None
    return folder, target is operator.getitem or folder == "selection" or is_move(op)


def _illegality(node: fx.Node, legal: Legality) -> str | None:
    ours = family(node)
    if ours is not None and ours not in legal.families:
        return f"{node.target} is an op of {ours}"
    if not legal.foreign and not is_supported(node):
        return f"{node.target} has no lowering"
    return _illegal_type(node, legal) or next((wrong for rule in legal.rules if (wrong := rule(node))), None)


def _illegal_type(node: fx.Node, legal: Legality) -> str | None:
    value = node.meta.get("val")
    if legal.dtypes is None or not isinstance(value, torch.Tensor) or value.dtype in legal.dtypes:
        return None
    return f"%{node.name} is {type_text(value)}, a type that nothing computes in"


def _moves(node: fx.Node) -> bool:
    """Whether an op puts elements elsewhere and leaves each as it is."""
    return node.op == "call_function" and _facts(node.target)[1]


def _origin(node: fx.Node) -> fx.Node:
    """What computed the elements of ``node``, behind all that moves them."""
    while _moves(node) and (operands := node.all_input_nodes):
        node = operands[0]
    return node


def _is_codes(node: fx.Node) -> bool:
    return _dtype(node) == torch.uint8 and family(node) == "quantization"


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def _shown(node: fx.Node) -> str:
    return f"%{node.name}, {type_text(node.meta.get('val'))}"
