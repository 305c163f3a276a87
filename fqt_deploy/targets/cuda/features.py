"""What an NVIDIA architecture offers, and which architectures there are."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fqt_deploy.core.diagnostics import FqtError

DEFAULT = ("sm_80", "sm_90a")
"""What is compiled for unless told otherwise: A100 and H100; newer devices translate the PTX of sm_90."""

ARCHITECTURES: dict[str, bool] = {
    "sm_75": False,
    "sm_80": True,
    "sm_86": True,
    "sm_87": True,
    "sm_88": True,
    "sm_89": True,
    "sm_90": True,
    "sm_90a": True,
    "sm_100": True,
    "sm_103": True,
    "sm_120": True,
}
"""Architecture -> whether binary tensor cores compute AND (m16n8k256); sm_100 and later emulate it."""


@dataclass(frozen=True)
class CudaFeatures:
    """Facts that schedule rules choose by: what all architectures of one artifact offer.

    Attributes:
        architectures: the ones compiled for, oldest first.
        has_binary_mma: AND and popcount of bits on tensor cores.
    """

    architectures: tuple[str, ...]
    has_binary_mma: bool

    @property
    def requires(self) -> tuple[str, ...]:
        """Extensions of the processor: whatever runs the driver will do."""
        return ()

    @property
    def mcpu(self) -> str:
        """The architectures as one word, for the manifest."""
        return ",".join(self.architectures)

    @property
    def forward_compatible(self) -> str:
        """The virtual architecture whose PTX later devices translate: the newest, without special instructions."""
        return "compute_" + re.sub(r"\D", "", self.architectures[-1])


def cuda_features(given: str | None) -> CudaFeatures:
    """Features of the architectures in a list such as ``sm_80,sm_90a``; None for the default ones.

    Raises:
        FqtError: FQT402 for one that is unknown.
    """
    names = list(DEFAULT) if given is None else [name.strip() for name in given.split(",") if name.strip()]
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown or not names:
        wrong = f"unknown architecture {unknown[0]!r}" if unknown else "no architecture given"
        raise FqtError(wrong, code="FQT402", hint=f"architectures: {', '.join(ARCHITECTURES)}")
    order = [name for name in ARCHITECTURES if name in names]
    return CudaFeatures(tuple(order), all(ARCHITECTURES[name] for name in order))
