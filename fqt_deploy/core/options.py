"""Everything that can be chosen about a compilation, in one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.optimizer import Adam, Optimizer

Recipe = Literal["none", "psq-8", "psq-1", "scq", "scq+agp"]
Sampling = Literal["topk", "sampled", "once", "nested"]
Grid = Literal["minmax", "zero"]
Projection = Literal["auto", "off"]
Rematerialization = Literal["off", "auto"]
Verification = Literal["off", "structure", "numerics"]

GRADIENT_BITS = (1, 2, 3, 4, 8)
"""Widths that a gradient can be quantized to."""

_PER_SAMPLE_BITS = {"psq-8": 8, "psq-1": 1}


@dataclass(frozen=True)
class CompileOptions:
    """How to compile a model.

    Attributes:
        target: name of the target to generate code for.
        mcpu: LLVM name of the processor; None for the one compiling.
        arch: GPU architectures, such as ``sm_80,sm_90a``; None for the target's default.
        tf32: whether a GPU may round the operands of fp32 products to TF32, for speed.
        recipe: how gradients are quantized. ``none``: plain fp32 training; ``psq-8`` and ``psq-1``: per sample, without
            pruning; ``scq``: Sample Channel joint Quantization; ``scq+agp``: with Activation Gradient Pruning.
        grad_bits: width of a quantized gradient, for recipes that do not fix it. None: 3 for nested selections, else 4.
        agp: which samples or channels pruning keeps. ``topk``: the largest; ``sampled``: at random by size, unbiased;
            ``once``: samples only, chosen once for the whole backward; ``nested``: samples only, from those chosen some
            are chosen again on the way back, fewer where a sample has more gradient elements. None: ``nested``, or
            ``once`` or ``sampled`` for a model that does not allow it.
        grid: where the quantization grid lies; None chooses by width. ``zero`` makes 0 exactly representable.
        projection: ``auto`` takes out of quantized weight gradients what batch normalization makes zero, which is noise
            alone; ``off`` leaves it in, as the paper does.
        include: globs of layers to binarize; none means the default choice.
        exclude: globs of layers to leave in fp32.
        remat: ``auto`` computes the integer products of forward again in backward rather than keep them: less memory,
            the same numbers, more time. ``off`` keeps them.
        optimizer: the update that ends a step.
        seed: initial seed of the random streams.
        tune: measure the tiles of 1-bit products on this machine before compiling, those that no log has.
        tuning_log: file of measured tiles to go by, and to add to; None for the one in the user's cache folder.
        verify: what is checked after every pass.
        dump_ir: folder to write the graph to after every pass.
        print_after: names of passes to print the graph after.
        time_passes: report the time of every pass.
    """

    target: str = "cpu"
    mcpu: str | None = None
    arch: str | None = None
    tf32: bool = False
    recipe: Recipe = "scq+agp"
    grad_bits: int | None = None
    agp: Sampling | None = None
    grid: Grid | None = None
    projection: Projection = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    remat: Rematerialization = "off"
    optimizer: Optimizer = field(default_factory=Adam)
    seed: int = 0
    tune: bool = False
    tuning_log: Path | None = None
    verify: Verification = "structure"
    dump_ir: Path | None = None
    print_after: tuple[str, ...] = ()
    time_passes: bool = False

    def __post_init__(self) -> None:
        _one_of("recipe", self.recipe, get_args(Recipe))
        _one_of("grad_bits", self.grad_bits, (None, *GRADIENT_BITS))
        _one_of("agp", self.agp, (None, *get_args(Sampling)))
        _one_of("grid", self.grid, (None, *get_args(Grid)))
        _one_of("projection", self.projection, get_args(Projection))
        _one_of("remat", self.remat, get_args(Rematerialization))
        _one_of("verify", self.verify, get_args(Verification))
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise FqtError(f"seed is {self.seed!r}; it must be an integer in [0, 2^63)", code="FQT202")
        _one_of("tf32", self.tf32, (True, False))
        _one_of("tune", self.tune, (True, False))
        if not isinstance(self.mcpu, str | None):
            raise FqtError(f"mcpu is {self.mcpu!r}; it must be a name", code="FQT202")
        if self.grid == "zero" and self.gradient_bits == 1 and self.recipe != "none":
            raise FqtError(
                "grid 'zero' needs gradients of at least 2 bits: one bit has no level to spare for 0",
                code="FQT202",
                hint="use grid 'minmax'",
            )

    @property
    def gradient_bits(self) -> int:
        """Width of a quantized gradient under the chosen recipe."""
        nested = self.recipe == "scq+agp" and self.agp in (None, "nested")
        return _PER_SAMPLE_BITS.get(self.recipe, self.grad_bits or (3 if nested else 4))

    @property
    def resolved_grid(self) -> Grid:
        """The grid, chosen by the gradient's width if it was left open."""
        if self.grid is not None:
            return self.grid
        return "zero" if self.gradient_bits >= 2 else "minmax"

    def numerics(self) -> dict[str, Any]:
        """The options that change computed numbers, as the manifest stores them beside how gradients were selected."""
        return {
            "recipe": self.recipe,
            "grad_bits": self.gradient_bits,
            "grid": self.resolved_grid,
            "projection": self.projection,
            "include": list(self.include),
            "exclude": list(self.exclude),
        }


def _one_of(option: str, given: object, allowed: tuple[object, ...]) -> None:
    if given not in allowed:
        names = ", ".join(str(value) for value in allowed if value is not None)
        raise FqtError(f"{option} is {given!r}; it must be one of {names}", code="FQT202")
