"""Compare one compiled step of recipe ``none`` with eager PyTorch fake quantization, end to end.

Example: ``python -m tools.compare_eager --model resnet18 --batch 16``.

Both sides take the same weights and one batch. Where an activation lies within rounding of zero, its sign may differ
between the two, because they sum in different orders; such flips are counted by layer, on the lowered graph run in
PyTorch. So are levels that differ, with activations of several bits. A gradient that is zero in double precision, such
as that of a constant which a norm removes, has no direction: it is named, and must be small.

Exit status 1 if the loss differs by more than 1e-3, or a gradient's cosine is below 0.999. The last line printed is
JSON.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

import fqt_deploy
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import compile_model, lower_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import ActivationGrid, TrainingGraph
from fqt_deploy.core.layer_bits import ACTIVATION_BITS, WEIGHT_BITS, ActivationBits, WeightBits
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.core.options import ACTIVATION_GRIDS, ActivationGridKind, CompileOptions
from fqt_deploy.ops.lib.levels import WEIGHT_SPACINGS
from tools.examples import EXAMPLES, load_example

LOSS_TOLERANCE = 1e-3
COSINE = 0.999
ROUNDING = 1e-6
"""Norm of a gradient that should be zero, relative to the whole gradient."""
ZERO = 1e-12
"""The same in double precision."""


@dataclass(frozen=True)
class Comparison:
    """The findings of the comparison.

    Attributes:
        loss_error: relative error of the loss.
        cosines: the cosines of our gradient with PyTorch's, by parameter.
        zeros: parameters whose true gradient is zero -> norm of ours, relative to the whole gradient.
        flips: by binarized layer, the activations whose sign or level differs and the number of activations.
    """

    loss_error: float
    cosines: dict[str, float]
    zeros: dict[str, float]
    flips: dict[str, tuple[int, int]]

    @property
    def ok(self) -> bool:
        """Whether our step and PyTorch's agree."""
        agree = self.loss_error <= LOSS_TOLERANCE and min(self.cosines.values()) >= COSINE
        return agree and all(norm <= ROUNDING for norm in self.zeros.values())


class Sign(torch.autograd.Function):
    """+1 or -1, exactly; the gradient passes where the magnitude is below 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Signs of ``x``, of its shape and dtype; that of 0 is -1."""
        ctx.save_for_backward(x)
        return torch.where(x > 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient straight through where the operand is within 1 of 0."""
        passes: Tensor = ctx.saved_tensors[0].abs() < 1
        return gradient * passes


class Levels(torch.autograd.Function):
    """The whole numbers that values are quantized to; the gradient passes where none is clamped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: ActivationGrid) -> Tensor:
        """Levels of ``x``, of its shape and dtype: odd ones around 0 on a signed grid, else 0 and above."""
        count, spacing = 2**grid.bits, np.float32(grid.spacing)
        scaled = x * float(np.float32(1) / spacing)
        cell = torch.floor(scaled) if grid.signed else torch.round(scaled)
        first = -count // 2 if grid.signed else 0
        ctx.save_for_backward((cell >= first) & (cell < first + count))
        ctx.unit = float(spacing / 2 if grid.signed else spacing)
        cell = cell.clamp(first, first + count - 1)
        return 2 * cell + 1 if grid.signed else cell

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """The gradient straight through, by what level 1 stands for."""
        return gradient * ctx.saved_tensors[0] / ctx.unit, None


