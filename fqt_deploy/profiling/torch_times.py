"""PyTorch's times for the same model, batch and machine: of whole steps, and of layers by direction.

Of this package only this module needs PyTorch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.profiling.machine import OtherWork
from fqt_deploy.profiling.step_profile import TorchTimes
from fqt_deploy.runtime.threads import configure_threads

MODES = ("fp32", "bf16", "compile")
"""The ways to run PyTorch's step, in channels-last where there are images; ``compile`` is fp32 through it."""
_REPEATS = 5
_LONG_S = 2.0
"""A step that takes longer is measured twice, not more often."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_Products = dict[str, Callable[[], Any]]
_Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments by position and by name."""


def torch_times(source: ModelSource, modes: Sequence[str]) -> TorchTimes:
    """Measure whole steps in ``modes``, and layers in fp32 and bf16 where these are among them.

    Args:
        source: model, loss and batch; its weights are changed.
        modes: some of ``MODES``.
    """
    previous = torch.get_num_threads()
    torch.set_num_threads(configure_threads())
    try:
        with OtherWork() as others:
            layers = {mode: _layer_seconds(source, _DTYPES[mode]) for mode in modes if mode in _DTYPES}
            steps = {mode: _seconds(_step(source, mode)) for mode in modes}
        return TorchTimes(steps, layers, others.cores)
    finally:
        torch.set_num_threads(previous)


def _step(source: ModelSource, mode: str) -> Callable[[], Any]:
    """A step of forward, loss, backward and AdamW; moments of other optimizers cost little beside."""
    module = source.module.train()
    images = any(tensor.dim() == 4 for tensor in source.example_inputs)
    if images:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tensors = [
        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 and t.is_floating_point() else t
        for t in source.example_inputs
    ]
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, foreach=True)

    def loss_of(*batch: Tensor) -> Tensor:
        loss: Tensor = source.loss_and_outputs(module, batch)[0]
        return loss

    forward = torch.compile(loss_of) if mode == "compile" else loss_of

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16) if mode == "bf16" else nullcontext():
            loss = forward(*tensors)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _layer_seconds(source: ModelSource, dtype: torch.dtype) -> dict[str, float]:
    """Seconds by ``LAYER DIRECTION``, on the shapes that the model feeds its layers."""
    found = {}
    for layer, products in _layers(source, dtype):
        for direction, run in products.items():
            found[f"{layer} {direction}"] = _seconds(run)
    return found


def _layers(source: ModelSource, dtype: torch.dtype) -> Iterator[tuple[str, _Products]]:
    layers, attention = _seen(source)
    for name, (module, x, y) in layers.items():
        yield name, _products(module, x.to(dtype), torch.randn_like(y, dtype=dtype))
    for name, (args, options) in attention.items():
        yield name, _attention(args, options, dtype)


def _seen(source: ModelSource) -> tuple[dict[str, tuple[nn.Module, Tensor, Tensor]], dict[str, _Call]]:
    """Each convolution and linear layer with operand and result, and each call of attention, in one forward."""
    shapes: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
    within: list[str] = []
    attention = _AttentionCalls(within)

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            within.append(name)

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
            within.pop()
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                shapes[name] = (module, args[0].detach(), result.detach())

        return hook

    handles = []
    for name, module in source.module.named_modules():
        handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave(name))]
    try:
        with torch.no_grad(), attention:
            source.call.outputs(source.module, source.example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return shapes, attention.found


def attention_calls(source: ModelSource) -> dict[str, _Call]:
    """The arguments of each call of PyTorch's attention, by the module that makes it."""
    return _seen(source)[1]


class _AttentionCalls(TorchFunctionMode):
    """Notes the calls of PyTorch's attention by the module that makes them; ``within`` is the stack of modules."""

    def __init__(self, within: list[str]) -> None:
        super().__init__()
        self._within = within
        self.found: dict[str, _Call] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention and self._within:
            self.found[self._within[-1]] = (args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _attention(args: tuple[Any, ...], options: dict[str, Any], dtype: torch.dtype) -> _Products:
    operands = [t.detach().to(dtype).requires_grad_() for t in args[:3]]
    rest = [t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t for t in args[3:]]

    def forward() -> Tensor:
        output: Tensor = nn.functional.scaled_dot_product_attention(*operands, *rest, **options)
        return output

    with torch.enable_grad():
        output = forward()
    gradient = torch.randn_like(output)
    return {
        "forward": forward,
        "backward": lambda: torch.autograd.grad(output, operands, gradient, retain_graph=True),
    }


def _products(module: nn.Module, x: Tensor, g: Tensor) -> _Products:
    assert isinstance(module.weight, Tensor)
    weight = module.weight.detach().to(x.dtype)
    if isinstance(module, nn.Conv2d):
        x, g, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, g, weight))
        geometry = (module.stride, _padding(module), module.dilation, False, [0, 0], module.groups)

        def backward(*mask: bool) -> Callable[[], Any]:
            return lambda: torch.ops.aten.convolution_backward(g, x, weight, None, *geometry, mask)

        return {
            "forward": lambda: torch.ops.aten.convolution(x, weight, None, *geometry),
            "input_grad": backward(True, False, False),
            "weight_grad": backward(False, True, False),
        }
    rows, gradient = x.flatten(0, -2), g.flatten(0, -2)
    return {
        "forward": lambda: rows @ weight.t(),
        "input_grad": lambda: gradient @ weight,
        "weight_grad": lambda: gradient.t() @ rows,
    }


def _padding(module: nn.Conv2d) -> tuple[int, ...]:
    """The zeros on each side as numbers, also where the module says ``same`` or ``valid``."""
    if not isinstance(module.padding, str):
        return module.padding
    spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return tuple(span // 2 if module.padding == "same" else 0 for span in spans)


def _seconds(run: Callable[[], Any]) -> float:
    """Median seconds of ``run`` after a first call."""
    run()
    times: list[float] = []
    while len(times) < _REPEATS and not (len(times) >= 2 and sum(times) > _LONG_S):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
