"""Checkpoints: the whole state of a training run in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.runtime.arrays import Array
from fqt_deploy.runtime.files import deserialize, serialize, write_atomically

FORMAT = "1"


def save_checkpoint(path: Path, manifest: Manifest, state: Mapping[str, Array], seed: int, rates: list[float]) -> None:
    """Write the state, the seed and the learning rates; an older file is replaced at the very end."""
    metadata = {
        "fqt_format": FORMAT,
        "fqt_fingerprint": manifest.fingerprint,
        "fqt_model": manifest.name,
        "seed": str(seed),
        "lr": json.dumps(rates),
    }
    write_atomically(path, serialize(state, metadata))


def load_checkpoint(path: Path, manifest: Manifest) -> tuple[dict[str, Array], int, list[float]]:
    """State, seed and learning rates of a checkpoint of this model.

    Raises:
        FqtError: FQT502 if the file is missing or damaged, FQT503 for another format, FQT504 for another model.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FqtError(f"cannot read {path}: {error.strerror}", code="FQT502") from None
    state = deserialize(content, str(path))
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise FqtError(f"{path} is damaged: {error}", code="FQT502") from None
    if "fqt_format" not in metadata:
        raise FqtError(f"{path} is not a checkpoint", code="FQT504", hint="checkpoints are written by save_checkpoint")
    if metadata["fqt_format"] != FORMAT:
        raise FqtError(f"{path} has checkpoint format {metadata['fqt_format']}, not {FORMAT}", code="FQT503")
    if metadata["fqt_fingerprint"] != manifest.fingerprint:
        raise FqtError(
            f"{path} belongs to another model or other options (it was saved from {metadata['fqt_model']!r})",
            code="FQT504",
        )
    for spec in manifest.state:
        array = state.get(spec.name)
        if array is None or array.shape != spec.shape or str(array.dtype) != spec.dtype:
            raise FqtError(f"{path} does not hold {spec.name} as this model has it", code="FQT504")
    return state, int(metadata["seed"]), [float(rate) for rate in json.loads(metadata["lr"])]
