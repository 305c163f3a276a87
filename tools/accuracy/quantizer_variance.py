"""Variance of each layer's quantized gradient, drawn with the reference ops, beside the bounds of the paper's Eq. 24.

The gradients are those of one batch with fp32 gradients: what each quantizer would be given if it were the only one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.verify_passes import graph_inputs
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.ops.quantization.dequantize import Dequantize
from fqt_deploy.ops.quantization.quantization_grid import QuantizationGrid
from fqt_deploy.ops.quantization.quantize_samples import QuantizeSamples
from fqt_deploy.ops.selection.select_sampled import SelectSampled
from fqt_deploy.ops.selection.select_topk import SelectTopk
from fqt_deploy.ops.selection.stream_key import StreamKey
from fqt_deploy.passes.annotate_layers import products_of
from fqt_deploy.passes.pass_base import Pipeline
from fqt_deploy.passes.pipelines import training_passes

LAST_PASS = "binarize-forward"
"""The pass behind which the gradients of the binarized layers are there, in fp32."""


@dataclass(frozen=True)
class QuantizerVariance:
    """The variance of quantizers of one layer's activation gradient ``G``, all relative to the squared norm of ``G``.

    Attributes:
        layer: module path.
        psq1: measured variance of 1-bit quantization per sample.
        psq1_bound: Eq. 24 for it, ``D / 4 * sum R_i^2``.
        rounding: measured squared error that rounding adds to the kept samples of AGP, without their weights.
        rounding_bound: Eq. 24 for AGP, ``D / (4 B^2) * sum over kept R_i^2``.
        sampled: measured squared error of AGP that samples, rounding included.
        topk: the same of AGP that keeps the largest, bias included.
        sampled_bias: squared norm of the mean error of ``sampled`` over what its variance explains; 1 if unbiased.
        topk_bias: squared norm of the mean error of ``topk``.
        concentration: share of ``sum R_i^2`` in the quarter of samples with the largest ``R_i``.
        channel_concentration: the same of channels.
    """

    layer: str
    psq1: float
    psq1_bound: float
    rounding: float
    rounding_bound: float
    sampled: float
    topk: float
    sampled_bias: float
    topk_bias: float
    concentration: float
    channel_concentration: float


def layer_gradients(source: ModelSource) -> dict[str, Tensor]:
    """Gradients ``G = alpha * dL/dY``, ``[N, P, C] float32``, by binarized layer, for ``source``'s example batch."""
    options = CompileOptions(recipe="none")
    graph = capture_training_graph(source.module, source.loss_fn, source.example_inputs)
    passes = training_passes(options)
    end = [one.name for one in passes].index(LAST_PASS)
    Pipeline(passes[: end + 1]).run(graph)
    operands = {node.args[0]: node.meta["record"].path for node in products_of(graph, "input_grad")}
    given = graph_inputs(graph, source, options)
    interpreter = _Reader(graph.module, operands)
    with torch.no_grad():
        interpreter.run(*[given[name] for name in graph.inputs])
    return interpreter.values


def quantizer_variance(layer: str, g: Tensor, bits: int, draws: int) -> QuantizerVariance:
    """Quantize ``g: [N, P, C]`` ``draws`` times each way, on the paper's grid.

    Args:
        layer: its name.
        g: the gradient.
        bits: the bits of AGP; it keeps one sample in ``bits``.
        draws: how often.
    """
    flat = g.flatten(1)
    ranges = flat.amax(1) - flat.amin(1)
    squared, elements, levels = ranges.square(), flat.shape[1], 2**bits - 1
    keep = max(1, round(len(g) / bits))
    norms = flat.norm(dim=1)
    everything = torch.arange(len(g), dtype=torch.int32)
    largest = SelectTopk(flat.abs().amax(1), keep).reference()[0]
    total: dict[str, float] = {"psq1": 0.0, "rounding": 0.0, "sampled": 0.0, "topk": 0.0, "bound": 0.0}
    mean = {"sampled": torch.zeros_like(g), "topk": torch.zeros_like(g)}
    for draw in range(draws):
        rounding_key, selection_key = (
            StreamKey(torch.tensor(draw), torch.tensor(0), 0, role).reference() for role in (0, 2)
        )
        total["psq1"] += _squares(_quantized(g, everything, 1, rounding_key) - g)
        index, _, weight = SelectSampled(norms, selection_key, keep).reference()
        kept = index.long()
        values = _quantized(g, index, bits, rounding_key)
        total["rounding"] += _squares(values - g[kept])
        total["bound"] += elements / (4 * levels**2) * float(squared[kept].sum())
        estimates = {"sampled": (kept, values * weight.view(-1, 1, 1))}
        estimates["topk"] = largest.long(), _quantized(g, largest, bits, rounding_key)
        for name, (rows, estimate) in estimates.items():
            error = (-g).index_add(0, rows, estimate)
            total[name] += _squares(error)
            mean[name] += error / draws
    norm = _squares(g)
    expected = total["sampled"] / draws / draws  # squared norm of a mean of that many unbiased draws
    relative = {name: value / draws / norm for name, value in total.items()}
    return QuantizerVariance(
        layer=layer,
        psq1=relative["psq1"],
        psq1_bound=elements / 4 * float(squared.sum()) / norm,
        rounding=relative["rounding"],
        rounding_bound=relative["bound"],
        sampled=relative["sampled"],
        topk=relative["topk"],
        sampled_bias=_squares(mean["sampled"]) / expected,
        topk_bias=_squares(mean["topk"]) / norm,
        concentration=_concentration(squared),
        channel_concentration=_concentration((g.amax((0, 1)) - g.amin((0, 1))).square()),
    )


class _Reader(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes, by the name given to each."""

    def __init__(self, module: fx.GraphModule, wanted: dict[Any, str]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and keep the gradients that are wanted; kernels write contiguous results, and so does this."""
        result = tree_map_only(Tensor, Tensor.contiguous, super().run_node(n))
        if n in self.wanted:
            self.values[self.wanted[n]] = result.reshape(result.shape[0], -1, result.shape[-1]).contiguous()
        return result


def _quantized(g: Tensor, index: Tensor, bits: int, key: Tensor) -> Tensor:
    """Samples ``index`` of ``g``, quantized and dequantized."""
    rows = g[index.long()].flatten(1)
    zero, reciprocal, step = QuantizationGrid(rows.amin(1), rows.amax(1), bits, "minmax").reference()
    codes = QuantizeSamples(g, None, index, zero, reciprocal, key, bits).reference()
    return Dequantize(codes, step, zero, 0).reference()


def _squares(values: Tensor) -> float:
    return float(values.double().square().sum())


def _concentration(squared: Tensor) -> float:
    largest = squared.sort(descending=True).values[: max(1, len(squared) // 4)]
    return float(largest.sum() / squared.sum())
