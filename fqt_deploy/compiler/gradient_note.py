"""What a step does to its gradients, in a sentence, and what to try where it then learns too slowly."""

from __future__ import annotations

from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.core.options import CompileOptions

_KEPT = {
    "tokens": "the tokens",
    "nested": "the samples",
    "once": "the samples",
    "sampled": "the samples and of the channels",
    "topk": "the samples and of the channels",
}
"""What each selection takes a part of."""


def gradient_note(graph: TrainingGraph, options: CompileOptions) -> str:
    """Returns the sentence on a captured step after the passes; empty where no gradient is quantized."""
    if options.recipe == "none" or not any(layer.binarized for layer in graph.layers):
        return ""
    kept = graph.selection if options.recipe == "scq+agp" else None
    bits = options.token_bits if kept == "tokens" else options.gradient_bits
    if kept is None or bits == 1:
        unused = f" agp {options.agp!r} counts for nothing with recipe {options.recipe!r}." if _no_agp(options) else ""
        return f"Gradients of 1-bit layers keep {_bits(bits)}, all of them.{unused}"
    share = {2: "half", 3: "a third", 4: "a quarter", 8: "an eighth"}[bits]
    return (
        f"Gradients of 1-bit layers keep {_bits(bits)}, of {share} of {_KEPT[kept]}: a step learns like one of a "
        "smaller batch. If it learns too slowly, try --preset close."
    )


def _no_agp(options: CompileOptions) -> bool:
    """Whether a selection is asked for that the recipe, which a preset may have chosen, does not make."""
    return options.agp is not None and options.recipe != "scq+agp"


def _bits(bits: int) -> str:
    return "1 bit" if bits == 1 else f"{bits} bits"
