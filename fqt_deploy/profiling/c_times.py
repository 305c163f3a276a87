"""The times of kernels that a C program noted (``fqt_stop_timing``), as a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.profiling.measure import assembled
from fqt_deploy.profiling.step_profile import StepProfile, TimedStep
from fqt_deploy.runtime.artifact import read_artifact
from fqt_deploy.runtime.digests import symbol_digest
from fqt_deploy.runtime.files import read_file


def profile_of_times(folder: Path, path: Path) -> StepProfile:
    """The profile of the steps in ``path``, which a C program ran on this machine with the artifact ``folder``.

    Steps are as long as they took while kernels were timed: such a program runs no others in between.

    Raises:
        FqtError: what reading the artifact raises; FQT502 if the file is damaged or of another artifact.
    """
    manifest, _, _ = read_artifact(folder)
    steps = _steps(path, manifest)
    return assembled(manifest, folder, [(step.end - step.begin) / 1e9 for step in steps], steps)


def _steps(path: Path, manifest: Manifest) -> list[TimedStep]:
    try:
        data = json.loads(read_file(path))
        steps = [_step(entry, manifest) for entry in data["steps"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FqtError(f"{path} holds no times of this step: {error}", code="FQT502") from None
    if not steps:
        raise FqtError(f"{path} holds no steps", code="FQT502", hint="train between start and stop of timing")
    return steps


def _step(entry: Any, manifest: Manifest) -> TimedStep:
    calls = [(int(digest), int(begin), int(end)) for digest, begin, end in entry["calls"]]
    if [digest for digest, _, _ in calls] != [symbol_digest(kernel.symbol) for kernel in manifest.kernels]:
        raise ValueError("its kernels are others than those that the manifest lists")
    return TimedStep(int(entry["begin"]), int(entry["end"]), tuple((begin, end) for _, begin, end in calls))
