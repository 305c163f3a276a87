"""Examples of models for images and texts: what they are, and what they train on."""

import importlib.util
import sys

import pytest
import torch

from fqt_deploy.compiler.check import check_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions
from tools.examples import EXAMPLES, PACKAGES, load_example

PARAMETERS = {"mobilenet_v3": 1_528_106, "unet": 1_927_075, "vit_s16_96": 21_608_074}
"""Those of torchvision's MobileNetV3-Small and of timm's ViT-S/16 for ten classes; the latter for 96x96 pixels."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_size_and_initial_weights(name):
    one, other = load_example(name).module, load_example(name).module
    assert sum(p.numel() for p in one.parameters()) == PARAMETERS[name]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def module_of(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["mobilenet_v3", "unet"])
def test_data_are_what_the_step_takes(name):
    module = module_of(name)
    x, y = module.data(8)
    inputs, targets = module.example_inputs()
    assert (x.shape, y.shape) == ((8, *inputs.shape[1:]), (8, *targets.shape[1:]))
    assert (x.dtype, y.dtype) == (inputs.dtype, targets.dtype)
    assert len(y.unique()) > 1


@pytest.mark.thorough
def test_the_u_net_runs_in_one_bit_but_for_its_ends():
    report = check_model(load_example("unet", batch=2), CompileOptions())
    assert report.ok
    fp32 = {layer.path for layer in report.layers if layer.decision != "1-bit"}
    assert fp32 == {"down.0.0", "head", "enlarge.0", "enlarge.1", "enlarge.2"}


def test_sentences_are_padded_labelled_and_always_the_same():
    module = module_of("bert_sst2")
    data = module.sentences(200, seed=3)
    ids, mask, labels = data["input_ids"], data["attention_mask"], data["labels"]
    assert all(torch.equal(tensor, module.sentences(200, seed=3)[name]) for name, tensor in data.items())
    assert torch.equal(ids != 0, mask == 1)
    assert 0.35 < labels.double().mean() < 0.65
    assert (int(ids.max()) < len(module.WORDS), len(set(module.WORDS))) == (True, len(module.WORDS))
    assert len(set(mask.sum(1).tolist())) > 10, "sentences have many lengths"


def test_text_is_cut_into_sequences_of_which_some_are_held_out():
    module = module_of("distilgpt2_lm")
    train, held_out = module.sequences(), module.sequences(held_out=True)
    assert torch.equal(train["input_ids"], train["labels"])
    together = torch.cat([train["input_ids"], held_out["input_ids"]]).flatten()
    text = module.text()[: together.numel()]
    assert together.tolist() == [ord(character) if character.isascii() else 0 for character in text]
    assert len(held_out["labels"]) == pytest.approx(0.1 * together.numel() / module.LENGTH, abs=1)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(FqtError, match=f"pip install {PACKAGES[name]}"):
        load_example(name)


@pytest.mark.parametrize(("name", "fp32"), [("bert_sst2", {"classifier"}), ("distilgpt2_lm", {"transformer.wte"})])
def test_models_of_transformers_run_in_one_bit_but_for_their_heads(name, fp32):
    pytest.importorskip(PACKAGES[name])
    report = check_model(load_example(name, batch=2), CompileOptions())
    assert report.ok
    assert {layer.path for layer in report.layers if layer.decision != "1-bit"} == fp32
