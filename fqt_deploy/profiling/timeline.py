"""A profile as a timeline in Chrome's trace format, which Perfetto and chrome://tracing open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fqt_deploy.profiling.kernel_classes import class_of, direction_of
from fqt_deploy.profiling.rows import WHOLE
from fqt_deploy.profiling.step_profile import StepProfile

PROCESS = 1
STEPS, KERNELS, LOADER = 1, 2, 3
"""Threads of the trace: whole steps, the kernels in them, and the thread that loads batches."""
_NAMES = {STEPS: "steps", KERNELS: "kernels", LOADER: "loader"}


def timeline(profile: StepProfile) -> str:
    """The trace of the profile's timed steps as JSON: a slice for each kernel call, and the memory alive in it.

    Times are microseconds since the first step's begin.
    """
    origin = min([step.begin for step in profile.timed] + [begin for begin, _ in profile.loads], default=0)
    events = [*_names(profile), *_steps(profile, origin), *_loads(profile, origin)]
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}) + "\n"


def _names(profile: StepProfile) -> Iterator[dict[str, Any]]:
    yield _event("M", "process_name", PROCESS, args={"name": profile.name})
    for thread, name in _NAMES.items():
        yield _event("M", "thread_name", thread, args={"name": name})
        yield _event("M", "thread_sort_index", thread, args={"sort_index": thread})


def _steps(profile: StepProfile, origin: int) -> Iterator[dict[str, Any]]:
    alive = profile.notes.alive(len(profile.kernels)) if profile.notes is not None else []
    for number, step in enumerate(profile.timed):
        yield _slice(f"step {number + 1}", "step", STEPS, step.begin - origin, step.end - step.begin, {})
        for i, (kernel, (begin, end)) in enumerate(zip(profile.kernels, step.kernels, strict=True)):
            told = {
                "layer": kernel.layer or WHOLE, "direction": direction_of(kernel), "op": kernel.op,
                "bytes": kernel.bytes_moved, "fp32 MACs": kernel.flops // 2, "1-bit MACs": kernel.bit_ops // 2,
                "symbol": kernel.symbol, "line": kernel.source or "",
            }  # fmt: skip
            name = f"{kernel.layer or WHOLE} {kernel.op}"
            yield _slice(name, class_of(kernel.op), KERNELS, begin - origin, end - begin, told)
            if alive:
                yield _event("C", "memory alive", KERNELS, ts=(begin - origin) / 1e3, args={"MB": alive[i] / 1e6})
        if alive:
            yield _event("C", "memory alive", KERNELS, ts=(step.end - origin) / 1e3, args={"MB": 0})


def _loads(profile: StepProfile, origin: int) -> Iterator[dict[str, Any]]:
    for begin, end in profile.loads:
        yield _slice("load a batch", "loader", LOADER, begin - origin, end - begin, {})


def _slice(name: str, category: str, thread: int, begin: int, length: int, args: dict[str, Any]) -> dict[str, Any]:
    return _event("X", name, thread, ts=begin / 1e3, dur=length / 1e3, cat=category, args=args)


def _event(kind: str, name: str, thread: int, **others: Any) -> dict[str, Any]:
    return {"ph": kind, "name": name, "pid": PROCESS, "tid": thread, **others}
