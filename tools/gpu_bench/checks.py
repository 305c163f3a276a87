"""The checks that must pass before anything is timed; they need neither PyTorch nor the compiler."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fqt_deploy
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.runtime.artifact import read_artifact
from fqt_deploy.runtime.cuda_library import CudaLibrary
from tools.gpu_bench import layout

Array = NDArray[Any]
Found = dict[str, Any]


def check_kernels(folder: Path) -> Found:
    """Run every kernel of the digits step on the reference's operands and compare the results."""
    artifact = layout.artifact(folder, layout.CHECKED)
    table = json.loads((artifact / layout.CASE_TABLE).read_text())
    manifest, _, path = read_artifact(artifact)
    library = CudaLibrary(path, manifest)
    wrong = []
    with np.load(artifact / layout.CASES) as arrays:
        for number, row in enumerate(table):
            operands = [library.place(a) for a in _numbered(arrays, f"{number}_operand")]
            expected = _numbered(arrays, f"{number}_expected")
            results = [
                library.place(np.zeros_like(e)) if i is None else operands[i]
                for i, e in zip(row["in_place"], expected, strict=True)
            ]
            library.run_kernel(row["symbol"], *operands, *results)
            pairs = [(library.fetch(r), e) for r, e in zip(results, expected, strict=True)]
            errors = [_error(actual, e, row["floor"]) for actual, e in pairs]
            allowed = [row["tolerance"] if e.dtype.kind == "f" else 0.0 for _, e in pairs]
            if not all(error <= limit for error, limit in zip(errors, allowed, strict=True)):
                wrong.append({"symbol": row["symbol"], "op": row["op"], "layer": row["layer"], "error": max(errors)})
    print(f"kernels: {len(table) - len(wrong)} of {len(table)} agree with the PyTorch reference")
    for row in wrong:
        print(f"  WRONG {row['symbol']} ({row['op']}, {row['layer']}): {row['error']:.3g}")
    return {"kernels": len(table), "wrong": wrong}


def check_training(folder: Path, steps: int = 50) -> Found:
    """Steps on one batch, as a graph and launch by launch: the same bits, and a loss that falls."""
    losses = {}
    for graphs in ("1", "0"):
        os.environ["FQT_CUDA_GRAPH"] = graphs
        session = fqt_deploy.load(layout.artifact(folder, layout.CHECKED))
        batch = random_batch(session.manifest)
        losses[graphs] = [session.step(*batch) for _ in range(steps)]
    os.environ["FQT_CUDA_GRAPH"] = "1"
    first, last, same = losses["1"][0], losses["1"][-1], losses["1"] == losses["0"]
    print(f"training: {steps} steps, loss {first:.4f} to {last:.4f}, {'same' if same else 'DIFFERENT'} bits as a graph")
    return {"first_loss": first, "last_loss": last, "same": same, "falls": last < 0.8 * first}


def random_batch(manifest: Manifest) -> tuple[Array, Array]:
    """Normal inputs and random labels."""
    x_spec, y_spec = manifest.inputs
    generator = np.random.default_rng(0)
    x = generator.standard_normal(x_spec.shape).astype(x_spec.dtype)
    return x, generator.integers(0, manifest.classes or 1, y_spec.shape).astype(y_spec.dtype)


def _numbered(arrays: Any, prefix: str) -> list[Array]:
    found: list[Array] = []
    while f"{prefix}_{len(found)}" in arrays:
        found.append(arrays[f"{prefix}_{len(found)}"])
    return found


def _error(actual: Array, expected: Array, floor: float) -> float:
    """Relative error of floats; of others the share that differs."""
    if expected.dtype.kind != "f":
        return float((actual != expected).mean()) if expected.size else 0.0
    scale = max(float(np.linalg.norm(expected.astype(np.float64))), floor)
    error = float(np.linalg.norm(actual.astype(np.float64) - expected))
    return error / scale if scale else error
