"""Check and time on a GPU: needs PyTorch with CUDA and what ``build`` left, not the compiler."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fqt_deploy
from tools.gpu_bench import layout
from tools.gpu_bench.checks import random_batch

Found = dict[str, Any]


def require_device() -> None:
    """Exit 1 with a message where PyTorch has no GPU."""
    if not torch.cuda.is_available():
        _fail("there is no CUDA device, or PyTorch was built without CUDA: nothing can be timed here")


def check_device_tensors(folder: Path) -> Found:
    """Ten steps on tensors of PyTorch, used where they lie, and on host arrays: the same losses."""
    artifact = layout.artifact(folder, layout.CHECKED)
    host, device = fqt_deploy.load(artifact), fqt_deploy.load(artifact)
    x, y = random_batch(host.manifest)
    here, there = (x, y), tuple(torch.from_numpy(array).cuda() for array in (x, y))
    same = all(host.step(*here) == device.step(*there) for _ in range(10))
    print(f"tensors on the device: {'same' if same else 'DIFFERENT'} losses as from host arrays")
    return {"same": same}


def ceilings(folder: Path) -> Found:
    """Measured limits of the device: bytes copied a second, bit operations a second."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.numel() * 4 / _seconds(lambda: target.copy_(source))
    peak = _module(layout.products_library(folder, _table(folder)["forms"][0]))[layout.PEAK]
    result = torch.empty((layout.PEAK_BLOCKS, layout.PEAK_THREADS), dtype=torch.int32, device="cuda")
    warps = layout.PEAK_BLOCKS * layout.PEAK_THREADS // 32
    operations = 2 * 16 * 8 * 256 * warps * layout.PEAK_ROUNDS * layout.PEAK_CHAINS
    bits = operations / _seconds(lambda: peak(result))
    print(f"ceilings: {copied / 1e12:.2f} TB/s copied, {bits / 1e15:.2f} P bit operations/s by mma")
    return {"bytes_s": copied, "bit_ops_s": bits}


def products(folder: Path, deadline: float) -> list[Found]:
    """Each product on bits, in every form, beside int8, bf16 and fp8, after a comparison of its numbers with int8."""
    table, rows = _table(folder), []
    forms = {form: _module(layout.products_library(folder, form)) for form in table["forms"]}
    print(f"{'product':16} {'m':>7} {'n':>6} {'k':>6} {'P op/s':>8} {'x int8':>7} {'x bf16':>7} {'x fp8':>7}  forms")
    for entry in table["shapes"]:
        if time.perf_counter() > deadline:
            print("out of time: the other products were not run")
            break
        shape = layout.Product(**entry)
        row = time_product({form: module[shape.symbol] for form, module in forms.items()}, shape)
        rows.append(row)
        ratios = [f"{row[name] / row['bits']:7.2f}" if row[name] else "      -" for name in ("int8", "bf16", "fp8")]
        speed = shape.operations / row["bits"] / 1e15
        times = ", ".join(f"{form} {1e6 * seconds:.1f} us" for form, seconds in row["forms"].items())
        print(f"{shape.origin:16} {shape.m:7} {shape.n:6} {shape.k:6} {speed:8.3f} {' '.join(ratios)}  {times}"
              f"{'' if row['equal'] else '  WRONG'}")  # fmt: skip
        torch.cuda.empty_cache()
    return rows


def fastest_form(rows: list[Found], timed: list[Found]) -> Found:
    """Which form of the 1-bit products was faster, in the products and in the whole step.

    Args:
        rows: the rows from ``products``.
        timed: the times from ``steps``.
    """
    forms = list(rows[0]["forms"]) if rows else []
    default = forms[0] if forms else None
    means = {
        form: statistics.geometric_mean(row["forms"][form] / row["forms"][default] for row in rows) for form in forms
    }
    first = next(iter(layout.STEPS))
    names = {form: layout.step_name(first, form, str(default)) for form in forms}
    seconds = {form: row["s"] for form, name in names.items() for row in timed if row["name"] == name}
    found = {
        "default": default,
        "products": min(means, key=means.__getitem__) if means else None,
        "step": min(seconds, key=seconds.__getitem__) if seconds else None,
        "time_in_products": means,
        "step_s": seconds,
    }
    shares = ", ".join(f"{form} {mean:.2f}" for form, mean in means.items())
    print(f"forms: time in products relative to {default}: {shares}; faster step with {found['step']}")
    return found


PYTORCH: dict[str, tuple[str, str | None, float]] = {
    "torch.compile bf16": ("bf16", "default", 60),
    "torch.compile fp32": ("fp32", "default", 60),
    "torch.compile tf32": ("tf32", "default", 60),
    "torch eager bf16": ("bf16", None, 10),
    "torch.compile bf16 max-autotune": ("bf16", "max-autotune-no-cudagraphs", 180),
}
"""The steps of PyTorch: precision, mode of ``torch.compile``, seconds that must be left to begin one; the surest first.
"""


