"""End to end: every recipe compiles, each of its kernels agrees with PyTorch, and the step trains."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fqt_deploy
from fqt_deploy.capture.load_model import load_model
from fqt_deploy.compiler import compile_model
from fqt_deploy.compiler.compile_model import lower_model
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
    compiled(digits[0][:32], digits[1][:32])
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
