"""The value every pass takes and returns: one joint graph of a whole training step."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Literal

import torch
from torch import fx
from torch.utils._pytree import tree_map_only

from fqt_deploy.core.call import call_of, changed, source_of
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import InputSpec

Phase = Literal["forward", "backward", "optimizer"]


class Stage(enum.IntEnum):
    """The stages that say how far a graph has been lowered; each stage has its own table of legal ops."""

    CAPTURED = 0
    """The stage of ATen ops as PyTorch traced them, tensors in PyTorch's layout."""
    NORMALIZED = 1
    """The stage of ``fqt`` products on channels-last tensors and of normalization layers as single ops."""
    QUANTIZED = 2
    """The stage in which chosen layers compute on signs, their gradients pass through quantizers; tensors are still
    plain floats.
    """
    LOWERED = 3
    """The stage in which chosen layers run on packed bits; what remains is element-wise ops, reductions and fp32
    products.
    """


@dataclass(frozen=True)
class StateTensor:
    """One tensor that lives across steps and is updated in place.

    Attributes:
        name: ``param/...``, ``buffer/...``, moments (``adam_m/...``, ``sgd_momentum/...``), ``grad_sum/...``,
            ``ema/...``, ``metric/...`` or ``step``.
        role: what it is.
        initial: its value before the first step.
    """

    name: str
    role: Literal["param", "buffer", "optimizer", "counter", "metric"]
    initial: torch.Tensor


@dataclass(frozen=True)
class ActivationGrid:
    """The values that a layer's activations are quantized to.

    Attributes:
        bits: of a code.
        signed: whether the values lie around 0, odd multiples of half the spacing; else they begin with 0.
        spacing: distance of neighbouring values, a float32.
    """

    bits: int
    signed: bool
    spacing: float


@dataclass
class LayerRecord:
    """The decisions of the compiler about one convolution or linear layer.

    Attributes:
        path: module path in the user's model, such as ``features.3``.
        kind: ``conv2d`` or ``linear``.
        index: position in the model; selects the layer's random stream.
        binarized: whether its products run on single bits.
        reason: why not, or why; one short sentence.
        source: ``file:line`` of the call, when known.
        weight: name of its weight among the inputs, such as ``param/features.3.weight``.
        grid: of the activations of a binarized layer; None for their signs.
        turned: whether its weight lies [in, out].
        weight_bits: bits of a weight of a binarized layer; 1 for signs.
    """

    path: str
    kind: Literal["conv2d", "linear"]
    index: int
    binarized: bool = False
    reason: str = ""
    source: str | None = None
    weight: str = ""
    grid: ActivationGrid | None = None
    turned: bool = False
    weight_bits: int = 1


def grids_of(layers: Iterable[LayerRecord]) -> dict[str, ActivationGrid]:
    """The grids of layers that have one, by the name of their weight."""
    return {record.weight: record.grid for record in layers if record.grid is not None}


@dataclass(frozen=True)
class LabelUse:
    """The labels that a loss takes.

    Attributes:
        low: the least.
        high: one more than the largest.
        ignore_index: one more label, which the loss leaves out; None if there is none.
        class_axis: axis of the logits along which the classes lie; None if labels index something else.
    """

    low: int
    high: int
    ignore_index: int | None = None
    class_axis: int | None = None


