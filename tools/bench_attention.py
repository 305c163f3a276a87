"""Time attention and its gradients beside PyTorch's ``scaled_dot_product_attention`` in fp32, on the same threads.

Example: ``python -m tools.bench_attention --threads 2``.

Contenders take turns in one process, and medians count. PyTorch's is the faster of two layouts: heads in front, as its
kernel has them, and heads behind positions, as a linear layer gives them and as ours has them. The last line is JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tools.bench_arguments import bench_parser, use_threads
from tools.bench_gemm import Run, interleaved_medians

if TYPE_CHECKING:
    from torch import Tensor

LENGTHS = (64, 197, 512, 1024)
"""Numbers of queries, and of keys."""


@dataclass(frozen=True)
class Shape:
    """The extents of one attention.

    Attributes:
        batch, heads, length, depth: samples, heads, queries as well as keys, and numbers in each.
        causal: whether a query sees no later keys.
    """

    batch: int
    heads: int
    length: int
    depth: int
    causal: bool = False


@dataclass(frozen=True)
class Row:
    """The seconds of one shape.

    Attributes:
        shape: what was computed.
        forward_s, backward_s: ours.
        torch_forward_s, torch_backward_s: PyTorch's, of the faster layout.
    """

    shape: Shape
    forward_s: float
    torch_forward_s: float
    backward_s: float
    torch_backward_s: float

    @property
    def forward_ratio(self) -> float:
        """PyTorch's seconds of the forward pass for one of ours."""
        return self.torch_forward_s / self.forward_s

    @property
    def backward_ratio(self) -> float:
        """PyTorch's seconds of the gradients for one of ours."""
        return self.torch_backward_s / self.backward_s


def compiled_kernel(name: str, arguments: tuple[Any, ...]) -> tuple[Run, list[Any]]:
    """The kernel of op ``name``, compiled for this machine: a run on these tensors, and the arrays it writes."""
    import torch
    import tvm
    from tvm import te

    import fqt_deploy.ops.registry  # noqa: F401
    from fqt_deploy.ops.op import FQT_OPS
    from fqt_deploy.targets.kernel_arguments import ARGUMENTS, encoded
    from fqt_deploy.targets.registry import make_target

    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    places = iter([te.placeholder(tuple(t.shape), "float32", name=f"x{i}") for i, t in enumerate(tensors)])
    operands = [next(places) if isinstance(a, torch.Tensor) else a for a in arguments]
    computed = FQT_OPS[name](*operands).compute()
    results = [computed] if isinstance(computed, te.Tensor) else computed
    target = make_target("cpu")
    attributes = {
        "fqt.op": name, "fqt.outputs": len(results), "global_symbol": "main", "tirx.noalias": True,
        ARGUMENTS: encoded(getattr(torch.ops.fqt, name).default, operands),
    }  # fmt: skip
    inputs = [o for o in operands if isinstance(o, te.Tensor)]
    function = target.schedule(te.create_prim_func([*inputs, *results]).with_attrs(attributes))
    kernel = tvm.compile(tvm.IRModule({"main": function}), target.tvm_target)["main"]
    arrays = [tvm.runtime.tensor(t.contiguous().numpy()) for t in tensors]
    outputs = [tvm.runtime.empty([int(d) for d in result.shape], str(result.dtype)) for result in results]
    return lambda: kernel(*arrays, *outputs), outputs


def torch_runs(q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, *, causal: bool) -> tuple[Run, Run]:
    """PyTorch's forward pass and gradients of operands with heads in front, whatever their strides."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    def forward() -> Tensor:
        with torch.no_grad():
            return scaled_dot_product_attention(q, k, v, is_causal=causal)

    leaves = query, key, value = [x.detach().requires_grad_() for x in (q, k, v)]
    output = scaled_dot_product_attention(query, key, value, is_causal=causal)
    return forward, lambda: torch.autograd.grad(output, leaves, gradient, retain_graph=True)


def measure(shape: Shape, turns: int) -> Row:
    """One row of the table; contenders compute the same, which is checked before they are timed."""
    import torch

    r = torch.Generator().manual_seed(0)
    q, k, v, gradient = (
        torch.randn(shape.batch, shape.length, shape.heads, shape.depth, generator=r) for _ in range(4)
    )
    behind = [x.transpose(1, 2) for x in (q, k, v, gradient)]
    theirs = {
        "behind": torch_runs(*behind, causal=shape.causal),
        "in front": torch_runs(*(x.contiguous() for x in behind), causal=shape.causal),
    }
    scale = shape.depth**-0.5
    forward, (output, logsumexp) = compiled_kernel("attention", (q, k, v, None, None, scale, shape.causal, 0.0))
    forward()
    saved = [torch.from_numpy(x.numpy()) for x in (output, logsumexp)]
    backward, gradients = compiled_kernel(
        "attention_backward", (gradient, q, k, v, None, None, saved[1], scale, shape.causal, 0.0)
    )
    backward()
    found = [saved[0], *(torch.from_numpy(x.numpy()) for x in gradients)]
    expected = [theirs["behind"][0](), *theirs["behind"][1]()]
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.transpose(1, 2), right, rtol=1e-3, atol=1e-4)
    contenders = {"forward": forward, "backward": backward}
    for name, runs in theirs.items():
        contenders |= {f"forward, {name}": runs[0], f"backward, {name}": runs[1]}
    seconds = interleaved_medians(contenders, turns)
    best = {d: min(seconds[f"{d}, {name}"] for name in theirs) for d in ("forward", "backward")}
    return Row(shape, seconds["forward"], best["forward"], seconds["backward"], best["backward"])


def main() -> int:
    """Print the table and the line of JSON."""
    parser = bench_parser(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="samples (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=6, help="heads (default: %(default)s)")
    parser.add_argument("--depth", type=int, default=64, help="numbers in a head (default: %(default)s)")
    parser.add_argument("--causal", action="store_true", help="queries see no later keys")
    arguments = parser.parse_args()
    use_threads(arguments.threads)

    print(f"{'N':>6} {'forward ms':>11} {'PyTorch':>9} {'ratio':>6} {'backward ms':>12} {'PyTorch':>9} {'ratio':>6}")
    rows = []
    for length in LENGTHS:
        row = measure(
            Shape(arguments.batch, arguments.heads, length, arguments.depth, arguments.causal), arguments.turns
        )
        rows.append(row)
        print(
            f"{length:6d} {1e3 * row.forward_s:11.2f} {1e3 * row.torch_forward_s:9.2f} {row.forward_ratio:6.2f} "
            f"{1e3 * row.backward_s:12.2f} {1e3 * row.torch_backward_s:9.2f} {row.backward_ratio:6.2f}",
            flush=True,
        )
    ratios = [ratio for row in rows for ratio in (row.forward_ratio, row.backward_ratio)]
    summary = {"threads": arguments.threads, "lowest_ratio": min(ratios), "rows": [asdict(row) for row in rows]}
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
