"""What an artifact says about its step for whoever looks into it, and no runtime needs: ``notes.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from fqt_deploy.core.diagnostics import FqtError

NOTES = "notes.json"
"""The name of the member in an artifact."""


@dataclass(frozen=True)
class StepNotes:
    """Where the intermediate values of ``train_step`` lie, for the first shape of batches.

    Attributes:
        blocks: bytes of each block of memory.
        values: of each value its bytes, and the first and last kernel call that need it, as places in
            ``manifest.kernels``; the first one writes it.
        kept: share of its gradient's groups that pruning keeps, by layer; layers without pruning are left out.
    """

    blocks: tuple[int, ...]
    values: tuple[tuple[int, int, int], ...]
    kept: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The content of the file."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes, kernels: int) -> StepNotes:
        """Read what ``to_json`` wrote, for a step of so many ``kernels``; FQT502 if it is damaged."""
        try:
            data = json.loads(text)
            blocks = tuple(map(int, data["blocks"]))
            values = tuple((int(size), int(first), int(last)) for size, first, last in data["values"])
            kept = {str(layer): float(share) for layer, share in data.get("kept", {}).items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FqtError(f"{NOTES} is damaged: {error}", code="FQT502") from None
        if any(not 0 <= first <= last < kernels or size < 0 for size, first, last in values):
            raise FqtError(f"{NOTES} tells of kernels that the manifest does not list", code="FQT502")
        return cls(blocks, values, kept)

    def alive(self, kernels: int) -> list[int]:
        """Bytes that are alive during each kernel call."""
        change = [0] * (kernels + 1)
        for size, first, last in self.values:
            change[first] += size
            change[last + 1] -= size
        found, now = [], 0
        for step in change[:kernels]:
            now += step
            found.append(now)
        return found
