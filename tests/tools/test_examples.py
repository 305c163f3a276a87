"""Examples of vision models: what they are, and what they train on."""

import importlib.util

import pytest
import torch

from fqt_deploy.compiler import check_model
from fqt_deploy.core.options import CompileOptions
from tools.examples import EXAMPLES, load_example

PARAMETERS = {"mobilenet_v3": 1_528_106, "unet": 1_927_075, "vit_s16_96": 21_608_074}
"""Those of torchvision's MobileNetV3-Small and of timm's ViT-S/16 for ten classes; the latter for 96x96 pixels."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_size_and_initial_weights(name):
    one, other = load_example(name).module, load_example(name).module
    assert sum(p.numel() for p in one.parameters()) == PARAMETERS[name]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["mobilenet_v3", "unet"])
def test_data_are_what_the_step_takes(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x, y = module.data(8)
    inputs, targets = module.example_inputs()
    assert (x.shape, y.shape) == ((8, *inputs.shape[1:]), (8, *targets.shape[1:]))
    assert (x.dtype, y.dtype) == (inputs.dtype, targets.dtype)
    assert len(y.unique()) > 1


def test_the_u_net_runs_in_one_bit_but_for_its_ends():
    report = check_model(load_example("unet", batch=2), CompileOptions())
    assert report.ok
    fp32 = {layer.path for layer in report.layers if layer.decision != "1-bit"}
    assert fp32 == {"down.0.0", "head", "enlarge.0", "enlarge.1", "enlarge.2"}