class FakeQuantized(nn.Module):
    """A binarized layer in eager mode: signs or levels, scales and straight-through gradients by autograd.

    The scale is applied to the product of signs, an integer: so equal values tie in max pooling here as they do there.
    """

    def __init__(self, layer: nn.Module, grid: ActivationGrid | None = None, weight_bits: int = 1) -> None:
        super().__init__()
        self.layer = layer
        self.grid = grid
        self.weight_bits = weight_bits
        self.levels: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The result of the layer for ``x``; keeps the signs or levels of ``x``."""
        layer: Any = self.layer
        weight = layer.weight
        bias = torch.zeros(()) if layer.bias is None else layer.bias
        alpha = weight.abs().flatten(1).mean(1)
        if self.grid is None:
            activations = Sign.apply(x)  # type: ignore[no-untyped-call]
        else:
            activations = Levels.apply(x, self.grid)  # type: ignore[no-untyped-call]
            alpha = alpha * (self.grid.spacing / 2 if self.grid.signed else self.grid.spacing)
        if self.weight_bits == 1:
            quantized = Sign.apply(weight)  # type: ignore[no-untyped-call]
        else:
            spacing = WEIGHT_SPACINGS[self.weight_bits] * weight.abs().flatten(1).mean(1).detach()
            scaled = weight * spacing.reciprocal().view(-1, *(1 for _ in weight.shape[1:]))
            quantized = Levels.apply(scaled, ActivationGrid(self.weight_bits, True, 1.0))  # type: ignore[no-untyped-call]
            alpha = alpha.detach() * (WEIGHT_SPACINGS[self.weight_bits] / 2)
        signs = activations, quantized
        self.levels = activations.detach()
        if isinstance(layer, nn.Conv2d):
            product = nn.functional.conv2d(*signs, None, layer.stride, layer.padding)
            result: Tensor = product * alpha.view(-1, 1, 1) + bias.view(-1, 1, 1)
        else:
            result = nn.functional.linear(*signs) * alpha + bias
        return result


def fake_quantized(
    model: nn.Module, grids: Mapping[str, ActivationGrid | None], weight_bits: Mapping[str, int] | None = None
) -> nn.Module:
    """A copy of ``model`` in training mode whose layers named in ``grids`` are binarized, with these grids.

    ``weight_bits`` are those of weights, by layer; 1 where there are none.
    """
    model = copy.deepcopy(model)
    for path, grid in grids.items():
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, name, FakeQuantized(owner.get_submodule(name), grid, (weight_bits or {}).get(path, 1)))
    return model.train()


def as_if_trained(source: ModelSource) -> ModelSource:
    """The model with random norm parameters.

    At initialization batch norm subtracts the mean of integers, often an integer itself: many signs are then taken of
    rounding noise around exactly zero, and differ between any two orders of summation.
    """
    module = copy.deepcopy(source.module)
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.LayerNorm)):
            for parameter in (layer.weight, layer.bias):
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return dataclasses.replace(source, module=module)


def compare(
    source: ModelSource,
    activation_bits: ActivationBits = 4,
    activation_grid: ActivationGridKind = "fitted",
    weight_bits: WeightBits = 1,
) -> Comparison:
    """Take one step of plain SGD on both sides, and compare losses and gradients."""
    source = as_if_trained(source)
    x, y = source.example_inputs
    options = CompileOptions(
        recipe="none",
        optimizer=SGD(lr=1.0),
        activation_bits=activation_bits,
        activation_grid=activation_grid,
        weight_bits=weight_bits,
    )
    lowered = lower_model(source, options)
    with tempfile.TemporaryDirectory() as folder:
        compile_model(source, options, Path(folder) / "step", lowered=lowered)
        step = fqt_deploy.load(Path(folder) / "step")
        before = step.state_dict()
        loss = step.step(x, y)
        after = step.state_dict()
    source.module.load_state_dict({name: torch.from_numpy(value) for name, value in before.items()}, strict=False)
    binarized = [record for record in lowered.train.layers if record.binarized]
    weights = {record.path: record.weight_bits for record in binarized}
    eager = fake_quantized(source.module, {record.path: record.grid for record in binarized}, weights)
    precise = copy.deepcopy(eager).double()
    expected, gradients = _loss_and_gradients(eager, source, x)
    _, true = _loss_and_gradients(precise, source, x.double() if x.is_floating_point() else x)
    ours = {name: before[name] - after[name] for name in gradients}
    whole = _norm(*true.values())
    zeros = {name: _norm(ours[name]) / whole for name in true if _norm(true[name]) <= ZERO * whole}
    return Comparison(
        loss_error=abs(loss - expected) / abs(expected),
        cosines={name: _cosine(ours[name], gradient) for name, gradient in gradients.items() if name not in zeros},
        zeros=zeros,
        flips=_flips(lowered.train, source, options, eager),
    )


def _loss_and_gradients(model: nn.Module, source: ModelSource, x: Tensor) -> tuple[float, dict[str, Any]]:
    loss = source.loss_fn(model(x), source.example_inputs[1])
    loss.backward()  # type: ignore[no-untyped-call]
    named = model.named_parameters()
    return loss.item(), {n.replace(".layer.", "."): p.grad.numpy() for n, p in named if p.grad is not None}


def _norm(*arrays: Any) -> float:
    return float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in arrays)))


def _cosine(ours: Any, theirs: Any) -> float:
    """Cosine of two gradients; 1 for two that are zero."""
    ours, theirs = ours.ravel().astype(np.float64), theirs.ravel().astype(np.float64)
    norms = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return float(ours @ theirs) / norms if norms else float(np.array_equal(ours, theirs))


class _PackedLevels(fx.Interpreter):
    """Runs a lowered graph and keeps the signs or levels of each binarized layer's input, by layer."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.levels: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; of a packing of activations, remember what is packed."""
        result = torch.utils._pytree.tree_map_only(Tensor, Tensor.contiguous, super().run_node(n))
        for user in n.users:
            if user.target is torch.ops.fqt.binary_conv2d.default and n.target is torch.ops.fqt.pack_signs.default:
                self.levels[user.meta["layer"]] = torch.where(self.env[n.all_input_nodes[0]] > 0, 1.0, -1.0)
            if user.target is torch.ops.fqt.level_conv2d.default and n.target is torch.ops.fqt.pack_levels.default:
                x, grid = self.env[n.all_input_nodes[0]], n.args[1:]
                self.levels[user.meta["layer"]] = torch.ops.fqt.activation_levels(x, *grid)
        return result


