"""Every example as a PyTorch module: it predicts what the step does, with activations of one bit and of several."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fqt_deploy.binary_layers import BinaryConv1D, BinaryConv2d, BinaryLinear
from fqt_deploy.capture.load_model import ModelSource, load_model
from fqt_deploy.capture.model_call import predicted
from fqt_deploy.compiled_step import CompiledStep
from fqt_deploy.compiler.check import check_model
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core.layer_bits import ACTIVATION_BITS
from fqt_deploy.runtime.artifact import read_artifact
from fqt_deploy.runtime.library import Library
from fqt_deploy.settings import merge_settings, options_of
from tools.examples import PACKAGES

pytestmark = pytest.mark.thorough

EXAMPLES = {path.stem: path for path in sorted((Path(__file__).parents[2] / "examples").glob("*.py"))}
STEPS = 3
BATCH = 4
ROUNDING = 2e-6
"""Distance from an edge below which rounding may decide an activation's code; the activations are of unit scale."""


def compiled(source: ModelSource, **settings: Any) -> CompiledStep:
    """The step of an example, trained for some steps; gradients in fp32, which are no matter here."""
    folder = tempfile.TemporaryDirectory()
    options = options_of(merge_settings(source.options, {"recipe": "none", **settings}))
    manifest, state, library = read_artifact(compile_model(source, options, Path(folder.name) / "step").output)
    step = CompiledStep(manifest, Library(library), state)
    step.folder, step.source = folder, source
    for _ in range(STEPS):
        step.step(*source.example_inputs)
    return step


def each_its_own(source: ModelSource) -> dict[str, tuple[int, int]]:
    """Bits for the layers that run in 1 bit: 2, 3, 4, 8 and 1 in turn."""
    report = check_model(source, options_of(merge_settings(source.options, {"recipe": "none"})))
    paths = [layer.path for layer in report.layers if layer.decision == "1-bit"]
    return {path: (1, bits) for path, bits in zip(paths, itertools.cycle([*ACTIVATION_BITS[1:], 1]), strict=False)}


@pytest.mark.quick(only=("digits_cnn-bits",))
@pytest.mark.parametrize("several", [False, True], ids=["signs", "bits"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "digits_cnn" else pytest.mark.slow) for n in EXAMPLES]
)
def test_the_module_predicts_what_the_step_predicts(name: str, several: bool) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    source = load_model(EXAMPLES[name], batch=BATCH)
    bits = each_its_own(source) if several else {}
    step = compiled(source, bits=bits)
    assert {d.path: (1, d.activation_bits) for d in step.manifest.layers if d.path in bits} == bits
    module = step.to_torch()
    inputs = source.example_inputs[: source.call.inputs]
    decided = torch.ones(BATCH, dtype=torch.bool)

    def note(layer: nn.Module, arguments: tuple[Tensor, ...], _: Tensor) -> None:
        """Sums in another order decide the code of what is within rounding of an edge, and with it a result."""
        x, grid = arguments[0].reshape(BATCH, -1), layer.grid
        if grid is None:
            clear = (x == 0) | (x.abs() > ROUNDING)  # a ReLU's 0 is exact
        else:
            position = x / grid.spacing if grid.signed else x / grid.spacing + 0.5
            clear = (position - position.round()).abs() * grid.spacing > ROUNDING
        decided.logical_and_(clear.all(1))

    for layer in module.modules():
        if isinstance(layer, (BinaryConv1D, BinaryConv2d, BinaryLinear)):
            layer.register_forward_hook(note)
    with torch.no_grad():
        theirs = predicted(source.call.outputs(module, inputs), step.manifest.prediction, "evaluation")[1].numpy()
    ours = step.predict(*inputs)
    limit = 1e-5 * np.abs(ours) + 1e-5 * np.abs(ours).max()
    equal = (np.abs(theirs - ours) <= limit).reshape(BATCH, -1).all(1)
    assert equal.any()
    assert (equal | ~decided.numpy()).all(), np.abs(theirs - ours).max()
