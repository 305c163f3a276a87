"""Everything that can be chosen about a compilation, in one value; each field declares an option (``option.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.layer_bits import ActivationBits, LayerBits, WeightBits, layer_bits_kind
from fqt_deploy.core.layer_plan import read_plan
from fqt_deploy.core.optimizer import Adam, Optimizer, optimizer_kind
from fqt_deploy.core.option import (
    CHECKS,
    GRADIENTS,
    LAYERS,
    OPTIMIZER,
    RESOURCES,
    TARGET,
    WRITING,
    check_options,
    option,
    recorded_options,
)

Recipe = Literal["scq+agp", "scq", "psq-8", "psq-1", "none"]
Sampling = Literal["nested", "tokens", "sampled", "once", "topk"]
Grid = Literal["zero", "minmax"]
ActivationGridKind = Literal["sign", "fitted"]
ACTIVATION_GRIDS: tuple[str, ...] = get_args(ActivationGridKind)
"""What an activation of 1 bit can be."""
Frozen = Literal["fp32", "1-bit"]
Projection = Literal["auto", "off"]
Rematerialization = Literal["off", "auto"]
Exchange = Literal["off", "fp32", "4-bit"]
Statistics = Literal["local", "synchronized"]
Verification = Literal["structure", "numerics", "off"]
GradientBits = Literal[1, 2, 3, 4, 8]
GRADIENT_BITS: tuple[int, ...] = get_args(GradientBits)
"""Widths that a gradient can be quantized to."""

_PER_SAMPLE_BITS = {"psq-8": 8, "psq-1": 1}


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """The options of one target; each target derives its own, with an option for each field."""

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class CompileOptions:
    """The options that say how to compile a model.

    Attributes:
        target_options: the options that the target has (``targets/*/options.py``); None for its defaults.
    """

    prediction: str | None = option(
        None,
        "Predict this output of a model that returns several, by name or number.",
        section=WRITING,
        metavar="NAME",
        default_text="logits, or the first",
    )
    target: str = option("cpu", "Compile for this kind of machine or device.", section=TARGET)
    target_options: TargetOptions | None = None
    recipe: Recipe = option(
        "scq+agp",
        "Quantize gradients with SCQ and prune them (scq+agp), with SCQ alone (scq), per sample (psq-8, psq-1), or "
        "keep them in fp32 (none).",
        section=GRADIENTS,
        in_manifest=True,
    )
    agp: Sampling | None = option(
        None,
        "Keep tokens at linear layers that have several of a sample, and at others what sampled keeps (tokens); "
        "samples, on the way back fewer of them (nested); samples and channels by size at random (sampled); "
        "samples drawn once a step (once); or the largest samples and channels (topk).",
        section=GRADIENTS,
        default_text="tokens for transformers, else nested, or once or sampled where a model does not allow it",
        in_manifest=True,
    )
    grad_bits: GradientBits | None = option(
        None,
        "Keep this many bits of a gradient, with recipes that do not fix it.",
        section=GRADIENTS,
        default_text="3 for nested selections, else 4",
        in_manifest=True,
        recorded_as="gradient_bits",
    )
    grid: Grid | None = option(
        None,
        "Put 0 on the quantization grid (zero), or the smallest and the largest value (minmax).",
        section=GRADIENTS,
        default_text="zero, or minmax for 1 bit",
        in_manifest=True,
        recorded_as="resolved_grid",
    )
    projection: Projection = option(
        "auto",
        "Take out of weight gradients what batch normalization makes zero, which is noise alone (auto), or leave it "
        "in, as the paper does (off).",
        section=GRADIENTS,
        in_manifest=True,
    )
    seed: int = option(0, "Draw rounding and selection from this seed.", section=GRADIENTS, minimum=0, below=2**63)
    include: tuple[str, ...] = option(
        (),
        "Binarize exactly the layers that match the glob. Repeatable.",
        section=LAYERS,
        metavar="GLOB",
        default_text="the compiler's choice",
        in_manifest=True,
    )
    exclude: tuple[str, ...] = option(
        (),
        "Leave the layers that match the glob in fp32. Repeatable.",
        section=LAYERS,
        metavar="GLOB",
        in_manifest=True,
    )
    frozen: Frozen = option(
        "fp32",
        "Leave layers with frozen weights in fp32 (fp32), or run them as if they were trained (1-bit), which is for "
        "weights that another step trains in 1 bit, such as a GAN's discriminator.",
        section=LAYERS,
    )
    weight_bits: WeightBits = option(
        1,
        "Keep this many bits of a weight of a binarized layer: with more a step is slower, and more accurate.",
        section=LAYERS,
    )
    activation_bits: ActivationBits = option(
        4,
        "Keep this many bits of an activation of a binarized layer: with fewer a step is faster, and less accurate.",
        section=LAYERS,
    )
    activation_grid: ActivationGridKind = option(
        "fitted",
        "Where 1 bit is kept of an activation that is hardly ever negative, as behind a ReLU, round it to 0 or a value "
        "that fits the example batch (fitted), or keep its sign (sign); others keep their signs.",
        section=LAYERS,
    )
    bits: tuple[LayerBits, ...] = option(
        (),
        "Keep this many bits of the weights and the activations of layers that match; the first match counts. "
        "Repeatable.",
        section=LAYERS,
        kind=layer_bits_kind(),
    )
    plan_file: Path | None = option(
        None,
        "Take the layers in fp32 and the bits of the others from this file, which --plan writes; --bits counts first.",
        section=LAYERS,
        metavar="FILE",
        default_text="none",
    )
    optimizer: Optimizer = option(
        Adam(), "End each step with this update.", section=OPTIMIZER, kind=optimizer_kind(), default_text="adam"
    )
    remat: Rematerialization = option(
        "off",
        "Keep the 1-bit products of forward for backward (off), or compute them again there (auto): less memory, more "
        "time, the same numbers but for rounding.",
        section=RESOURCES,
    )
    distributed: Exchange = option(
        "off",
        "Train in one process (off), or in several under torchrun, which average their gradients as they are (fp32) or "
        "as codes, an eighth of the bytes (4-bit).",
        section=RESOURCES,
        in_manifest=True,
    )
    batch_norm: Statistics = option(
        "local",
        "Normalize batches by the statistics of a process's own samples (local), or, with --distributed, of those of "
        "all processes (synchronized).",
        section=RESOURCES,
        in_manifest=True,
    )
    tune: bool = option(
        False,
        "Measure the tiles of 1-bit products that no log has, on this machine before compiling, and keep the fastest.",
        section=RESOURCES,
    )
    tuning_log: Path | None = option(
        None,
        "Go by the measured tiles in this file; --tune adds to it.",
        section=RESOURCES,
        metavar="FILE",
        default_text="one in the user's cache folder",
    )
    verify: Verification = option(
        "structure",
        "Check every graph (structure), also every kernel and every rewrite, foreign kernels under QEMU (numerics), or "
        "nothing (off).",
        section=CHECKS,
    )
    dump_ir: Path | None = option(
        None, "Write the graph after every pass to this folder.", section=CHECKS, metavar="DIR"
    )
    print_after: tuple[str, ...] = option(
        (), "Print the graph after this pass. Repeatable.", section=CHECKS, metavar="PASS"
    )
    time_passes: bool = option(False, "Print the time that every pass took.", section=CHECKS)

    def __post_init__(self) -> None:
        check_options(self)
        if self.plan_file is not None:
            self._take_plan(self.plan_file)
        if self.grid == "zero" and self.gradient_bits == 1 and self.recipe != "none":
            raise FqtError(
                "grid 'zero' needs gradients of at least 2 bits: one bit has no level to spare for 0",
                code="FQT202",
                hint="use grid 'minmax'",
            )
        if self.batch_norm == "synchronized" and self.distributed == "off":
            raise FqtError(
                "batch_norm 'synchronized' is for several processes, and distributed is 'off'",
                code="FQT202",
                hint="add --distributed fp32, or leave --batch-norm out",
            )

    def _take_plan(self, path: Path) -> None:
        """Spell the plan in ``path`` as the options that it stands for: from here on there is no file."""
        plan = read_plan(path)
        if plan.include and self.include not in ((), plan.include):
            raise FqtError(
                f"--include is given, and {path} has other globs to include",
                code="FQT202",
                hint="leave one of them out",
            )
        taken = {
            "include": self.include or plan.include,
            "exclude": (*self.exclude, *plan.exclude),
            "bits": (*self.bits, *plan.bits),
            "plan_file": None,
        }
        for name, value in taken.items():
            object.__setattr__(self, name, value)

    @property
    def gradient_bits(self) -> int:
        """Width of a quantized gradient under the chosen recipe."""
        nested = self.recipe == "scq+agp" and self.agp in (None, "nested")
        return _PER_SAMPLE_BITS.get(self.recipe, self.grad_bits or (3 if nested else 4))

    @property
    def token_bits(self) -> int:
        """Width of a quantized gradient of which tokens are kept, where the recipe selects."""
        return self.grad_bits or 4

    @property
    def resolved_grid(self) -> Grid:
        """The grid, chosen by the gradient's width if it was left open."""
        if self.grid is not None:
            return self.grid
        return "zero" if self.gradient_bits >= 2 else "minmax"

    def numerics(self) -> dict[str, Any]:
        """The options that change computed numbers, as the manifest stores them; there ``agp`` is what came of it.

        A step for one process says nothing of others, nor one with statistics of its own of those of others: their
        checkpoints are those of versions that knew no others.
        """
        silent = (("distributed", "off"), ("batch_norm", "local"))
        return {name: value for name, value in recorded_options(self).items() if (name, value) not in silent}
