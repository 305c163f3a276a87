"""Whether the rows of a profile add up: kernels to the measured step, multiply-accumulates to those of the model.

Example: ``python -m tools.check_rows vgg16_cifar.fqt --model examples/vgg16_cifar.py``. Instead of the artifact it
takes what ``fqt-profile --save`` wrote. PyTorch counts the model's multiply-accumulates. Exit code 1 if something is
missing, or time is. On a busy machine only the kernels and the step that held them are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fqt_deploy.capture.load_model import ModelSource, load_model
from fqt_deploy.profiling.kernel_classes import class_of
from fqt_deploy.profiling.profile_artifact import profile_artifact
from fqt_deploy.profiling.step_profile import StepProfile, read_profile
from fqt_deploy.profiling.torch_times import attention_calls

APART = 0.05
"""Share of the step by which the sum of its kernels may differ."""
_ROUNDING = 0.01
"""What the counts may differ by: padding counts differently, and other work of a layer's products, such as scales."""
_PRODUCTS = ("1-bit products", "fp32 products", "attention")


def main() -> None:
    """Measure or read, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path, metavar="DIR_OR_JSON")
    parser.add_argument("--model", type=Path, required=True, help="the model file that was compiled")
    arguments = parser.parse_args()
    path: Path = arguments.profile
    profile = read_profile(path) if path.is_file() else profile_artifact(path)
    macs = model_macs(load_model(arguments.model, batch=(profile.batch,)))
    for doubt in profile.doubts:
        print(f"warning: {doubt}: times are void")
    sums, filled = profile.kernels_s / profile.step_s, filled_share(profile)
    print(
        f"step {1e3 * profile.step_s:.2f} ms, {len(profile.kernels)} kernels sum to {1e3 * profile.kernels_s:.2f} ms, "
        f"{100 * sums:.1f} % of it; within one step with a clock they fill {100 * filled:.1f} %"
    )
    whole = sum(macs.values())
    print(f"PyTorch counts {whole / 1e6:.1f} M multiply-accumulates in forward, of {len(macs)} layers")
    missing = list(missing_rows(profile, macs))
    print("\n".join(missing) or "all of them belong to kernels of their layers, and every layer has its backward")
    adds_up = filled >= 1 - APART and (abs(sums - 1) <= APART or profile.doubts)
    sys.exit(0 if adds_up and not missing else 1)


def filled_share(profile: StepProfile) -> float:
    """The share of a step that is in its kernels, both of the same steps: other processes do not change it."""
    return statistics.median(
        sum(end - begin for begin, end in step.kernels) / (step.end - step.begin) for step in profile.timed
    )


def model_macs(source: ModelSource) -> dict[str, int]:
    """Multiply-accumulates of forward by module path: of convolutions, linear layers and attention."""
    with FlopCounterMode(display=False, depth=99) as counter, torch.no_grad():
        source.call.outputs(source.module, source.example_inputs)
    root = type(source.module).__name__
    counts = {path.removeprefix(root).removeprefix("."): ops for path, ops in counter.get_flop_counts().items()}
    found = {
        path: sum(counts[path].values()) // 2
        for path, module in source.module.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and path in counts
    }
    for path, (args, _) in attention_calls(source).items():  # the counter knows no attention on CPUs
        query, key, value = args[:3]
        scores = query.numel() // query.shape[-1] * key.shape[-2]
        found[path] = scores * (query.shape[-1] + value.shape[-1])
    return found


def missing_rows(profile: StepProfile, macs: Mapping[str, int]) -> Iterator[str]:
    """Sentences about layers whose work is not in their rows; none if all is there.

    Args:
        profile: a profile, or what was measured of one.
        macs: multiply-accumulates of forward by layer, of single bits where it is in 1 bit for each bit of activations.
    """
    bits = {layer.path: layer.activation_bits for layer in profile.layers if layer.decision == "1-bit"}
    forward: dict[str, int] = {}
    backward: set[str] = set()
    for kernel in profile.kernels:
        if class_of(kernel.op) in _PRODUCTS:
            if kernel.phase == "forward":
                forward[kernel.layer] = forward.get(kernel.layer, 0) + (kernel.flops + kernel.bit_ops) // 2
            else:
                backward.add(kernel.layer)
    for path, expected in macs.items():
        computed = forward.pop(path, 0) / bits.get(path, 1)
        if abs(computed - expected) > _ROUNDING * expected:
            told = f"{computed / 1e6:.2f} M multiply-accumulates in forward"
            yield f"{path}: {told}, and {expected / 1e6:.2f} M in PyTorch"
        if path not in backward:
            yield f"{path}: no product in backward"
    for path, computed in forward.items():
        yield f"{path or '(step)'}: {computed / 1e6:.2f} M multiply-accumulates that PyTorch does not count"


if __name__ == "__main__":
    main()
