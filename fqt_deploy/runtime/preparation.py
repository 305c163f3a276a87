"""What becomes of samples before a step takes them: scale, mean and deviation, and for training flips and shifts."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import InputSpec, Manifest
from fqt_deploy.runtime.data_file import Data
from fqt_deploy.runtime.sources.source import Array, Source

_COMPARED = 64
"""Number of samples that processes compare before they train together."""
_UNSIGNED = 2**64 - 1


@dataclass(frozen=True)
class Preparation:
    """How samples are prepared.

    Attributes:
        mean: subtracted from each channel, in units of the largest pixel; one for all channels, or none.
        std: each channel is divided by it, likewise.
        flip: mirror images from left to right, half of them.
        crop: shift images by at most this many pixels each way; zeros come in.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    flip: bool = False
    crop: int = 0

    def check(self, shape: tuple[int, ...]) -> None:
        """FQT202 unless samples of ``shape`` can be prepared so."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) not in (1, shape[0] if shape else 1):
                raise FqtError(f"{len(values)} values of {name} for {shape[0]} channels", code="FQT202")
        if any(value <= 0 for value in self.std):
            raise FqtError("a standard deviation is not above 0", code="FQT202")
        if (self.flip or self.crop) and len(shape) != 3:
            raise FqtError(f"samples of {list(shape)} are no images: they have no flip and crop", code="FQT202")

    def inputs(self, x: Array) -> Array:
        """Samples as float32: bytes become numbers from 0 to 1, then mean and deviation are taken out."""
        if x.dtype == np.uint8:
            x = x.astype(np.float32) / 255
        if self.mean:
            x = x - self._along_channels(self.mean, x.ndim)
        if self.std:
            x = x / self._along_channels(self.std, x.ndim)
        return x

    @staticmethod
    def _along_channels(values: tuple[float, ...], axes: int) -> Array:
        return np.array(values, np.float32).reshape(1, -1, *[1] * (axes - 2))

    def augmented(self, x: Array, index: NDArray[np.int64], count: int, seed: int, epoch: int) -> Array:
        """Images flipped and shifted at random, which depends on seed, epoch and the sample's number alone.

        Args:
            x: [n, channels, height, width], the samples ``index``.
            index: [n] int64, numbers of the samples.
            count: number of samples in all.
            seed: of the run.
            epoch: from 0.
        """
        if not (self.flip or self.crop):
            return x
        flips, shifts = _draws(seed & _UNSIGNED, epoch, count, self.crop)
        height, width = x.shape[2:]
        edge = ((0, 0), (0, 0), (self.crop, self.crop), (self.crop, self.crop))
        padded, result = np.pad(x, edge), np.empty_like(x)
        for row, number in enumerate(index):
            top, left = shifts[number]
            image = padded[row, :, top : top + height, left : left + width]
            result[row] = image[..., ::-1] if self.flip and flips[number] else image
        return result


@functools.lru_cache(maxsize=2)
def _draws(seed: int, epoch: int, count: int, crop: int) -> tuple[Array, Array]:
    """Which of all samples are mirrored in an epoch, [count] bool, and how far each is shifted, [count, 2]."""
    rng = np.random.default_rng([seed, epoch, 1])
    return rng.random(count) < 0.5, rng.integers(0, 2 * crop + 1, (count, 2))


@dataclass(frozen=True)
class Prepared:
    """The samples of a source as a step takes them.

    Attributes:
        source: where they are read from: a file of all arrays by name, or a source of one input and one target.
        preparation: what is done to the first input.
        manifest: the manifest of the step.
        name: what the source is called in messages.
        seed: seed of the run.
    """

    source: Source | Data
    preparation: Preparation
    manifest: Manifest
    name: str
    seed: int = 0

    def __len__(self) -> int:
        return len(self.source)

    def digest(self) -> str:
        """Digest of the number of samples and of some of them, to compare with that of another process."""
        digest = hashlib.sha256(str(len(self)).encode())
        places = np.unique(np.linspace(0, len(self) - 1, min(len(self), _COMPARED)).astype(np.int64))
        for name, array in self.batch(places).items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def batch(self, index: NDArray[np.int64], epoch: int | None = None) -> dict[str, Array]:
        """Arrays of the samples ``index`` by name; augmented for training in ``epoch``, if it is given.

        Raises:
            FqtError: FQT510 if they are not of the step's shapes and types.
        """
        inputs, targets = self.manifest.model_inputs[0], self.manifest.targets
        rows = self.source.rows(index)
        arrays = rows if isinstance(rows, dict) else dict(zip((inputs.name, targets[0].name), rows, strict=True))
        x = arrays[inputs.name]
        if epoch is not None:
            x = self.preparation.augmented(x, index, len(self.source), self.seed, epoch)
        arrays = {**arrays, inputs.name: self.preparation.inputs(x)}
        return {spec.name: self._fitting(arrays[spec.name], spec) for spec in self.manifest.inputs}

    def _fitting(self, array: Array, spec: InputSpec) -> Array:
        """The array in the type of ``spec``; FQT510 if it is not of its shape and kind."""
        if array.dtype.kind in "iu" or spec.dtype == "float32":
            array = array.astype(spec.dtype, copy=False)
        if array.ndim == 1 and spec.shape[1:] == (1,):
            array = array[:, np.newaxis]
        if array.shape[1:] != spec.shape[1:] or array.dtype.name != spec.dtype:
            raise FqtError(
                f"{spec.name} in {self.name} is {array.dtype} {list(array.shape[1:])}; the step takes {spec.dtype} "
                f"samples of {list(spec.shape[1:])}",
                code="FQT510",
            )
        return array
