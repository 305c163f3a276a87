"""A compiled step with its state: what a person trains with."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.runtime.arrays import Array, aligned_copy, aligned_empty, as_array, check_array, check_labels
from fqt_deploy.runtime.artifact import read_artifact, write_artifact
from fqt_deploy.runtime.checkpoint import load_checkpoint, save_checkpoint
from fqt_deploy.runtime.library import Library

_PUBLIC = ("param/", "buffer/")


class Session:
    """Trains and predicts with one artifact.

    Attributes:
        manifest: what was compiled.
        logits: the logits of the last step, or None.
    """

    def __init__(self, manifest: Manifest, state: Mapping[str, Array], library: Path) -> None:
        """Take a copy of ``state``, and of ``library``: the artifact may be replaced or removed while this lives."""
        self.manifest = manifest
        self.logits: Array | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="fqt-")
        self._path = Path(shutil.copy(library, self._folder.name))
        self._library = Library(self._path)
        self._state = {name: aligned_copy(array) for name, array in state.items()}
        self._seed = aligned_copy(np.array(manifest.seed, dtype=np.int64))
        self._rates = aligned_copy(np.array([group["lr"] for group in manifest.optimizer.groups], dtype=np.float32))
        fixed = (self._seed, self._rates, *self._state.values())
        self._fixed = [tvm_ffi.from_dlpack(array) for array in fixed]
        names = list(self._state)
        self._predicting = [self._fixed[2 + names.index(name)] for name in manifest.predict_state]

    def step(self, x: Any, y: Any) -> float:
        """Train on one batch and return its loss before the update.

        Args:
            x: inputs, exactly of the compiled shape and dtype; NumPy, PyTorch or any DLPack CPU tensor.
            y: targets, likewise.

        Raises:
            FqtError: FQT505 to FQT507 for unusable data, before anything is changed; FQT511 if the loss is not finite.
        """
        inputs = check_array(x, self.manifest.inputs[0])
        targets = check_array(y, self.manifest.inputs[1])
        check_labels(targets, self.manifest.classes)
        loss, logits = self._library.train_step(tvm_ffi.from_dlpack(inputs), tvm_ffi.from_dlpack(targets), *self._fixed)
        self.logits = np.from_dlpack(logits)
        value = float(np.from_dlpack(loss))
        if not math.isfinite(value):
            raise FqtError(
                f"the loss is {value} after {self.step_count} steps",
                code="FQT511",
                hint="lower the learning rate, or go back to a checkpoint",
            )
        return value

    __call__ = step

    def predict(self, x: Any) -> Array:
        """Logits for any number of samples, in batches of the compiled size."""
        spec = self.manifest.inputs[0]
        samples = as_array(x, spec.name)
        if samples.ndim != len(spec.shape) or samples.shape[1:] != spec.shape[1:]:
            raise FqtError(
                f"x is {list(samples.shape)}; the model takes any number of samples of {list(spec.shape[1:])}",
                code="FQT505",
            )
        rows = self.manifest.logits.shape[0] // self.manifest.batch
        results = []
        for start in range(0, len(samples), self.manifest.batch):
            part = samples[start : start + self.manifest.batch]
            batch = part
            if len(part) < self.manifest.batch:
                batch = aligned_empty(spec.shape, str(part.dtype))
                batch[: len(part)], batch[len(part) :] = part, 0
            logits = self._library.predict(tvm_ffi.from_dlpack(check_array(batch, spec)), *self._predicting)
            results.append(np.array(np.from_dlpack(logits))[: len(part) * rows])
        return np.concatenate(results) if results else np.empty((0, *self.manifest.logits.shape[1:]), np.float32)

    @property
    def lr(self) -> float:
        """Learning rate of the default parameter group; assigning a number sets all groups in proportion."""
        return float(self._rates[0])

    @lr.setter
    def lr(self, rate: float | Sequence[float]) -> None:
        rates = list(rate) if isinstance(rate, Sequence) else [rate * scale for scale in self._scales()]
        if len(rates) != len(self._rates) or not all(math.isfinite(r) and r >= 0 for r in rates):
            raise FqtError(f"lr is {rate!r}; it must be at least 0, one or {len(self._rates)} numbers", code="FQT202")
        self._rates[:] = rates

    def _scales(self) -> list[float]:
        initial = [float(group["lr"]) for group in self.manifest.optimizer.groups]
        return [rate / initial[0] if initial[0] else 1.0 for rate in initial]

    @property
    def seed(self) -> int:
        """Seed of rounding and selection."""
        return int(self._seed)

    @property
    def step_count(self) -> int:
        """Number of steps taken."""
        return int(self._state["step"])

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters and buffers, named as in the PyTorch model."""
        return {n.split("/", 1)[1]: a.copy() for n, a in self._state.items() if n.startswith(_PUBLIC)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy parameters and buffers into the step; nothing is changed if a name or shape does not fit (FQT504)."""
        names = {n.split("/", 1)[1]: n for n in self._state if n.startswith(_PUBLIC)}
        given = {name: as_array(value, name) for name, value in state.items()}
        missing = [n for n in names if n not in given and not n.endswith("num_batches_tracked")]
        unexpected = [n for n in given if n not in names]
        wrong = [n for n in names if n in given and given[n].shape != self._state[names[n]].shape]
        if missing or unexpected or wrong:
            raise FqtError(
                f"the state does not fit: missing {missing}, unexpected {unexpected}, of another shape {wrong}",
                code="FQT504",
            )
        for name, array in given.items():
            self._state[names[name]][...] = array

    def save_checkpoint(self, path: str | Path) -> None:
        """Write everything that resuming needs: parameters, buffers, optimizer, step number, seed, learning rates."""
        save_checkpoint(Path(path), self.manifest, self._state, self.seed, [float(r) for r in self._rates])

    def load_checkpoint(self, path: str | Path) -> None:
        """Continue from a checkpoint of the same model and options."""
        state, seed, rates = load_checkpoint(Path(path), self.manifest)
        for name, array in self._state.items():
            array[...] = state[name]
        self._seed[...] = seed
        self._rates[:] = rates

    def save(self, folder: str | Path) -> None:
        """Write an artifact whose initial state is the present one."""
        write_artifact(Path(folder), self.manifest, self._state, self._path)


def load(folder: str | Path) -> Session:
    """Open the artifact in ``folder``; FQT501 to FQT503 if it cannot be used."""
    manifest, state, library = read_artifact(Path(folder))
    return Session(manifest, state, library)
