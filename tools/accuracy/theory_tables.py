"""Tables of what the command ``theory`` measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tools.accuracy.gradient_noise import WHOLE

Line = dict[str, Any]


def noise_table(lines: list[Line]) -> list[str]:
    """Table of the noise of all binarized layers' weight gradients together, by point in training and recipe."""
    table = [
        "| point | recipe | variance | squared bias | unbiasedness | cosine |",
        "|---|---|---|---|---|---|",
    ]
    for line in _chosen(lines, "step", WHOLE):
        numbers = [f"{line[name]:.3g}" for name in ("variance", "bias", "unbiasedness", "cosine")]
        table.append("| " + " | ".join([line["point"], f"`{line['row']}`", *numbers]) + " |")
    return table


def quantizer_table(lines: list[Line]) -> list[str]:
    """Quantizers of the activation gradient by layer, beside Eq. 24."""
    table = [
        "| layer | psq-1 | Eq. 24 | AGP, rounding | Eq. 24 | AGP sampled, all | unbiasedness | top-k, all | "
        "top quarter of samples | of channels |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = ("psq1", "psq1_bound", "rounding", "rounding_bound", "sampled", "sampled_bias", "topk")
    shares = ("concentration", "channel_concentration")
    for line in reversed(_chosen(lines, "quantizer")):  # backward order
        cells = [f"{line[name]:.3g}" for name in names] + [f"{line[name]:.0%}" for name in shares]
        table.append("| " + " | ".join([f"`{line['layer']}`", *cells]) + " |")
    return table


def _chosen(lines: list[Line], kind: str, layer: str | None = None) -> list[Line]:
    return [line for line in lines if line["kind"] == kind and layer in (None, line["layer"])]


THEORY_TABLES: dict[str, Callable[[list[Line]], list[str]]] = {"noise": noise_table, "quantizers": quantizer_table}
"""Tables by the name that a document asks for."""
