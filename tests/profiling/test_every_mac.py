"""Every multiply-accumulate of large models belongs to a kernel of its layer, and so to a row; minutes."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fqt_deploy.capture.load_model import load_model
from fqt_deploy.codegen.to_relax import to_relax
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.profiling.kernel_classes import class_of, direction_of
from fqt_deploy.settings import options_of

EXAMPLES = Path(__file__).parents[2] / "examples"
PRODUCTS = {"1-bit products", "fp32 products", "attention"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16_cifar", "resnet18_cifar", "vit_s16"])
def test_products_are_those_that_pytorch_counts(name):
    source = load_model(EXAMPLES / f"{name}.py", batch=4)
    with FlopCounterMode(display=False, depth=99) as counter, torch.no_grad():
        source.call.outputs(source.module, source.example_inputs)
    root = type(source.module).__name__
    counts = {path.removeprefix(root).removeprefix("."): ops for path, ops in counter.get_flop_counts().items()}
    lowered = lower_model(source, options_of({"recipe": "none"}))
    kernels = [k for k in to_relax(lowered.train, lowered.predict).kernels if class_of(k.op) in PRODUCTS]
    found: dict[tuple[str, str], int] = {}
    for kernel in kernels:
        key = (kernel.layer, direction_of(kernel))
        found[key] = found.get(key, 0) + (kernel.flops + kernel.bit_ops) // 2
    leaves = {
        path: sum(ops.values()) // 2
        for path, ops in counts.items()
        if path not in ("", "Global")
        and isinstance(source.module.get_submodule(path), (torch.nn.Conv2d, torch.nn.Linear))
    }
    assert len(leaves) == len(lowered.train.layers)
    for path, macs in leaves.items():
        assert found[path, "forward"] == pytest.approx(macs, rel=0.01), path
        assert found[path, "weight_grad"] == pytest.approx(macs, rel=0.01), path
    attention = [k for k in kernels if class_of(k.op) == "attention" and k.phase == "forward"]
    if (
        name == "vit_s16"
    ):  # PyTorch's counter knows no attention on CPUs: scores and their sums of values, in each block
        assert sum(k.flops // 2 for k in attention) == 12 * 2 * 4 * 6 * 37 * 37 * 64
    ours = sum(macs for (_, direction), macs in found.items() if direction == "forward")
    assert ours - sum(k.flops // 2 for k in attention) == pytest.approx(sum(counts["Global"].values()) // 2, rel=0.01)
