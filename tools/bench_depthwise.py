"""Time the depthwise convolutions of a model, forward and both gradients, beside PyTorch's fp32 on the same threads.

Example: ``python -m tools.bench_depthwise --model mobilenet_v3 --threads 2``.

Contenders take turns in one process, and medians count. PyTorch's is the faster of two memory layouts for each shape,
contiguous and channels-last; its gradients are one call for both. The last line is JSON.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tools.bench_arguments import bench_parser, use_threads
from tools.bench_attention import compiled_kernel
from tools.bench_gemm import Run, interleaved_medians

if TYPE_CHECKING:
    from torch import Tensor, nn

MODELS = ("mobilenet_v3", "convnext_tiny")


@dataclass(frozen=True)
class Shape:
    """The extents of one depthwise convolution.

    Attributes:
        batch, channels: samples, and channels of the image as well as of the result.
        image, kernel, stride, padding: height and width of each.
    """

    batch: int
    channels: int
    image: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True)
class Row:
    """The seconds of one shape.

    Attributes:
        shape: what was computed.
        count: how many convolutions of the model have it.
        forward_s, backward_s: ours; backward is the sum of both gradients.
        torch_forward_s, torch_backward_s: PyTorch's, of the faster layout.
    """

    shape: Shape
    count: int
    forward_s: float
    torch_forward_s: float
    backward_s: float
    torch_backward_s: float


def depthwise_shapes(model: nn.Module, x: Tensor) -> Counter[Shape]:
    """The depthwise convolutions that ``model`` runs on ``x``, and how often each shape comes."""
    import torch

    found: Counter[Shape] = Counter()

    def note(layer: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        assert isinstance(layer, torch.nn.Conv2d)
        batch, channels, height, width = inputs[0].shape
        pairs = (layer.kernel_size, layer.stride, layer.padding)
        kernel, stride, padding = ((int(pair[0]), int(pair[1])) for pair in pairs)
        found[Shape(batch, channels, (height, width), kernel, stride, padding)] += 1

    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1:
            layer.register_forward_hook(note)
    with torch.no_grad():
        model(x)
    return found


def torch_runs(x: Tensor, w: Tensor, gradient: Tensor, shape: Shape) -> tuple[Run, Run]:
    """PyTorch's forward pass, and both of its gradients, of operands as they lie in memory."""
    import torch

    settings = (list(shape.stride), list(shape.padding), [1, 1], False, [0, 0], shape.channels)
    forward, backward = torch.ops.aten.convolution, torch.ops.aten.convolution_backward
    return (
        lambda: forward(x, w, None, *settings),
        lambda: backward(gradient, x, w, None, *settings, [True, True, False]),
    )


def measure(shape: Shape, count: int, turns: int) -> Row:
    """One row of the table; contenders compute the same, which is checked before they are timed."""
    import torch

    r = torch.Generator().manual_seed(0)
    x = torch.randn(shape.batch, shape.channels, *shape.image, generator=r)
    w = torch.randn(shape.channels, 1, *shape.kernel, generator=r)
    geometry = (list(shape.stride), list(shape.padding), [1, 1], shape.channels)
    y = torch.ops.aten.convolution(x, w, None, *geometry[:3], False, [0, 0], shape.channels)
    g = torch.randn(y.shape, generator=r)
    last = torch.channels_last
    theirs = {
        "contiguous": torch_runs(x, w, g, shape),
        "channels last": torch_runs(
            x.to(memory_format=last), w.to(memory_format=last), g.to(memory_format=last), shape
        ),
    }
    image, gradient = (tensor.permute(0, 2, 3, 1).contiguous() for tensor in (x, g))
    ours = {
        "forward": compiled_kernel("grouped_conv", (image, w, *geometry)),
        "input gradient": compiled_kernel("grouped_conv_input_grad", (gradient, w, list(shape.image), *geometry)),
        "weight gradient": compiled_kernel(
            "grouped_conv_weight_grad", (image, gradient, list(shape.kernel), *geometry)
        ),
    }
    expected = [y, *theirs["contiguous"][1]()[:2]]
    for (run, outputs), right in zip(ours.values(), expected, strict=True):
        run()
        found = torch.from_numpy(outputs[0].numpy())
        found = found if found.shape == right.shape == w.shape else found.permute(0, 3, 1, 2)
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)
    contenders = {name: run for name, (run, _) in ours.items()}
    for name, runs in theirs.items():
        contenders |= {f"forward, {name}": runs[0], f"backward, {name}": runs[1]}
    seconds = interleaved_medians(contenders, turns)
    best = {d: min(seconds[f"{d}, {name}"] for name in theirs) for d in ("forward", "backward")}
    gradients = seconds["input gradient"] + seconds["weight gradient"]
    return Row(shape, count, seconds["forward"], best["forward"], gradients, best["backward"])


def ratios(rows: Iterable[Row]) -> dict[str, float]:
    """PyTorch's seconds for one of ours, over all convolutions of ``rows``: forward, backward and both."""
    sums: Counter[str] = Counter()
    for row in rows:
        for name in ("forward_s", "backward_s", "torch_forward_s", "torch_backward_s"):
            sums[name] += row.count * getattr(row, name)
    forward, backward = sums["torch_forward_s"] / sums["forward_s"], sums["torch_backward_s"] / sums["backward_s"]
    both = (sums["torch_forward_s"] + sums["torch_backward_s"]) / (sums["forward_s"] + sums["backward_s"])
    return {"forward": forward, "backward": backward, "both": both}


def main() -> int:
    """Print the table and the line of JSON."""
    parser = bench_parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help="default: %(default)s")
    arguments = parser.parse_args()
    use_threads(arguments.threads)

    from tools.examples import load_example

    source = load_example(arguments.model)
    print(f"{'shape':40} {'times':>5} {'forward ms':>11} {'PyTorch':>9} {'backward ms':>12} {'PyTorch':>9}")
    rows = []
    for shape, count in depthwise_shapes(source.module, source.example_inputs[0]).items():
        row = measure(shape, count, arguments.turns)
        rows.append(row)
        size = "x".join(map(str, (shape.batch, shape.channels, *shape.image)))
        print(
            f"{size + f', {shape.kernel[0]}x{shape.kernel[1]}, stride {shape.stride[0]}':40} {count:5d} "
            f"{1e3 * row.forward_s:11.3f} {1e3 * row.torch_forward_s:9.3f} {1e3 * row.backward_s:12.3f} "
            f"{1e3 * row.torch_backward_s:9.3f}",
            flush=True,
        )
    found = {name: round(ratio, 2) for name, ratio in ratios(rows).items()}
    print("PyTorch's time for one of ours: " + ", ".join(f"{name} {ratio}" for name, ratio in found.items()))
    summary = {"model": arguments.model, "threads": arguments.threads, "ratios": found}
    print(json.dumps(summary | {"rows": [asdict(row) for row in rows]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
