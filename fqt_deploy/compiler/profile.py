"""Time a compiled step kernel by kernel, beside PyTorch's fp32 for the same layers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from torch import Tensor, nn

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.runtime.artifact import read_artifact
from fqt_deploy.runtime.threads import configure_threads
from fqt_deploy.targets.registry import make_target

DIRECTIONS = ("forward", "input_grad", "weight_grad")
_REPEATS = 5


@dataclass(frozen=True)
class LayerTiming:
    """Time of one direction of one layer, or of one kind of kernel in the rest of the step.

    Attributes:
        layer: module path; "" for the rest of the step.
        direction: ``forward``, ``input_grad``, ``weight_grad``, or the kind of kernel.
        ours_s: our seconds in one step, packing and quantization included.
        torch_s: PyTorch's fp32 seconds for the same product on the same threads; None where there is no counterpart.
    """

    layer: str
    direction: str
    ours_s: float
    torch_s: float | None


def check_can_profile(options: CompileOptions) -> None:
    """FQT402 if the target's code does not run on this machine; an emulator's times mean nothing."""
    toolchain = make_target(options.target, options.target_options).toolchain
    if not toolchain.is_native:
        raise FqtError(
            f"code for {toolchain.arch} cannot be timed on this machine",
            code="FQT402",
            hint="compile without --profile; python -m tools.count_instructions counts instructions",
        )


def profile_artifact(source: ModelSource, output: Path) -> list[LayerTiming]:
    """Time the step in ``output`` and PyTorch's layers; the rows' ``ours_s`` add up to the measured step.

    Args:
        source: the model that was compiled.
        output: its artifact.
    """
    threads = configure_threads()
    manifest, state, library = read_artifact(output)
    if manifest.target["name"] != "cpu":
        raise FqtError(
            f"--profile times steps for the CPU, not for {manifest.target['name']}",
            code="FQT202",
            hint="time a step for a GPU with tools/bench_gpu.py",
        )
    kernels = kernel_seconds(manifest, state, library, source.example_inputs)
    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        theirs = _torch_seconds(source)
    finally:
        torch.set_num_threads(previous)
    ours: dict[tuple[str, str], float] = {}
    for info, seconds in zip(manifest.kernels, kernels, strict=True):
        belongs = info.phase in DIRECTIONS and any(layer.path == info.layer for layer in manifest.layers)
        key = (info.layer, info.phase) if belongs and _serves_layer(info.op) else ("", info.op)
        ours[key] = ours.get(key, 0.0) + seconds
    order = {layer.path: i for i, layer in enumerate(manifest.layers)}
    layers = sorted((k for k in ours if k[0]), key=lambda k: (order[k[0]], DIRECTIONS.index(k[1])))
    rest = sorted((k for k in ours if not k[0]), key=lambda k: -ours[k])
    return [LayerTiming(*key, ours[key], theirs.get(key)) for key in (*layers, *rest)]


_LAYER_FAMILIES = ("products", "packing", "quantization", "selection")
"""Folders of ops whose time is their layer's; the others serve the layers between them."""


def _serves_layer(name: str) -> bool:
    op = FQT_OPS.get(name)
    return op is not None and op.family() in _LAYER_FAMILIES


def kernel_seconds(
    manifest: Manifest, state: dict[str, np.ndarray[Any, Any]], library: Path, example: Sequence[Tensor]
) -> list[float]:
    """Median seconds of each kernel call of the step, in execution order."""
    device = tvm.cpu()
    machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(library)), device)
    rates = np.array([group["lr"] for group in manifest.optimizer.groups], dtype=np.float32)
    own = [state[name] for name in manifest.variants[0].state]
    arrays = [*(tensor.numpy() for tensor in example), np.array(manifest.seed, dtype=np.int64), rates, *own]
    operands = [tvm.runtime.tensor(np.array(a, order="C")) for a in arrays]
    symbols = {info.symbol for info in manifest.kernels}
    runs: list[list[float]] = []
    begun = 0.0

    def instrument(_function: Any, symbol: str, before: bool, _result: Any, *_args: Any) -> int:
        nonlocal begun
        if symbol in symbols:
            if before:
                begun = time.perf_counter()
            else:
                runs[-1].append(time.perf_counter() - begun)
        return 0

    machine.set_instrument(instrument)
    for _ in range(_REPEATS + 1):
        runs.append([])
        machine["train_step"](*operands)
    return [statistics.median(times) for times in zip(*runs[1:], strict=True)]


def _torch_seconds(source: ModelSource) -> dict[tuple[str, str], float]:
    """PyTorch's seconds by layer and direction, in channels-last fp32, on the shapes that the model feeds it."""
    shapes: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
            shapes[name] = (module, args[0].detach(), result.detach())

        return hook

    layers = {n: m for n, m in source.module.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    handles = [module.register_forward_hook(record(name)) for name, module in layers.items()]
    with torch.no_grad():
        source.call.outputs(source.module, source.example_inputs)
    for handle in handles:
        handle.remove()
    found = {}
    for name, (module, x, y) in shapes.items():
        for direction, run in _products(module, x, torch.randn_like(y)).items():
            found[name, direction] = _seconds(run)
    return found


def _products(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Callable[[], Any]]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    if isinstance(module, nn.Conv2d):
        x, g, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, g, weight))
        geometry = (module.stride, module.padding, module.dilation, False, [0, 0], module.groups)

        def backward(*mask: bool) -> Callable[[], Any]:
            return lambda: torch.ops.aten.convolution_backward(g, x, weight, None, *geometry, mask)

        forward = torch.ops.aten.convolution
        return {
            "forward": lambda: forward(x, weight, None, *geometry),
            "input_grad": backward(True, False, False),
            "weight_grad": backward(False, True, False),
        }
    rows, gradient = x.flatten(0, -2), g.flatten(0, -2)
    return {
        "forward": lambda: rows @ weight.t(),
        "input_grad": lambda: gradient @ weight,
        "weight_grad": lambda: gradient.t() @ rows,
    }


def _seconds(run: Callable[[], Any]) -> float:
    times = []
    with torch.no_grad():
        for _ in range(_REPEATS + 1):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
