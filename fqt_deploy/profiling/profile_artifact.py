"""The profile of an artifact: load it, feed it, measure it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.profiling.measure import Batch, made_up_batch, measure
from fqt_deploy.profiling.step_profile import StepProfile
from fqt_deploy.runtime import load
from fqt_deploy.runtime.data_file import read_data
from fqt_deploy.runtime.load_ahead import load_ahead
from fqt_deploy.runtime.preparation import Preparation, Prepared
from fqt_deploy.runtime.sources.open_source import is_source, open_source


def profile_artifact(folder: Path, *, data: Path | None = None, steps: int | None = None) -> StepProfile:
    """Measure the step of the artifact ``folder``, which stays as it is.

    Args:
        folder: the artifact.
        data: data to feed it from, by a thread that loads ahead as in training; None: noise.
        steps: number of steps of each kind at least; None for as many as take some seconds.

    Raises:
        FqtError: what loading the artifact and the data raise, FQT510 for data that are less than a batch.
    """
    session = load(folder)
    manifest = session.manifest
    if data is None:
        return measure(session, folder, itertools.repeat(made_up_batch(manifest)), steps=steps)
    prepared = _prepared(data, manifest)
    loads: list[tuple[int, int]] = []
    with load_ahead(_noted(prepared.batch, loads), _rows(len(prepared), manifest.batch)) as batches:
        return measure(session, folder, batches, steps=steps, loads=loads)


def _prepared(path: Path, manifest: Manifest) -> Prepared:
    source = open_source(path, manifest) if is_source(path) else read_data(path, manifest)
    if len(source) < manifest.batch:
        raise FqtError(f"{path} holds {len(source)} samples; a batch takes {manifest.batch}", code="FQT510")
    preparation = Preparation((), (), False, 0)
    preparation.check(manifest.model_inputs[0].shape[1:])
    return Prepared(source, preparation, manifest, str(path), manifest.seed)


def _noted(
    load_batch: Callable[[NDArray[np.int64]], Batch], loads: list[tuple[int, int]]
) -> Callable[[NDArray[np.int64]], Batch]:
    """The function ``load_batch``, which also notes in ``loads`` when each batch began and ended to load."""

    def run(index: NDArray[np.int64]) -> Batch:
        begin = time.monotonic_ns()
        batch = load_batch(index)
        loads.append((begin, time.monotonic_ns()))
        return batch

    return run


def _rows(samples: int, batch: int) -> Iterator[NDArray[np.int64]]:
    """Numbers of the samples of each batch, shuffled in every epoch, without an end."""
    generator = np.random.default_rng(0)
    while True:
        order = generator.permutation(samples)
        yield from (order[i : i + batch] for i in range(0, samples - batch + 1, batch))