@dataclass
class TrainingGraph:
    """A joint forward, backward and optimizer graph.

    Placeholders are named by ``inputs``; outputs by ``outputs`` in order. An output named like a state input is that
    state's next value. Nodes carry ``meta["val"]`` (meta tensor), ``meta["layer"]`` (module path or ""),
    ``meta["phase"]`` and, where known, ``meta["stack_trace"]``; behind a selection of samples also
    ``meta["samples"]``, how many it keeps, and of tokens ``meta["kept"]``, how many it keeps of each sample.

    Attributes:
        module: the fx graph module; runs in eager mode at every stage.
        inputs: input names in placeholder order: those of a batch, ``seed``, ``lr``, then the state.
        outputs: output names in order: ``loss``, ``logits``, then updated state.
        state: the state tensors by name, in argument order.
        batch: number of samples in one step.
        stage: how far it has been lowered.
        layers: one record per convolution or linear layer, in forward order.
        selection: which gradients are kept, as the option ``agp`` names it; None if all are.
        selection_note: why it is not what is chosen by default.
        refused: nodes that a pass cannot rewrite, with the error that says why: the pipeline raises them all at once.
        labels: the labels that the loss takes; None if it takes any number, or the targets are no labels.
        signature: the arrays of a batch that are among the inputs, in their order.
        notes: what a person should know of the model, a line each.
        prediction: the name of the model's output that ``logits`` is.
        example: the arrays of the example batch by name; None for a graph read from text.
        code_counts: how often each layer reads each sign or level on the example batch, by the name of its weight; of
            those layers that a pass has computed it for.
    """

    module: fx.GraphModule
    inputs: list[str]
    outputs: list[str]
    state: dict[str, StateTensor]
    batch: int
    stage: Stage = Stage.CAPTURED
    layers: list[LayerRecord] = field(default_factory=list)
    selection: str | None = None
    selection_note: str = ""
    refused: dict[fx.Node, FqtError] = field(default_factory=dict)
    labels: LabelUse | None = None
    signature: tuple[InputSpec, ...] = ()
    notes: tuple[str, ...] = ()
    prediction: str = "logits"
    example: Mapping[str, torch.Tensor] | None = None
    code_counts: Mapping[str, Counter[int]] = field(default_factory=dict)

    def batch_inputs(self, role: str | None = None) -> list[fx.Node]:
        """The input nodes of a batch, with ``role`` if it is given."""
        return [self.placeholder(spec.name) for spec in self.signature if role in (None, spec.role)]

    @property
    def graph(self) -> fx.Graph:
        """The fx graph of the module."""
        return self.module.graph

    def placeholder(self, name: str) -> fx.Node:
        """The input node called ``name``; ``KeyError`` if there is none."""
        found: fx.Node = dict(zip(self.inputs, self.graph.find_nodes(op="placeholder"), strict=True))[name]
        return found

    def results(self) -> dict[str, fx.Node]:
        """The nodes that compute the outputs, by name."""
        values: Any = self.output_node().args[0]
        return dict(zip(self.outputs, values, strict=True))

    def set_results(self, results: dict[str, fx.Node]) -> None:
        """Make ``results`` the graph's outputs, in their order."""
        self.outputs = list(results)
        self.output_node().args = (tuple(results.values()),)

    def output_node(self) -> fx.Node:
        """The output node of the fx graph."""
        found: fx.Node = next(n for n in reversed(self.graph.nodes) if n.op == "output")
        return found

    def output(self, name: str) -> fx.Node:
        """The node that computes output ``name``."""
        return self.results()[name]

    def layer(self, path: str) -> LayerRecord | None:
        """The record of layer ``path``, or None."""
        return next((record for record in self.layers if record.path == path), None)

    def calls(self, *targets: Any) -> list[fx.Node]:
        """All ``call_function`` nodes whose target is one of ``targets``, in order."""
        return [n for n in self.graph.nodes if n.op == "call_function" and n.target in targets]


_INHERITED = ("layer", "phase", "stack_trace", "seq_nr", "role")


class Emitter:
    """Inserts nodes before an anchor, with shapes propagated and provenance inherited from it.

    Example: ``emit = Emitter(graph, anchor); y = emit(torch.ops.aten.mul.Tensor, a, b)``.
    """

    def __init__(self, graph: TrainingGraph, anchor: fx.Node, **overrides: Any) -> None:
        """Insert before ``anchor``; ``overrides`` replace inherited meta entries, such as ``phase="backward"``."""
        self.graph = graph
        self.anchor = anchor
        self.meta = {k: anchor.meta[k] for k in _INHERITED if k in anchor.meta} | overrides

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Insert ``target(*args, **kwargs)`` and return its node."""
        with self.graph.graph.inserting_before(self.anchor):
            node = self.graph.graph.call_function(target, args, kwargs)
        node.meta.update(self.meta)
        propagate(node)
        return node

    def again(self, node: fx.Node, /, **changes: Any) -> fx.Node:
        """Insert the call of ``node`` once more, with other arguments where ``changes`` names them."""
        args, kwargs = changed(node, changes)
        return self(node.target, *args, **kwargs)

    def behind(self, node: fx.Node) -> Emitter:
        """One of the same provenance that inserts as early as ``node`` allows: right behind it."""
        return Emitter(self.graph, following(node), **self.meta)

    def item(self, node: fx.Node, index: int) -> fx.Node:
        """Insert ``node[index]`` for a node with several outputs."""
        import operator

        return self(operator.getitem, node, index)


def following(node: fx.Node) -> fx.Node:
    """The first node behind ``node`` that is no input."""
    behind = node.next
    while behind.op == "placeholder":
        behind = behind.next
    return behind


def value(node: Any) -> Any:
    """The meta tensor (or tuple of them) that ``node`` computes."""
    return node.meta["val"] if isinstance(node, fx.Node) else node


def values_of(node: fx.Node) -> tuple[torch.Tensor, ...]:
    """The meta tensors of all results of ``node``."""
    found = node.meta["val"]
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


def shape(node: fx.Node) -> list[int]:
    """The shape of a single-output node as plain integers."""
    return [int(d) for d in node.meta["val"].shape]


def propagate(node: fx.Node) -> None:
    """Compute ``meta["val"]`` of ``node`` from the shapes and dtypes of its arguments, as if these were contiguous.

    A ``view`` in our graphs reshapes whatever it is given, row by row: kernels write contiguous results. Nodes that
    call the same op on operands of the same shapes and dtypes share one value: most layers of a model repeat others.
    """
    node.meta["val"] = _result_of(node.target, _signature(node.args), _signature(dict(node.kwargs)))


@dataclass(frozen=True)
class _TensorType:
    """What a shape rule sees of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Items:
    """The signatures of what a list or tuple holds."""

    items: tuple[Any, ...]


