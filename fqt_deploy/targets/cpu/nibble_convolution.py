"""What the convolutions by byte shuffles have in common, whichever way they go."""

from __future__ import annotations

from dataclasses import dataclass

from fqt_deploy.targets.cpu.nibble_table import ByteShuffle


@dataclass(frozen=True, kw_only=True)
class ShuffledConvolution:
    """A convolution whose columns look up bytes, and how it is cut into jobs.

    Attributes:
        samples, words: number of samples, words of bits of a position.
        kernel, stride, padding: of the forward convolution.
        is_flat: positions are taken one after another, whatever image they belong to: a product of matrices.
        job: rows and columns of positions of one job.
        shuffle: the processor's vectors.
    """

    samples: int
    words: int
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    is_flat: bool
    job: list[int]
    shuffle: ByteShuffle

    @property
    def taps(self) -> int:
        """Of the kernel."""
        return self.kernel[0] * self.kernel[1]
