"""End to end: every recipe compiles, each of its kernels agrees with PyTorch, and the step trains."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fqt_deploy
from fqt_deploy.capture.load_model import ModelSource, load_model
from fqt_deploy.compiler.compile_model import compile_model, lower_model
from fqt_deploy.core.options import CompileOptions

EXAMPLES = Path(__file__).parents[2] / "examples"

RECIPES = [
    ("none", "sampled"), ("psq-8", "sampled"), ("psq-1", "sampled"), ("scq", "sampled"),
    ("scq+agp", "sampled"), ("scq+agp", "topk"), ("scq+agp", "once"), ("scq+agp", "nested"),
]  # fmt: skip


def source_of(batch):
    """Few layers, but stride, padding, partial words and panels, pooling, and both kinds of binarized layers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 40, 3, 2, 1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(160, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip
    x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return ModelSource(model, nn.functional.cross_entropy, (x, torch.arange(batch) % 10))


def transformer_of(batch):
    """Normalization, attention and gated units around residual connections, on eight tokens of a sample."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Flatten(2), nn.Linear(8, 32), layer, nn.Flatten(), nn.Linear(256, 10))
    x = torch.randn(batch, 8, 8, generator=torch.Generator().manual_seed(1))
    return ModelSource(model, nn.functional.cross_entropy, (x, torch.arange(batch) % 10))


WIDTHS = [*zip(RECIPES, itertools.cycle([4, 1]), strict=False), (("scq+agp", "nested"), 4)]
"""Recipes with the bits of an activation: the default, of which every other one has signs instead."""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("recipe", "activation_bits"), WIDTHS, ids=lambda value: "-".join(value) if isinstance(value, tuple) else None
)
def test_every_recipe_agrees_with_pytorch_kernel_by_kernel(tmp_path, recipe, activation_bits):
    (recipe, agp), product = recipe, "binary_conv2d" if activation_bits == 1 else "level_conv2d"
    options = CompileOptions(
        recipe=recipe, agp=agp, activation_bits=activation_bits, activation_grid="sign", verify="numerics"
    )
    result = compile_model(source_of(batch=12 if agp == "once" else 6), options, tmp_path / "step")
    assert result.verification is not None
    assert len(result.verification.rows) == len(result.manifest.kernels) > 50
    assert [row for row in result.verification.rows if not row.ok] == []
    ops = {kernel.op for kernel in result.manifest.kernels}
    assert product in ops
    assert ({"bitplane_weight_grad", "level_weight_grad"} & ops != set()) == (recipe != "none")


@pytest.mark.thorough
def test_a_step_that_keeps_tokens_agrees_with_pytorch_kernel_by_kernel(tmp_path):
    result = compile_model(transformer_of(batch=4), CompileOptions(verify="numerics"), tmp_path / "step")
    assert result.manifest.options["agp"] == "tokens"
    assert result.manifest.options["grad_bits"] == 4
    assert result.verification is not None
    assert [row for row in result.verification.rows if not row.ok] == []
    assert {"select_sampled", "attention_backward", "scatter_rows"} <= {kernel.op for kernel in result.manifest.kernels}


@pytest.mark.thorough
@pytest.mark.parametrize(("batch", "bits", "agp"), [(1, 4, "sampled"), (1, 8, "once"), (2, 8, "topk")])
def test_fewer_samples_than_bits(tmp_path, batch, bits, agp):
    """One group is kept at least, and may be all there is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 33), nn.ReLU(), nn.Linear(33, 40), nn.ReLU(), nn.Linear(40, 3))
    source = ModelSource(model, nn.functional.cross_entropy, (torch.randn(batch, 1, 8, 8), torch.arange(batch)))
    result = compile_model(
        source,
        CompileOptions(grad_bits=bits, agp=agp, optimizer=fqt_deploy.SGD(lr=0.1), verify="numerics"),
        tmp_path / "step",
    )
    assert [row for row in result.verification.rows if not row.ok] == []
    session = fqt_deploy.load(result.output)
    losses = [session.step(*source.example_inputs) for _ in range(20)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("example", ["vgg16_cifar", "resnet18_cifar", "mlp_mixer"])
@pytest.mark.parametrize(("recipe", "agp"), RECIPES)
def test_every_example_agrees_with_pytorch(example, recipe, agp, tmp_path):
    source = load_model(EXAMPLES / f"{example}.py", batch=4)
    options = CompileOptions(recipe=recipe, agp=agp, verify="numerics")
    result = compile_model(source, options, tmp_path / "step")
    assert result.verification is not None
    assert [row for row in result.verification.rows if not row.ok] == []


BATCH, EPOCHS = 8, 4


@pytest.fixture(scope="module")
def step(digits):
    """The digits example and its step, whose kernels are those of ``digits_artifact``."""
    torch.manual_seed(0)
    model = load_model(EXAMPLES / "digits_cnn.py").module
    images, labels = digits
    return model, fqt_deploy.compile(model, example_inputs=(images[:BATCH], labels[:BATCH]))


def test_compiled_step_learns_the_digits(step, digits):
    _, compiled = step
    images, labels = digits
    for epoch in range(EPOCHS):
        compiled.lr = 2e-3 * (1 - epoch / EPOCHS)
        losses = [compiled(images[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, 1344, BATCH)]
    accuracy = (compiled.predict(images[1344:]).argmax(1) == labels[1344:]).float().mean()
    assert np.mean(losses) < 0.6
    assert accuracy >= 0.9


def test_state_moves_between_the_step_and_the_model(step, digits):
    model, compiled = step
    compiled(digits[0][:BATCH], digits[1][:BATCH])
    other = load_model(EXAMPLES / "digits_cnn.py").module
    other.load_state_dict(compiled.state_dict())
    compiled.load_state_dict(other.state_dict())
    first = compiled.predict(digits[0][:5])
    compiled.load_state_dict(model.state_dict())
    assert first.shape == (5, 10)
    assert not np.array_equal(first, compiled.predict(digits[0][:5]))


def test_resuming_gives_the_same_losses_bit_for_bit(step, digits, tmp_path):
    _, compiled = step
    images, labels = digits
    batches = [(images[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, 10 * BATCH, BATCH)]
    for batch in batches[:5]:
        compiled(*batch)
    compiled.save_checkpoint(tmp_path / "here.safetensors")
    onward = [compiled(*batch) for batch in batches[5:]]
    compiled.save(tmp_path / "moved")
    again = fqt_deploy.load(tmp_path / "moved")
    again.load_checkpoint(tmp_path / "here.safetensors")
    assert [again.step(*batch) for batch in batches[5:]] == onward


class Unusual(nn.Module):
    """Layers that are lowered by way of others, and a body whose statistics are frozen."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, 16, 2), nn.BatchNorm2d(16), nn.ELU())
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.Softplus())
        self.pool = nn.Sequential(nn.AdaptiveMaxPool2d(4), nn.Conv2d(32, 32, 1), nn.AdaptiveAvgPool2d(2))
        self.attention, self.head = nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 10)
        self.stem.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.stem[2].eval()
        return self

    def forward(self, x):
        x = self.pool(self.body(self.stem(x))).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


@pytest.mark.thorough
def test_unusual_layers_and_losses(tmp_path):
    """Frozen parameters stay, class weights and a mean over everything count, predictions are the model's."""
    weight = torch.linspace(0.5, 2, 10)

    def loss_fn(outputs, labels):
        ranked = nn.functional.cross_entropy(outputs, labels, weight=weight, label_smoothing=0.1)
        return ranked + nn.functional.mse_loss(outputs, weight.expand(16, 10)) / 10

    torch.manual_seed(0)
    model, x = Unusual(), torch.randn(16, 1, 8, 8)
    source = ModelSource(model, loss_fn, (x, torch.arange(16) % 10))
    options = CompileOptions(recipe="none", exclude=("*",), optimizer=fqt_deploy.Adam(lr=1e-2), verify="numerics")
    result = compile_model(source, options, tmp_path / "step")
    assert [row for row in result.verification.rows if not row.ok] == []
    assert [check for check in result.verification.passes if not check.ok] == []
    session = fqt_deploy.load(result.output)
    with torch.no_grad():
        np.testing.assert_allclose(session.predict(x), model.eval()(x).numpy(), rtol=1e-3, atol=1e-4)
    before = session.state_dict()
    losses = [session.step(*source.example_inputs) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    after = session.state_dict()
    assert {n for n in before if np.array_equal(before[n], after[n])} == {n for n in before if n.startswith("stem.")}


@pytest.mark.thorough
def test_passes_are_deterministic():
    from fqt_deploy.core.text import graph_text

    texts = [graph_text(lower_model(source_of(batch=4), CompileOptions()).train) for _ in range(2)]
    assert texts[0] == texts[1]


def test_one_and_two_threads_give_the_same_bits(step, digits, tmp_path):
    step[1].save(tmp_path / "step")
    np.savez(tmp_path / "data.npz", x=digits[0][:BATCH].numpy(), y=digits[1][:BATCH].numpy())
    program = (
        "import sys, numpy as np, fqt_deploy; d = np.load(sys.argv[2]); s = fqt_deploy.load(sys.argv[1]);"
        "print([s.step(d['x'], d['y']) for _ in range(5)], {n: float(a.sum()) for n, a in s.state_dict().items()});"
        "assert 'torch' not in sys.modules and 'tvm' not in sys.modules"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "step"), str(tmp_path / "data.npz")],
            env={**os.environ, "FQT_NUM_THREADS": threads}, capture_output=True, text=True, check=True,
        ).stdout
        for threads in ("1", "2")
    ]  # fmt: skip
    assert outputs[0] == outputs[1]