def _signature(tree: Any) -> Any:
    """The facts about arguments that a shape rule sees: equal ones give values of equal shape and dtype."""
    if isinstance(tree, fx.Node):
        return _signature(tree.meta["val"])
    if isinstance(tree, torch.Tensor):
        return _TensorType(tuple(map(int, tree.shape)), tree.dtype)
    if isinstance(tree, (list, tuple)):
        return _Items(tuple(_signature(item) for item in tree))
    if isinstance(tree, dict):
        return _Items(tuple((name, _signature(item)) for name, item in tree.items()))
    return type(tree), tree  # 1, 1.0 and True are equal, and promote differently


def _argument(signature: Any) -> Any:
    """An argument with ``signature``; tensors have no data, and what is to be made on a device is made without any."""
    if isinstance(signature, _TensorType):
        return meta_tensor(signature.shape, signature.dtype)
    if isinstance(signature, _Items):
        return [_argument(item) for item in signature.items]
    _, literal = signature
    return _META if isinstance(literal, torch.device) else literal


_META = torch.device("meta")


@lru_cache(maxsize=1 << 16)
def _result_of(target: Any, args: _Items, kwargs: _Items) -> Any:
    """The result of a call: PyTorch's kernels for tensors without data take a tenth of the time of its fake tensors."""
    named = {name: _argument(item) for name, item in kwargs.items}
    if _makes_tensors(target) and named.get("device") is None:
        named["device"] = _META  # not memory for what is made of no tensor, nor draws from PyTorch's generator
    result = target(*_argument(args), **named)
    return tree_map_only(torch.Tensor, lambda t: meta_tensor(t.shape, t.dtype), result)


@cache
def _makes_tensors(target: Any) -> bool:
    """Whether a call says by name on which device its result is to be."""
    is_op = isinstance(target, torch._ops.OpOverload)
    return is_op and any(a.name == "device" and a.kwarg_only for a in target._schema.arguments)


def meta_tensor(extents: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of a shape and a dtype and no data, such as ``meta["val"]`` holds."""
    return torch.empty(tuple(extents), dtype=dtype, device=_META)


VIEWS = (torch.ops.aten.view.default,)
"""Ops that see the memory of their operand in another shape."""


def behind_views(node: fx.Node, *others: Any) -> fx.Node:
    """The value that ``node`` is a view of; ops among ``others`` are looked through as well."""
    while node.target in VIEWS or node.target in others:
        node = source_of(node)
    return node


def replace_results(graph: TrainingGraph, node: fx.Node, results: Sequence[fx.Node | None]) -> None:
    """Make every user of ``node[i]`` read ``results[i]`` and remove ``node``; what is None must have no users."""
    for item in list(node.users):
        result = results[call_of(item).index]
        if item.users:
            assert result is not None, item
            item.replace_all_uses_with(result)
        graph.graph.erase_node(item)
    graph.graph.erase_node(node)


def replace(graph: TrainingGraph, old: fx.Node, new: fx.Node) -> None:
    """Make every user of ``old`` read ``new`` and remove ``old``."""
    old.replace_all_uses_with(new)
    graph.graph.erase_node(old)