def steps(folder: Path, deadline: float, limits: Found) -> list[Found]:
    """Whole steps, and PyTorch's own beside them; none begins that may not end by ``deadline``."""
    rows: list[Found] = []
    default, *others = _table(folder)["forms"]
    first = next(iter(layout.STEPS))
    chosen = [(name, default) for name in layout.STEPS] + [(first, form) for form in others]
    for name, form in chosen:
        example, batch, _ = layout.STEPS[name]
        name = layout.step_name(name, form, default)
        session = session_of(layout.artifact(folder, name), example)
        work = functools.partial(session.step, *random_tensors(session, "cuda"))
        for _ in range(5):
            work()
        seconds = _wall(work, torch.cuda.synchronize)
        moved = sum(kernel.bytes_moved for kernel in session.manifest.kernels)
        rows.append({"name": name, "batch": batch, "s": seconds, "bytes_s": moved / seconds})
        share = moved / seconds / limits["bytes_s"]
        print(f"{name:32} {1e3 * seconds:9.3f} ms  {moved / 1e9:.2f} GB of operands, {100 * share:.0f} % of a copy")
        del session, work
        torch.cuda.empty_cache()
    example, batch, _ = layout.STEPS[first]
    for name, (precision, mode, needed) in PYTORCH.items():
        if time.perf_counter() + needed > deadline:
            print(f"out of time: {name} was not run")
            continue
        seconds = torch_step(example, batch, precision, mode)
        rows.append({"name": name, "batch": batch, "s": seconds})
        print(f"{name:32} {1e3 * seconds:9.3f} ms")
        torch.cuda.empty_cache()
    return rows


def profile(folder: Path, name: str) -> None:
    """The kernels of one step by time, launched one by one."""
    os.environ["FQT_CUDA_GRAPH"] = "0"
    session = session_of(layout.artifact(folder, name), layout.STEPS[name][0])
    x, y = random_tensors(session, "cuda")
    session.step(x, y)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as record:
        for _ in range(3):
            session.step(x, y)
    os.environ["FQT_CUDA_GRAPH"] = "1"
    print(record.key_averages().table(sort_by="self_device_time_total", row_limit=60, max_name_column_width=60))


def time_product(functions: dict[str, Callable[..., Any]], shape: layout.Product, device: str = "cuda") -> Found:
    """Seconds of one product in every form and in other number formats, and whether the forms' numbers are right.

    Args:
        functions: by form, the default first: (signs [1, 1, m, words], panels [n / 16, words, 16], result) -> None.
        shape: the shape of the product.
        device: the device of PyTorch.
    """
    generator = torch.Generator(device=device).manual_seed(0)
    words = shape.k // 32

    def random(*size: int) -> Tensor:
        return torch.randint(-(2**31), 2**31, size, generator=generator, device=device, dtype=torch.int64).int()

    x, w = random(shape.m, words), random(shape.n, words)
    panels = w.view(-1, 16, words).transpose(1, 2).contiguous()
    kind = torch.int16 if shape.k <= 32767 else torch.int32
    image, signs = x.view(1, 1, shape.m, words), _signs(w)
    parts = [slice(0, 256), slice(shape.m - 256, shape.m)]
    expected = [torch._int_mm(_signs(x[part]), signs.t()) for part in parts]
    row: Found = {**shape.to_json(), "forms": {}, "equal": True}
    for form, function in functions.items():
        result = torch.full((1, 1, shape.m, shape.n), -1, dtype=kind, device=device)  # no sum of an even number is odd
        row["forms"][form] = _seconds(functools.partial(function, image, panels, result), device)
        right = all(bool(torch.equal(e, result[0, 0, part].int())) for e, part in zip(expected, parts, strict=True))
        row["equal"] = row["equal"] and right and not bool((result == -1).any())
    row["bits"] = next(iter(row["forms"].values()))
    a = _signs(x)
    row["int8"] = _optional(functools.partial(torch._int_mm, a, signs.t()), device)
    row["bf16"] = _optional(functools.partial(torch.mm, a.bfloat16(), signs.bfloat16().t()), device)
    row["fp8"] = _optional(_fp8(a, signs), device)
    return row


def _fp8(a: Tensor, b: Tensor) -> Callable[[], Any]:
    kind, one = torch.float8_e4m3fn, torch.ones((), device=a.device)
    left, right = a.to(torch.bfloat16).to(kind), b.to(torch.bfloat16).to(kind).t()
    return lambda: torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _signs(words: Tensor) -> Tensor:
    """The signs of packed bits: [rows, words] int32 -> [rows, 32 * words] int8 of +1 and -1."""
    bits = (words.unsqueeze(-1) >> torch.arange(32, device=words.device, dtype=torch.int32)) & 1
    return (2 * bits - 1).to(torch.int8).flatten(1)


