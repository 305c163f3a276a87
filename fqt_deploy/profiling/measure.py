"""Measure the step of a session: whole, and kernel by kernel; neither PyTorch nor the compiler is needed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.manifest import InputSpec, Manifest
from fqt_deploy.core.step_notes import NOTES, StepNotes
from fqt_deploy.profiling.ceilings import Ceilings, measure_ceilings
from fqt_deploy.profiling.machine import OtherWork, this_machine
from fqt_deploy.profiling.step_profile import StepProfile, TimedStep
from fqt_deploy.runtime.cuda_library import CudaLibrary
from fqt_deploy.runtime.files import read_file
from fqt_deploy.runtime.kernel_clock import KernelClock
from fqt_deploy.runtime.session import Session
from fqt_deploy.runtime.threads import configure_threads

KEPT_STEPS = 5
"""Number of steps that are kept call by call, for the timeline."""
STEPS = 8
"""Number of steps that are measured with and without a clock each, unless they are short or long."""
_LEAST_STEPS = 3
_WARM_UP = 2
_LONG_S = 1.0
"""One step of each kind is enough to warm up, if they take longer."""
_LEAST_S, _MOST_S = 0.5, 8.0
"""Seconds of measuring: shorter steps are repeated, of longer ones fewer are measured."""
_MOST_STEPS = 200

_MOST_INTEGERS = 2**24
"""The most integers that a made-up batch takes from a range: as numbers, float32 holds them exactly."""

Batch = dict[str, NDArray[Any]]


def made_up_batch(manifest: Manifest) -> Batch:
    """A batch of noise, and of integers in the ranges that the step allows: times do not depend on the numbers."""
    generator = np.random.default_rng(0)

    def array(spec: InputSpec) -> NDArray[Any]:
        if spec.values is not None:
            ranges = spec.columns or (spec.values,)
            low = [max(own.low, min(0, own.high - 1)) for own in ranges]  # a side may be unbounded
            high = [min(own.high, first + _MOST_INTEGERS) for own, first in zip(ranges, low, strict=True)]
            return generator.integers(low, high, spec.shape).astype(spec.dtype)
        if np.dtype(spec.dtype).kind == "f":
            return generator.standard_normal(spec.shape).astype(spec.dtype)
        return generator.integers(0, 2, spec.shape).astype(spec.dtype)

    return {spec.name: array(spec) for spec in manifest.inputs}


def measure(
    session: Session,
    folder: Path,
    batches: Iterator[Batch],
    *,
    steps: int | None = None,
    loads: list[tuple[int, int]] | None = None,
) -> StepProfile:
    """Run steps with and without a clock for their kernels, in turn; the session is trained by them.

    Args:
        session: what to measure.
        folder: its artifact.
        batches: the batches of the steps, without an end.
        steps: number of steps of each kind at least; None for what ``STEPS`` and the seconds say. Short ones are
            repeated for half a second.
        loads: where the loader of ``batches`` notes begin and end of each batch, in nanoseconds.

    Raises:
        FqtError: FQT202 and FQT503 of ``KernelClock``, and what a step raises.
    """
    manifest, clock = session.manifest, KernelClock(session)
    timed: list[TimedStep] = []
    for _ in range(_WARM_UP):
        _timed_step(session, clock, next(batches))
        if _whole_step(session, next(batches)) > _LONG_S:
            break
    plain: list[float] = []
    begun = time.perf_counter()
    with OtherWork() as others:
        while _goes_on(len(plain), time.perf_counter() - begun, steps):
            batch = next(batches)
            plain.append(_whole_step(session, batch))
            timed.append(_timed_step(session, clock, batch))
    gpu = session.functions if isinstance(session.functions, CudaLibrary) else None
    return assembled(manifest, folder, plain, timed, other_cores=others.cores, loads=loads or (), gpu=gpu)


def _goes_on(done: int, seconds: float, steps: int | None) -> bool:
    """Whether to measure another step after ``done`` of each kind, which took ``seconds``."""
    if seconds < _LEAST_S and done < _MOST_STEPS:
        return True
    if steps is not None:
        return done < steps
    return done < (STEPS if seconds < _MOST_S else _LEAST_STEPS)


def assembled(
    manifest: Manifest,
    folder: Path,
    plain: Sequence[float],
    timed: Sequence[TimedStep],
    *,
    other_cores: float | None = None,
    loads: Sequence[tuple[int, int]] = (),
    gpu: CudaLibrary | None = None,
) -> StepProfile:
    """The profile of steps that were measured on this machine, whose ceilings are measured now.

    Args:
        manifest: what the artifact holds.
        folder: the artifact.
        plain: seconds of steps without a clock for kernels.
        timed: steps with one, at least one.
        other_cores: number of cores that other processes used meanwhile.
        loads: begin and end of each batch that was loaded, on the clock of ``timed``.
        gpu: the functions of a step that runs on a GPU.
    """
    seconds = _kernel_seconds(timed)
    threads = configure_threads()
    if gpu is None:
        machine, ceilings = this_machine(threads), measure_ceilings(threads)
    else:
        machine = replace(this_machine(threads), processor=gpu.device)
        ceilings = Ceilings(fp32_macs=0.0, bytes=gpu.bytes_per_second())
    return StepProfile(
        name=manifest.name,
        machine=machine,
        target=manifest.target,
        versions=manifest.versions,
        options=manifest.options,
        optimizer=manifest.optimizer.name,
        batch=manifest.batch,
        layers=manifest.layers,
        kernels=manifest.kernels,
        seconds=tuple(seconds.tolist()),
        steps=tuple(plain),
        timed=tuple(timed[-KEPT_STEPS:]),
        timed_seconds=tuple((step.end - step.begin) / 1e9 for step in timed),
        ceilings=ceilings.with_kernels(manifest.kernels, seconds),
        other_cores=other_cores,
        notes=_notes(folder, len(manifest.kernels)),
        state_bytes=sum(spec.size * np.dtype(spec.dtype).itemsize for spec in manifest.state),
        loads=tuple(loads),
    )


def _kernel_seconds(timed: Sequence[TimedStep]) -> NDArray[np.float64]:
    """Mean seconds of each kernel over the middle half of the steps by length: unlike medians, they add up."""
    ordered = sorted(timed, key=lambda step: step.end - step.begin)
    middle = ordered[len(ordered) // 4 : len(ordered) - len(ordered) // 4]
    times: NDArray[np.float64] = np.array([[end - begin for begin, end in step.kernels] for step in middle]) / 1e9
    means: NDArray[np.float64] = np.mean(times, axis=0)
    return means


def _whole_step(session: Session, batch: Batch) -> float:
    begin = time.perf_counter()
    session.step(batch)
    return time.perf_counter() - begin


def _timed_step(session: Session, clock: KernelClock, batch: Batch) -> TimedStep:
    with clock:
        begin = time.monotonic_ns()
        session.step(batch)
        end = time.monotonic_ns()
        calls = clock.take()
    return TimedStep(begin, end, tuple(zip(calls.begin.tolist(), calls.end.tolist(), strict=True)))


def _notes(folder: Path, kernels: int) -> StepNotes | None:
    """What the artifact notes about its step; None if an earlier version compiled it."""
    path = folder / NOTES
    return StepNotes.from_json(read_file(path), kernels) if path.is_file() else None
