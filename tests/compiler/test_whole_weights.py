"""Weights of several bits: products that stay whole, steps that learn, and what else reads the bits of a weight."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import fqt_deploy
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.passes.split_weight_planes import products_of_planes
from fqt_deploy.settings import options_of

WIDTH = 64


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, padding=1),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(WIDTH, 32),
        nn.Tanh(),
        nn.Linear(32, 4),
    )


def batch():
    g = torch.Generator().manual_seed(0)
    return torch.randn(16, 3, 8, 8, generator=g), torch.randint(0, 4, (16,), generator=g)


def lowered(whole=True, **settings):
    source = ModelSource(network(), nn.functional.cross_entropy, batch())
    return lower_model(source, options_of({"recipe": "scq", "weight_bits": 4, **settings}), whole=whole)


@pytest.mark.parametrize(
    ("processor", "bits", "whole"),
    [("sapphirerapids", 2, True), ("x86-64-v3", 4, True), ("x86-64-v3", 2, False), ("x86-64-v2", 4, False)],
)
def test_products_stay_whole_where_the_processor_multiplies_bytes(processor, bits, whole):
    """The convolution's in tiles where there are some, the linear layer's in vector registers."""
    graphs = lowered(mcpu=processor, weight_bits=bits)
    layers = {node.meta["layer"] for node in products_of_planes(graphs.train)}
    assert layers == ({"3", "8"} if whole else set())
    assert {node.meta["layer"] for node in products_of_planes(graphs.predict)} == layers


def test_other_targets_and_exports_split_them_all():
    assert not products_of_planes(lowered(target="aarch64").train)
    assert not products_of_planes(lowered(whole=False, mcpu="sapphirerapids").train)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_step_learns_and_is_a_module(bits):
    x, y = batch()
    step = fqt_deploy.compile(network(), example_inputs=(x, y), bits={"3": (bits, 4), "8": (bits, 2)}, lr=3e-3)
    losses = [float(step(x, y)) for _ in range(30)]
    assert losses[-1] < 0.6 * losses[0]
    found = {layer.path: (layer.weight_bits, layer.activation_bits) for layer in step.manifest.layers}
    assert (found["3"], found["8"]) == ((bits, 4), (bits, 2))
    assert f"weights of {bits} bits" in next(x.reason for x in step.manifest.layers if x.path == "3")
    with torch.no_grad():
        torch.testing.assert_close(step.predict(x), step.to_torch()(x), rtol=1e-4, atol=1e-4)


def test_a_channel_of_zeros_learns():
    model = network()
    nn.init.zeros_(model[8].weight[:5])
    x, y = batch()
    step = fqt_deploy.compile(model, example_inputs=(x, y), weight_bits=2, recipe="none")
    for _ in range(2):
        step(x, y)
    weight = step.state_dict()["8.weight"]
    assert torch.isfinite(weight).all()
    assert (weight.abs().amax(1) > 0).all()


def test_the_prediction_as_onnx(tmp_path):
    from fqt_deploy.compiler.export_onnx import export_onnx_any_batch

    x, y = batch()
    settings = {"recipe": "none", "weight_bits": 2}
    step = fqt_deploy.compile(network(), example_inputs=(x, y), **settings)
    source = ModelSource(network(), nn.functional.cross_entropy, (x, y))
    export_onnx_any_batch(source, options_of(settings), tmp_path / "net.onnx", None)
    session = onnxruntime.InferenceSession(onnx.load(tmp_path / "net.onnx").SerializeToString())
    (logits,) = session.run(["logits"], {"x": x.numpy()})
    np.testing.assert_allclose(logits, step.predict(x).numpy(), rtol=1e-4, atol=1e-4)


def test_manifests_from_before_have_signs():
    x, y = batch()
    step = fqt_deploy.compile(network(), example_inputs=(x, y), recipe="none", exclude=("*",))
    text = step.manifest.to_json()
    assert '"weight_bits": 1' in text
    older = text.replace(',\n   "weight_bits": 1', "")
    assert "weight_bits" not in older
    assert Manifest.from_json(older) == step.manifest