def _optional(run: Callable[[], Any], device: str) -> float | None:
    """Seconds, or None for what this PyTorch or device does not do."""
    try:
        return _seconds(run, device)
    except (RuntimeError, ValueError) as error:
        print(f"  not run: {str(error).splitlines()[0][:100]}")
        return None


def _seconds(run: Callable[[], Any], device: str = "cuda") -> float:
    """Median seconds of ``run``: on a GPU within a recorded graph, so that the host's share does not count."""
    if device == "cpu":
        run()
        return _wall(run, lambda: None, 3)
    with _stream():
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        once = _elapsed(run)
    count = max(1, min(200, int(0.02 / max(once, 1e-6))))
    repeated = _recorded(run, count)
    repeated()
    return statistics.median(_elapsed(repeated) / count for _ in range(5))


def _elapsed(work: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _recorded(run: Callable[[], Any], count: int) -> Callable[[], Any]:
    """A function that calls ``run`` ``count`` times in one graph; launched one by one where it cannot be recorded."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="relaxed"), _stream():
            for _ in range(count):
                run()
    except RuntimeError as error:
        print(f"  not recorded as a graph, so timed with the host: {str(error).splitlines()[0][:100]}")
        torch.cuda.synchronize()

        def launch() -> None:
            with _stream():
                for _ in range(count):
                    run()

        return launch
    return graph.replay


def _wall(step: Callable[[], Any], synchronize: Callable[[], None], repeats: int = 20) -> float:
    """Median seconds of ``step`` by the host's clock."""
    times = []
    for _ in range(repeats):
        synchronize()
        begin = time.perf_counter()
        step()
        synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def torch_step(
    example: str, batch: int, precision: str, mode: str | None, *, device: str = "cuda", repeats: int = 20
) -> float:
    """Seconds of PyTorch's step: forward, loss, backward, fused Adam; channels last.

    Args:
        example: name of the model.
        batch: samples in a step.
        precision: ``bf16`` as autocast chooses, ``fp32``, or ``tf32``: PyTorch's own default for fp32 convolutions.
        mode: the mode of ``torch.compile``; None for eager mode.
        device: the device of PyTorch.
        repeats: steps that are timed.
    """
    from tools.examples import load_example

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.compiler.reset()
    source = load_example(example, batch)
    model = source.module.to(device).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = (tensor.to(device) for tensor in source.example_inputs)
    x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def forward(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(images)
        loss: Tensor = source.loss_fn(outputs.float(), labels)
        return loss

    run = forward if mode is None else torch.compile(forward, mode=mode)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        run(x, y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in range(5 if repeats > 1 else 1):
        step()
    return _wall(step, torch.cuda.synchronize if device == "cuda" else lambda: None, repeats)


def session_of(artifact: Path, example: str) -> Any:
    """A session of an artifact that was carried without its state: the example's weights, zeros for the rest."""
    from fqt_deploy.core.manifest import Manifest
    from fqt_deploy.runtime.artifact import companions, write_artifact
    from tools.examples import load_example

    if not (artifact / "state.safetensors").is_file():
        manifest = Manifest.from_json((artifact / "manifest.json").read_bytes())
        weights = load_example(example, manifest.batch).module.state_dict()
        state = {}
        for spec in manifest.state:
            value = weights.get(spec.name.partition("/")[2]) if spec.role in ("param", "buffer") else None
            state[spec.name] = np.zeros(spec.shape, spec.dtype) if value is None else value.numpy().astype(spec.dtype)
        write_artifact(artifact, manifest, state, artifact / "step.so", companions(artifact))
    return fqt_deploy.load(artifact)


def random_tensors(session: Any, device: str) -> tuple[Tensor, Tensor]:
    """Random inputs and labels on ``device``."""
    x_spec, y_spec = session.manifest.inputs
    generator = torch.Generator(device=device).manual_seed(0)
    x = torch.randn(x_spec.shape, generator=generator, device=device)
    return x, torch.randint(0, session.manifest.classes, y_spec.shape, generator=generator, device=device)


def _table(folder: Path) -> Found:
    table: Found = json.loads((folder / layout.PRODUCT_TABLE).read_text())
    return table


def _module(path: Path) -> Any:
    from fqt_deploy.runtime.cuda_runtime import CudaRuntime
    from fqt_deploy.runtime.library import load_runtime

    major, minor = torch.cuda.get_device_capability()
    CudaRuntime([f"sm_{major}{minor}"])  # loads NVIDIA's libraries, and complains clearly
    return load_runtime(path.parent / layout.LIBRARIES, cuda=True).load_module(str(path))


@contextlib.contextmanager
def _stream() -> Iterator[None]:
    """Our kernels run on PyTorch's stream."""
    import tvm_ffi

    with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), torch.cuda.current_stream().cuda_stream):
        yield


def _fail(message: str) -> None:
    print(f"bench_gpu: {message}", file=sys.stderr)
    raise SystemExit(1)