def _flips(
    graph: TrainingGraph, source: ModelSource, options: CompileOptions, eager: nn.Module
) -> dict[str, tuple[int, int]]:
    given = {
        **{spec.name: tensor for spec, tensor in zip(graph.signature, source.example_inputs, strict=True)},
        "seed": torch.tensor(options.seed),
        "lr": torch.tensor(options.optimizer.lrs()),
    } | {name: tensor.initial for name, tensor in graph.state.items()}
    interpreter = _PackedLevels(graph.module)
    with torch.no_grad():
        interpreter.run(*[given[name] for name in graph.inputs])
    found = {}
    for path, layer in eager.named_modules():
        if isinstance(layer, FakeQuantized) and layer.levels is not None:
            theirs = layer.levels.permute(0, 2, 3, 1) if layer.levels.dim() == 4 else layer.levels
            ours = interpreter.levels[path].reshape(theirs.shape)
            found[path] = int((ours != theirs).sum()), ours.numel()
    return found


def report(found: Comparison) -> None:
    """Print the cosines of all parameters and the flips of all binarized layers."""
    width = max(map(len, found.cosines))
    for name, cosine in found.cosines.items():
        mark = "" if cosine >= COSINE else "  BELOW"
        print(f"{name:{width}}  cosine {cosine:.6f}{mark}")
    for name, norm in found.zeros.items():
        print(f"{name:{width}}  is zero; ours has {norm:.1e} of the whole gradient's norm")
    for path, (flipped, total) in found.flips.items():
        print(f"{path:{width}}  {flipped} of {total} activations differ")


def main() -> int:
    """Parse the command line, compare, and print the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=sorted(EXAMPLES), default="digits")
    parser.add_argument("--batch", type=int, help="samples in the step (default: the example's)")
    parser.add_argument("--activation-bits", type=int, choices=ACTIVATION_BITS, default=4, help="bits of an activation")
    parser.add_argument("--weight-bits", type=int, choices=WEIGHT_BITS, default=1, help="bits of a weight")
    parser.add_argument("--activation-grid", choices=ACTIVATION_GRIDS, default="fitted", help="grid of 1 bit")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    try:
        source = load_example(arguments.model, arguments.batch)
        found = compare(source, arguments.activation_bits, arguments.activation_grid, arguments.weight_bits)
    except FqtError as error:
        print(error.render(), file=sys.stderr)
        return 1
    report(found)
    summary = {
        "model": arguments.model,
        "activation_bits": arguments.activation_bits,
        "activation_grid": arguments.activation_grid,
        "weight_bits": arguments.weight_bits,
        "loss_error": found.loss_error,
        "lowest_cosine": min(found.cosines.values()),
        "zero_gradients": len(found.zeros),
        "largest_zero": max(found.zeros.values(), default=0.0),
        "flipped_signs": sum(flipped for flipped, _ in found.flips.values()),
        "signs": sum(total for _, total in found.flips.values()),
        "ok": found.ok,
    }
    print(json.dumps(summary))
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main())
