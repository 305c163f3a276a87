"""The cut of a convolution of codes with levels of weights into jobs, whose image fits a cache, and tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets.cpu.products.byte_product.multiplier import STEPS, ByteMultiplier
from fqt_deploy.targets.cpu.register_tile import largest_divisor
from fqt_deploy.targets.products import Extents, PackedConvolution

IMAGE_BYTES = 1 << 18
"""Upper bound of the bytes of one job's image, which are read from the second-level cache."""
JOB_POSITIONS = 256
"""Upper bound of the positions of a job: so many use the levels that it makes of the weight."""
JOBS = 8
"""Number of independent pieces to cut a product into: work for that many threads."""
CHUNK_WORDS = 18
"""Upper bound of the words of a chunk of the weight, whose levels are read from the first-level cache."""
ALIASING_LANES = 256
"""Positions that lie a multiple of so many lanes apart would meet in the same sets of the first-level cache."""


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution over an operand of which each job stores some rows, zeros around it included.

    Forward each position reads rows ``step`` apart from those of its neighbour. Backward, of an operand whose rows lie
    ``phases`` apart, the positions of a phase, all that leave the same rest, read it through the same taps.

    Attributes:
        positions: of the result.
        source: rows of the operand.
        taps: of the kernel.
        step: stored rows between those that neighbouring positions of a phase read.
        spacing: rows of the operand between stored ones.
        phases: rests of the result's positions.
        border: zeros before the operand, in rows of the result where there are phases.
    """

    positions: int
    source: int
    taps: int
    step: int = 1
    spacing: int = 1
    phases: int = 1
    border: int = 0

    @classmethod
    def forward(cls, positions: int, source: int, taps: int, stride: int, padding: int) -> Axis:
        """The axis of a convolution: through a single tap, what lies between strides is not read."""
        spacing = stride if taps == 1 else 1
        return cls(positions, source, taps, step=stride // spacing, spacing=spacing, border=padding)

    @property
    def phase_positions(self) -> int:
        """Positions of a phase; the last one of some phases may not exist."""
        return -(-self.positions // self.phases)

    @property
    def lowest(self) -> int:
        """The first row of the operand that the first position may read through some tap; may be negative."""
        return -self.border // self.phases

    def stored(self, band: int) -> int:
        """Number of rows that ``band`` positions of all phases read."""
        if self.phases == 1:
            return (band - 1) * self.step + self.taps
        last = (self.phases - 1 + self.taps - 1 - self.border) // self.phases
        return band - 1 + last - self.lowest + 1

    def row(self, first: Any, stored: Any) -> Any:
        """The row of the operand that is stored so far from the beginning, for a band from position ``first`` on."""
        return (first * self.step + stored) * self.spacing + self.lowest

    def reads(self, phase: Any, tap: Any) -> Any:
        """Whether the positions of a phase read the operand through a tap."""
        return tirx.floormod(phase + tap - self.border, self.phases).equal(0)

    def shift(self, phase: Any, tap: Any) -> Any:
        """Stored rows between the first that a position may read and that which it reads through a tap."""
        return tap if self.phases == 1 else tirx.floordiv(phase + tap - self.border, self.phases) - self.lowest


@dataclass(frozen=True)
class CodeConvolutionCut:
    """A convolution of codes with levels of weights, and how it is cut.

    Attributes:
        product: what is computed: samples, kernel, depth, columns and planes of a weight.
        bits: of a code.
        axes: rows and columns.
        flipped: the weight's last tap is applied first.
        multiplier: the processor's products of bytes.
    """

    product: PackedConvolution
    bits: int
    axes: tuple[Axis, Axis]
    flipped: bool
    multiplier: ByteMultiplier

    @property
    def rows(self) -> int:
        """Number of positions of a tile."""
        return self.multiplier.rows

    @property
    def lanes(self) -> int:
        """Number of columns of a register."""
        return self.multiplier.lanes

    @property
    def vectors(self) -> int:
        """Number of registers of a block of columns."""
        return largest_divisor(self.product.columns // self.lanes, self.multiplier.vectors)

    @property
    def blocks(self) -> int:
        """Number of blocks of columns."""
        return self.product.columns // (self.vectors * self.lanes)

    @property
    def phases(self) -> int:
        """Number of phases of positions."""
        return self.axes[0].phases * self.axes[1].phases

    @property
    def width(self) -> int:
        """Number of positions of a phase in one row."""
        return self.axes[1].phase_positions

    @property
    def height(self) -> int:
        """Number of rows of a phase."""
        return self.axes[0].phase_positions

    @property
    def position_lanes(self) -> int:
        """Number of lanes that a position takes in the image: four codes each."""
        lanes = self.product.words * STEPS
        return lanes + (PANEL if lanes % ALIASING_LANES == 0 else 0)

    @property
    def band(self) -> int:
        """Number of rows of each phase of a job: as many as the image's cache and the job's positions allow."""
        fitting = [b for b in range(1, self.height + 1) if self.height % b == 0 and self._fits(b, 1)]
        return max(fitting, default=1)

    @property
    def group(self) -> int:
        """Number of samples of a job, where it takes whole ones; the last job may have fewer."""
        if self.band < self.height:
            return 1
        most = max((g for g in range(1, self.product.samples + 1) if self._fits(self.band, g)), default=1)
        return -(-self.product.samples // -(-self.product.samples // most))

    def _fits(self, band: int, group: int) -> bool:
        image = group * self.axes[0].stored(band) * self.axes[1].stored(self.width) * self.position_lanes * 4
        return image <= IMAGE_BYTES and group * band * self.width * self.phases <= JOB_POSITIONS

    @property
    def bands(self) -> int:
        """Number of bands in an image."""
        return self.height // self.band

    @property
    def groups(self) -> int:
        """Number of groups of samples."""
        return -(-self.product.samples // self.group)

    @property
    def parts(self) -> int:
        """Number of parts of the columns, each for jobs of its own: as few as leave enough jobs."""
        pieces = self.groups * self.bands
        enough = (s for s in range(1, self.blocks + 1) if self.blocks % s == 0 and s * pieces >= JOBS)
        return next(enough, self.blocks)

    @property
    def jobs(self) -> int:
        """Number of independent jobs."""
        return self.groups * self.bands * self.parts

    @property
    def job_blocks(self) -> int:
        """Number of blocks of columns of a job."""
        return self.blocks // self.parts

    @property
    def stored(self) -> Extents:
        """Rows and columns of one sample's image of a job."""
        return self.axes[0].stored(self.band), self.axes[1].stored(self.width)

    @property
    def image_lanes(self) -> int:
        """Number of lanes of the image of a job."""
        return self.group * self.stored[0] * self.stored[1] * self.position_lanes

    @property
    def most_positions(self) -> int:
        """Upper bound of the positions of one phase of a job."""
        return self.group * self.band * self.width

    @property
    def most_tiles(self) -> int:
        """Upper bound of the tiles of one phase of a job."""
        return -(-self.most_positions // self.rows)

    @property
    def chunk(self) -> Extents:
        """Taps and words of a chunk of the weight; the last one along the words may have fewer."""
        words = -(-self.product.words // -(-self.product.words // CHUNK_WORDS))
        together = CHUNK_WORDS // words if words == self.product.words else 1
        return largest_divisor(self.product.taps, together), words

    @property
    def runs(self) -> int:
        """Number of chunks along the words of a tap."""
        return -(-self.product.words // self.chunk[1])

    @property
    def slots(self) -> int:
        """Number of positions whose sums are kept: of a tile, or of all tiles from chunk to chunk."""
        one_chunk = self.runs == 1 and self.chunk[0] == self.product.taps
        return self.rows if one_chunk else self.phases * self.most_tiles * self.rows

    def slot(self, phase: Any, tile: Any) -> Any:
        """The place of the sums of the first position of a tile."""
        return 0 if self.slots == self.rows else (phase * self.most_tiles + tile) * self.rows

    @property
    def part(self) -> tuple[int, int, int]:
        """Taps, words and lanes of each word whose products fit one sum of the multiplier."""
        taps, words = self.chunk
        limit = self.multiplier.steps(self.bits, self.product.weight_planes, most=taps * words * STEPS)
        if limit < STEPS:
            return 1, 1, largest_divisor(STEPS, limit)
        whole = min(words, limit // STEPS)
        return (largest_divisor(taps, limit // STEPS // whole) if whole == words else 1), whole, STEPS

    def first_sample(self, job: Any) -> Any:
        """The first sample of a job."""
        return job // (self.bands * self.parts) * self.group

    def first_row(self, job: Any) -> Any:
        """The first row of each phase of a job."""
        return job // self.parts % self.bands * self.band

    def block(self, job: Any, b: Any) -> Any:
        """The number of a job's block of columns among all of them."""
        return job % self.parts * self.job_blocks + b

    def positions(self, job: Any) -> Any:
        """Number of positions of one phase of a job."""
        if self.product.samples % self.group == 0:
            return self.most_positions
        return T.min(self.group, self.product.samples - self.first_sample(job)) * self.band * self.width

    def source(self, job: Any, g: Any, h: Any, v: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the operand at a place of a job's image."""
        row, column = self.axes[0].row(self.first_row(job), h), self.axes[1].row(0, v)
        return self.first_sample(job) + g, row, column

    def is_inside(self, at: tuple[Any, Any, Any]) -> Any:
        """Whether the operand has that sample, row and column."""
        n, y, z = at
        return tirx.all(n < self.product.samples, y >= 0, y < self.axes[0].source, z >= 0, z < self.axes[1].source)

    def lane(self, g: Any, h: Any, v: Any) -> Any:
        """The lane of a job's image where a place of it begins."""
        return ((g * self.stored[0] + h) * self.stored[1] + v) * self.position_lanes

    def place(self, position: Any) -> tuple[Any, Any, Any]:
        """Sample of a job, row and column of one of its positions, among those of its phase."""
        return position // (self.band * self.width), position // self.width % self.band, position % self.width

    def begin(self, position: Any) -> Any:
        """The lane of a job's image where what a position may read first begins."""
        g, y, x = self.place(position)
        return self.lane(g, y * self.axes[0].step, x * self.axes[1].step)

    def result_position(self, job: Any, phase: Any, position: Any) -> tuple[Any, Any, Any]:
        """Sample, row and column of the result of a position."""
        g, y, x = self.place(position)
        down, across = (axis.phases for axis in self.axes)
        row = (self.first_row(job) + y) * down + phase // across
        return self.first_sample(job) + g, row, x * across + phase % across

    def has_position(self, at: tuple[Any, Any, Any]) -> Any:
        """Whether the result has that row and column."""
        return tirx.all(at[1] < self.axes[0].positions, at[2] < self.axes[1].positions)

    def reads(self, phase: Any, tap: Any) -> Any:
        """Whether the positions of a phase read the operand through a tap."""
        down, across = self.product.tap(tap)
        phases = self.axes[1].phases
        return tirx.all(self.axes[0].reads(phase // phases, down), self.axes[1].reads(phase % phases, across))

    def shift(self, phase: Any, tap: Any) -> Any:
        """Lanes between what a position may read first and what it reads through a tap."""
        down, across = self.product.tap(tap)
        phases = self.axes[1].phases
        return self.lane(0, self.axes[0].shift(phase // phases, down), self.axes[1].shift(phase % phases, across))

    def weight_row(self, tap: Any, word: Any) -> Any:
        """The row of each panel of the packed weight that a word meets through a tap."""
        return (self.product.taps - 1 - tap if self.flipped else tap) * self.product.words + word

    def weight_words(self, weight: Any, vector: Any, row: Any) -> list[Any]:
        """A word of the columns of a register, of each plane of the weight."""
        at = vector * self.lanes
        return self.product.weight_words(weight, at // PANEL, row, T.ramp(at % PANEL, 1, self.lanes))
