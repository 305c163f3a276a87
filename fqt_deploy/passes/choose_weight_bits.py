"""Give binarized layers weights of several bits, where they are asked for.

Before::

    layer body = conv2d binarized=True                    # its record; the graph itself stays as it is

After::

    layer body = conv2d binarized=True weight_bits=2

A weight's grid needs no choice: it is signed, and its spacing follows the mean magnitude of each output channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from fqt_deploy.core.graph import LayerRecord, TrainingGraph
from fqt_deploy.core.layer_bits import WEIGHT_BITS, LayerBits
from fqt_deploy.passes.pass_base import Pass


@dataclass(frozen=True)
class ChooseWeightBits(Pass):
    """Fill ``weight_bits`` of every binarized layer whose weights get more than one bit.

    Attributes:
        weights: bits of a weight.
        bits: layers with bits of their own; the first that matches counts.
        decided: bits by the name of a weight, as chosen for the training step: they hold for prediction. None where
            they are to be chosen.
    """

    weights: Annotated[int, WEIGHT_BITS] = 1
    bits: tuple[LayerBits, ...] = ()
    decided: tuple[tuple[str, int], ...] | None = None

    name = "choose-weight-bits"

    def run(self, graph: TrainingGraph) -> bool:
        """Fill the records; no node changes."""
        for record in graph.layers:
            if record.binarized:
                record.weight_bits = self._bits_of(record)
        return False

    def _bits_of(self, record: LayerRecord) -> int:
        if self.decided is not None:
            return dict(self.decided).get(record.weight, 1)
        own = (each.weights for each in self.bits if fnmatchcase(record.path, each.pattern))
        return next(own, self.weights)
