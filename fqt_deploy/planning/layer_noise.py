"""The noise of a layer's choices: what the model's outputs lose when this layer alone is quantized.

The forward pass is computed once in fp32 on the example batch. Then, for each layer and choice, the layer's product is
replaced by the quantized one and what depends on it is computed again. The noise is ``-ln R^2`` of the outputs, where
``R^2`` is the share of their variance over the samples that the outputs in fp32 still explain: 0 for none, 0.7 where
half of the signal is lost. It ignores scale and offset, which normalization and training make up for, and where layers
lose parts of the signal one after the other, it adds up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.capture.capture_model import capture_model, user_code
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import LayerRecord, TrainingGraph
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.passes.annotate_layers import products_of
from fqt_deploy.passes.choose_bits import ReadValues, codes_on, fitting_grid, product_of_codes
from fqt_deploy.passes.example_values import plain_convolution_by_onednn
from fqt_deploy.passes.pass_base import Pipeline
from fqt_deploy.passes.pipelines import training_passes
from fqt_deploy.passes.scale_weights import ScaleWeights, scaled_weight
from fqt_deploy.planning.choices import CHOICES, Choice

FULL = 32
"""Bits of an activation that is not quantized: its layer's weights are still signs."""
MOST_NOISE = 20.0
"""The noise of outputs that have nothing to do with those in fp32."""
_CHANGES_NUMBERS = ("choose-bits", "binarize-forward")
_LEFT_OUT = ("exchange-gradients",)

Compute = Callable[..., Any]


class NoiseMeter:
    """Measures what quantized layers do to a model's outputs on its example batch.

    Attributes:
        graph: the training step with its layers marked, in fp32.
    """

    def __init__(self, source: ModelSource, options: CompileOptions) -> None:
        """Capture ``source`` and compute its forward pass in fp32."""
        with user_code(source), torch.no_grad():
            self.graph, _ = capture_model(source, options.prediction)
            self._scaled = _run_passes(self.graph, options)
            self._fitted = options.activation_grid == "fitted"
            self._products: dict[str, list[fx.Node]] = {}
            for product in products_of(self.graph, "forward"):
                self._products.setdefault(product.meta["record"].path, []).append(product)
            self._logits = self.graph.output("logits")
            self._nodes = _needed_for(self.graph, [self._logits, self.graph.output("loss")])
            self._values: dict[fx.Node, Any] = {}
            self._values = self._computed(self._nodes, {})
            self._expected = _signal(self._values[self._logits])

    @property
    def layers(self) -> list[LayerRecord]:
        """The layers that can be quantized, in forward order."""
        return [record for record in self.graph.layers if record.path in self._products]

    def noise(self, choices: Mapping[str, Choice]) -> float:
        """The noise of the outputs with these choices by path of a layer; layers that are not named are in fp32."""
        return self.measured(choices)[0]

    def measured(self, choices: Mapping[str, Choice]) -> tuple[float, float]:
        """The noise of the outputs, and the loss; with ``FULL`` bits only the layer's weights are quantized."""
        instead = {
            product: self._quantized(product, bits)
            for path, bits in choices.items()
            for product in self._products[path]
            if bits is not None
        }
        with torch.no_grad():
            values = self._computed(_depending_on(self._nodes, instead), instead)
        loss = self.graph.output("loss")
        logits = values.get(self._logits, self._values[self._logits])
        return _noise(_signal(logits), self._expected), float(values.get(loss, self._values[loss]))

    def _computed(self, nodes: Iterable[fx.Node], instead: Mapping[fx.Node, Compute]) -> dict[fx.Node, Any]:
        """The values of ``nodes``, which come in order; what they read besides is known."""
        graph = self.graph
        assert graph.example is not None
        given = {**graph.example, "seed": torch.tensor(0)} | {n: t.initial.detach() for n, t in graph.state.items()}
        names = dict(zip(graph.graph.find_nodes(op="placeholder"), graph.inputs, strict=True))
        values: dict[fx.Node, Any] = {}

        def known(node: fx.Node) -> Any:
            return values[node] if node in values else self._values[node]

        for node in nodes:
            if node.op == "placeholder":
                values[node] = given[names[node]]
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), known)
            compute: Any = instead.get(node) or _FASTER.get(node.target) or node.target
            values[node] = torch.utils._pytree.tree_map_only(Tensor, Tensor.contiguous, compute(*args, **kwargs))
        return values

    def _quantized(self, product: fx.Node, bits: int) -> Compute:
        reads, scaled = call_of(product).x, product.meta["record"].weight in self._scaled

        def compute(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
            w = scaled_weight(w) if scaled else w
            if bits == FULL:
                return product_of_codes(product, None, x, w, *rest)
            grid = fitting_grid([reads], {reads: ReadValues.of(x, bits)}, bits, fitted=self._fitted)
            return product_of_codes(product, grid, codes_on(grid, x), w, *rest)

        return compute


def noise_of_choices(meter: NoiseMeter, path: str, offered: Iterable[Choice] = CHOICES) -> dict[Choice, float]:
    """The noise of each choice ``offered`` for the layer ``path``, in order: with fewer bits it is never less."""
    found: dict[Choice, float] = {}
    most = 0.0
    for choice in offered:
        if choice is not None:
            most = max(most, meter.noise({path: choice}))
        found[choice] = most
    return found


_FASTER: dict[Any, Compute] = {torch.ops.fqt.conv2d.default: plain_convolution_by_onednn}


def _run_passes(graph: TrainingGraph, options: CompileOptions) -> set[str]:
    """Run all passes before the first that quantizes.

    Returns:
        The weights that quantized layers begin with larger; the graph has them as they are.
    """
    passes = training_passes(options)
    end = next(i for i, each in enumerate(passes) if each.name in _CHANGES_NUMBERS)
    scaled: set[str] = set()

    def keep_weights(name: str, graph: TrainingGraph, seconds: float) -> None:
        if name == ScaleWeights.name:
            scaled.update(each for each, tensor in before.items() if graph.state[each] is not tensor)
            graph.state.update({each: before[each] for each in scaled})

    before = dict(graph.state)
    wanted = tuple(each for each in passes[:end] if each.name not in _LEFT_OUT)
    Pipeline(wanted, observers=(keep_weights,)).run(graph)
    return scaled


def _needed_for(graph: TrainingGraph, results: list[fx.Node]) -> list[fx.Node]:
    needed, pending = set(results), list(results)
    while pending:
        new = [node for node in pending.pop().all_input_nodes if node not in needed]
        needed.update(new)
        pending += new
    return [node for node in graph.graph.nodes if node in needed]


def _depending_on(nodes: Iterable[fx.Node], roots: Iterable[fx.Node]) -> list[fx.Node]:
    """The ``roots`` among ``nodes`` and what depends on them, in order."""
    found = set(roots)
    for node in nodes:
        if any(operand in found for operand in node.all_input_nodes):
            found.add(node)
    return [node for node in nodes if node in found]


def _signal(outputs: Tensor) -> Tensor:
    """What ``outputs``, [samples, ...], say of each sample: their difference from the mean over the samples."""
    outputs = outputs.detach().double()
    return outputs - outputs.mean(0) if outputs.dim() and len(outputs) > 1 else outputs


def _noise(signal: Tensor, expected: Tensor) -> float:
    sizes = float(signal.square().sum() * expected.square().sum())
    if not math.isfinite(sizes) or sizes <= 0:
        return MOST_NOISE
    explained = float((signal * expected).sum()) ** 2 / sizes
    return min(MOST_NOISE, max(0.0, -math.log(max(explained, math.exp(-MOST_NOISE)))))
