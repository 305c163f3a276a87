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
    source = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.numel() * 4 / _seconds(lambda: target.copy_(source))
    peak = _module(folder / layout.PRODUCTS)[layout.PEAK]
    result = torch.empty((layout.PEAK_BLOCKS, layout.PEAK_THREADS), dtype=torch.int32, device="cuda")
    warps = layout.PEAK_BLOCKS * layout.PEAK_THREADS // 32
    operations = 2 * 16 * 8 * 256 * warps * layout.PEAK_ROUNDS * layout.PEAK_CHAINS
    bits = operations / _seconds(lambda: peak(result))
    print(f"ceilings: {copied / 1e12:.2f} TB/s copied, {bits / 1e15:.2f} P bit operations/s")
    return {"bytes_s": copied, "bit_ops_s": bits}


def products(folder: Path, deadline: float) -> list[Found]:
    """Each product on bits beside int8, bf16 and fp8, after a comparison of its numbers with int8."""
    module = _module(folder / layout.PRODUCTS)
    rows = []
    print(f"{'product':16} {'m':>7} {'n':>6} {'k':>6} {'P op/s':>8} {'x int8':>7} {'x bf16':>7} {'x fp8':>7}")
    for entry in json.loads((folder / layout.PRODUCT_TABLE).read_text()):
        if time.perf_counter() > deadline:
            print("out of time: the other products were not run")
            break
        shape = layout.Product(**entry)
        row = _product(module[shape.symbol], shape)
        rows.append(row)
        ratios = [f"{row[name] / row['bits']:7.2f}" if row[name] else "      -" for name in ("int8", "bf16", "fp8")]
        speed = shape.operations / row["bits"] / 1e15
        print(f"{shape.origin:16} {shape.m:7} {shape.n:6} {shape.k:6} {speed:8.3f} {' '.join(ratios)}"
              f"{'' if row['equal'] else '  WRONG'}")  # fmt: skip
        torch.cuda.empty_cache()
    return rows


def steps(folder: Path, deadline: float, limits: Found) -> list[Found]:
    """Whole steps, and PyTorch's own beside them."""
    rows: list[Found] = []
    for name, (example, batch, _) in layout.STEPS.items():
        session = _session(layout.artifact(folder, name), example)
        work = functools.partial(session.step, *_batch(session))
        for _ in range(5):
            work()
        seconds = _wall(work)
        moved = sum(kernel.bytes_moved for kernel in session.manifest.kernels)
        rows.append({"name": name, "batch": batch, "s": seconds, "bytes_s": moved / seconds})
        share = moved / seconds / limits["bytes_s"]
        print(f"{name:28} {1e3 * seconds:9.3f} ms  {moved / 1e9:.2f} GB of operands, {100 * share:.0f} % of a copy")
        del session, work
        torch.cuda.empty_cache()
    example, batch, _ = next(iter(layout.STEPS.values()))
    for name, half, compiled in (("torch.compile bf16", True, True), ("torch.compile fp32", False, True),
                                 ("torch eager bf16", True, False)):  # fmt: skip
        if time.perf_counter() > deadline:
            print(f"out of time: {name} was not run")
            continue
        seconds = _torch_step(example, batch, half=half, compiled=compiled)
        rows.append({"name": name, "batch": batch, "s": seconds})
        print(f"{name:28} {1e3 * seconds:9.3f} ms")
    return rows


def profile(folder: Path, name: str) -> None:
    """The kernels of one step by time, launched one by one."""
    os.environ["FQT_CUDA_GRAPH"] = "0"
    session = _session(layout.artifact(folder, name), layout.STEPS[name][0])
    x, y = _batch(session)
    session.step(x, y)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as record:
        for _ in range(3):
            session.step(x, y)
    os.environ["FQT_CUDA_GRAPH"] = "1"
    print(record.key_averages().table(sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=60))


def _product(function: Any, shape: layout.Product) -> Found:
    generator = torch.Generator(device="cuda").manual_seed(0)
    words = shape.k // 32

    def random(*size: int) -> Tensor:
        return torch.randint(-(2**31), 2**31, size, generator=generator, device="cuda", dtype=torch.int64).int()

    x, w = random(shape.m, words), random(shape.n, words)
    panels = w.view(-1, 16, words).transpose(1, 2).contiguous()
    kind = torch.int16 if shape.k <= 32767 else torch.int32
    result = torch.zeros((1, 1, shape.m, shape.n), dtype=kind, device="cuda")
    image = x.view(1, 1, shape.m, words)
    row: Found = {**shape.to_json(), "bits": _seconds(lambda: function(image, panels, result))}
    rows = slice(0, 256), slice(shape.m - 256, shape.m)
    signs = _signs(w)
    row["equal"] = all(
        bool(torch.equal(torch._int_mm(_signs(x[part]), signs.t()), result[0, 0, part].int())) for part in rows
    )
    a = _signs(x)
    row["int8"] = _optional(lambda: torch._int_mm(a, signs.t()))
    row["bf16"] = _optional(functools.partial(torch.mm, a.bfloat16(), signs.bfloat16().t()))
    row["fp8"] = _optional(_fp8(a, signs))
    return row


def _fp8(a: Tensor, b: Tensor) -> Callable[[], Any]:
    kind, one = torch.float8_e4m3fn, torch.ones((), device="cuda")
    left, right = a.to(torch.bfloat16).to(kind), b.to(torch.bfloat16).to(kind).t()
    return lambda: torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _signs(words: Tensor) -> Tensor:
    """[rows, words] int32 -> [rows, 32 * words] int8 of +1 and -1."""
    bits = (words.unsqueeze(-1) >> torch.arange(32, device=words.device, dtype=torch.int32)) & 1
    return (2 * bits - 1).to(torch.int8).flatten(1)


def _optional(run: Callable[[], Any]) -> float | None:
    """Seconds, or None for what this PyTorch or device does not do."""
    try:
        return _seconds(run)
    except RuntimeError as error:
        print(f"  not run: {str(error).splitlines()[0][:100]}")
        return None


def _seconds(run: Callable[[], Any]) -> float:
    """Median seconds of ``run`` on the device."""
    with _stream():
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        count = max(1, min(200, int(20 / max(begin.elapsed_time(end), 1e-3))))
        times: list[float] = []
        for _ in range(5):
            begin.record()
            for _ in range(count):
                run()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / count / 1e3)
    return statistics.median(times)


def _wall(step: Callable[[], Any], repeats: int = 20) -> float:
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _torch_step(example: str, batch: int, *, half: bool, compiled: bool) -> float:
    """Seconds of PyTorch's step: forward, loss, backward, fused Adam; channels last."""
    from tools.examples import load_example

    source = load_example(example, batch)
    model = source.module.cuda().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = (tensor.cuda() for tensor in source.example_inputs)
    x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def forward(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            outputs = model(images)
        loss: Tensor = source.loss_fn(outputs.float(), labels)
        return loss

    run = torch.compile(forward, mode="max-autotune-no-cudagraphs" if half else "default") if compiled else forward

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        run(x, y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in range(5):
        step()
    return _wall(step)


def _session(artifact: Path, example: str) -> Any:
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


def _batch(session: Any) -> tuple[Tensor, Tensor]:
    """Random inputs and labels on the device."""
    x_spec, y_spec = session.manifest.inputs
    generator = torch.Generator(device="cuda").manual_seed(0)
    x = torch.randn(x_spec.shape, generator=generator, device="cuda")
    return x, torch.randint(0, session.manifest.classes, y_spec.shape, generator=generator, device="cuda")


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
