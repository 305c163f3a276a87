"""End to end: every recipe compiles, each of its kernels agrees with PyTorch, and the step trains."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fqt_deploy
from fqt_deploy.capture.load_model import load_model
from fqt_deploy.compiler import compile_model
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.core.options import CompileOptions

EXAMPLES = Path(__file__).parents[2] / "examples"

RECIPES = [
    ("none", "sampled"), ("psq-8", "sampled"), ("psq-1", "sampled"), ("scq", "sampled"),
    ("scq+agp", "sampled"), ("scq+agp", "topk"), ("scq+agp", "once"),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "agp"), RECIPES)
def test_every_recipe_agrees_with_pytorch_kernel_by_kernel(digits_source, tmp_path, recipe, agp):
    options = CompileOptions(recipe=recipe, agp=agp, verify="numerics")
    result = compile_model(digits_source, options, tmp_path / "step")
    assert result.verification is not None
    assert len(result.verification.rows) == len(result.manifest.kernels) > 50
    assert [row for row in result.verification.rows if not row.ok] == []
    products = {kernel.op for kernel in result.manifest.kernels}
    assert "binary_conv2d" in products
    assert ("bitplane_weight_grad" in products) == (recipe != "none")


@pytest.mark.slow
@pytest.mark.parametrize("example", ["vgg16_cifar", "resnet18_cifar", "mlp_mixer"])
@pytest.mark.parametrize(("recipe", "agp"), RECIPES)
def test_every_example_agrees_with_pytorch(example, recipe, agp, tmp_path):
    source = load_model(EXAMPLES / f"{example}.py", batch=4)
    options = CompileOptions(recipe=recipe, agp=agp, verify="numerics")
    result = compile_model(source, options, tmp_path / "step")
    assert result.verification is not None
    assert [row for row in result.verification.rows if not row.ok] == []


class Sign(torch.autograd.Function):
    """+1 or -1, exactly; the gradient passes where the magnitude is below 1."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x > 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.saved_tensors[0].abs() < 1)


class FakeQuantized(nn.Module):
    """The reference of recipe ``none`` in eager mode: signs, scales and straight-through gradients by autograd.

    The scale is applied to the product of signs, an integer: so equal values tie in max pooling here as they do there.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        layer, w = self.layer, self.layer.weight
        alpha = w.abs().flatten(1).mean(1)
        signs = Sign.apply(x), Sign.apply(w)
        if isinstance(layer, nn.Conv2d):
            alpha = alpha.view(-1, 1, 1)
            bias = 0 if layer.bias is None else layer.bias.view(-1, 1, 1)
            return nn.functional.conv2d(*signs, None, layer.stride, layer.padding) * alpha + bias
        return nn.functional.linear(*signs) * alpha + (0 if layer.bias is None else layer.bias)


def fake_quantized(model: nn.Module, paths: list[str]) -> nn.Module:
    model = copy.deepcopy(model)
    for path in paths:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, name, FakeQuantized(owner.get_submodule(name)))
    return model.train()


def as_if_trained(source):
    """The model with random norm parameters.

    At initialization batch norm subtracts the mean of integers, often an integer itself: many signs are then taken of
    rounding noise around exactly zero, and differ between any two orders of summation.
    """
    module = copy.deepcopy(source.module)
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.LayerNorm)):
            layer.weight.data += 0.2 * torch.randn(layer.weight.shape, generator=generator)
            layer.bias.data += 0.2 * torch.randn(layer.bias.shape, generator=generator)
    return dataclasses.replace(source, module=module)


def compare_with_eager(source, tmp_path):
    """Relative error of the loss and cosine of every parameter's gradient, from one step of plain SGD."""
    source = as_if_trained(source)
    options = CompileOptions(recipe="none", optimizer=SGD(lr=1.0))
    result = compile_model(source, options, tmp_path / "step")
    step = fqt_deploy.load(tmp_path / "step")
    before = step.state_dict()
    loss = step.step(*source.example_inputs)
    after = step.state_dict()
    eager = fake_quantized(source.module, [r.path for r in result.manifest.layers if r.decision == "1-bit"])
    expected = source.loss_fn(eager(source.example_inputs[0]), source.example_inputs[1])
    expected.backward()
    gradients = {n.replace(".layer.", "."): p.grad.numpy() for n, p in eager.named_parameters() if p.grad is not None}
    cosines = {}
    for name, gradient in gradients.items():
        ours = (before[name] - after[name]).ravel().astype(np.float64)
        theirs = gradient.ravel().astype(np.float64)
        cosines[name] = ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs) + 1e-30)
    return abs(loss - expected.item()) / abs(expected.item()), cosines


def test_recipe_none_is_what_eager_fake_quantization_computes(digits_source, tmp_path):
    error, cosines = compare_with_eager(digits_source, tmp_path)
    assert error < 1e-3
    assert len(cosines) == len(list(digits_source.module.parameters()))
    assert min(cosines.values()) > 0.999, cosines


@pytest.mark.slow
@pytest.mark.parametrize(("example", "batch"), [("vgg16_cifar", 32), ("resnet18_cifar", 16)])
def test_recipe_none_of_large_models_is_what_eager_fake_quantization_computes(example, batch, tmp_path):
    error, cosines = compare_with_eager(load_model(EXAMPLES / f"{example}.py", batch=batch), tmp_path)
    assert error < 1e-3
    assert min(cosines.values()) > 0.999, {n: c for n, c in cosines.items() if c <= 0.999}


@pytest.fixture(scope="module")
def step(digits):
    torch.manual_seed(0)
    model = load_model(EXAMPLES / "digits_cnn.py").module
    images, labels = digits
    return model, fqt_deploy.compile(
        model, example_inputs=(images[:32], labels[:32]), optimizer=fqt_deploy.Adam(lr=2e-3), agp="once"
    )


def test_compiled_step_learns_the_digits(step, digits):
    _, compiled = step
    images, labels = digits
    for epoch in range(6):
        compiled.lr = 2e-3 * (1 - epoch / 6)
        losses = [compiled(images[i : i + 32], labels[i : i + 32]) for i in range(0, 1344, 32)]
    accuracy = (compiled.predict(images[1344:]).argmax(1) == labels[1344:].numpy()).mean()
    assert np.mean(losses) < 0.6
    assert accuracy >= 0.9


def test_state_moves_between_the_step_and_the_model(step, digits):
    model, compiled = step
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
    batches = [(images[i : i + 32], labels[i : i + 32]) for i in range(0, 320, 32)]
    for batch in batches[:5]:
        compiled(*batch)
    compiled.save_checkpoint(tmp_path / "here.safetensors")
    onward = [compiled(*batch) for batch in batches[5:]]
    compiled.save(tmp_path / "moved")
    again = fqt_deploy.load(tmp_path / "moved")
    again.load_checkpoint(tmp_path / "here.safetensors")
    assert [again.step(*batch) for batch in batches[5:]] == onward


def test_passes_are_deterministic(digits_source):
    from fqt_deploy.core.dump import graph_text

    texts = [graph_text(lower_model(digits_source, CompileOptions()).train) for _ in range(2)]
    assert texts[0] == texts[1]


def test_one_and_two_threads_give_the_same_bits(digits_source, tmp_path):
    import os
    import subprocess
    import sys

    source = load_model(EXAMPLES / "digits_cnn.py", batch=64)
    compile_model(source, CompileOptions(), tmp_path / "step")
    x, y = source.example_inputs
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
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
