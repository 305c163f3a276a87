"""The features of NVIDIA architectures, and which architectures there are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fqt_deploy.core.diagnostics import FqtError

DEFAULT = ("sm_80", "sm_90a")
"""Architectures to compile for unless told otherwise: A100 and H100; later devices translate the PTX of sm_80."""

ARCHITECTURES: dict[str, str] = {
    "sm_75": "xor",
    "sm_80": "and",
    "sm_86": "and",
    "sm_87": "and",
    "sm_88": "and",
    "sm_89": "and",
    "sm_90": "and",
    "sm_90a": "and",
    "sm_100": "int8",
    "sm_100a": "int8",
    "sm_103": "int8",
    "sm_120": "int8",
    "sm_120a": "int8",
}
"""The form of the 1-bit products by architecture (``choose_form.FORMS``): what its tensor cores execute themselves.

Newer ones execute the forms of older ones too, by several instructions: sm_90 XOR by AND, sm_100 AND by bytes.
"""

BEFORE_TF32 = ("sm_75",)
"""Architectures whose tensor cores do not take TF32."""

ALTERNATIVES: dict[str, tuple[str, ...]] = {"sm_90a": ("wgmma",)}
"""Other forms by architecture, for artifacts for it alone, as ``sm_90a:wgmma``.

None is a default before it has been measured: ``tools/bench_gpu.py`` compares them.
"""


@dataclass(frozen=True)
class CudaFeatures:
    """Facts that schedule rules choose by: what all architectures of one artifact offer.

    Attributes:
        architectures: the ones compiled for, oldest first.
        bit_forms: forms of the 1-bit products in order of preference; the first that has a kernel's number of planes.
        tf32: whether fp32 products may round their operands to TF32.
    """

    architectures: tuple[str, ...]
    bit_forms: tuple[str, ...]
    tf32: bool = False

    @property
    def requires(self) -> tuple[str, ...]:
        """Extensions of the processor that the code needs: none, whatever runs the driver will do."""
        return ()

    @property
    def mcpu(self) -> str:
        """The architectures as one word, for the manifest."""
        return ",".join(self.architectures)

    @property
    def forward_compatible(self) -> bool:
        """Whether later devices can translate the PTX: not where kernels use instructions of one architecture alone."""
        return not any(form in others for others in ALTERNATIVES.values() for form in self.bit_forms)

    @property
    def virtual(self) -> str:
        """The virtual architecture of the PTX that every binary is made from: the oldest, as all can execute that."""
        name = self.architectures[0].replace("sm_", "compute_")
        return name.rstrip("a") if self.forward_compatible else name

    def preferring(self, form: str) -> CudaFeatures:
        """The same with one of ``ALTERNATIVES`` before the default form; FQT402 where it does not exist."""
        if not all(form in ALTERNATIVES.get(name, ()) for name in self.architectures):
            known = ", ".join(f"{name}:{other}" for name, others in ALTERNATIVES.items() for other in others)
            wrong = f"{','.join(self.architectures)} has no 1-bit products by {form!r}"
            raise FqtError(wrong, code="FQT402", hint=f"leave it out, or use {known}")
        return replace(self, bit_forms=(form, *self.bit_forms))


def cuda_features(given: str | None) -> CudaFeatures:
    """Features of the architectures in a list such as ``sm_80,sm_90a``; None for the default ones.

    After a colon may stand another form of the 1-bit products: ``sm_90a:wgmma``.

    Raises:
        FqtError: FQT402 for one that is unknown.
    """
    text, _, form = (",".join(DEFAULT) if given is None else given).partition(":")
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown or not names:
        wrong = f"unknown architecture {unknown[0]!r}" if unknown else "no architecture given"
        raise FqtError(wrong, code="FQT402", hint=f"architectures: {', '.join(ARCHITECTURES)}")
    order = [name for name in ARCHITECTURES if name in names]
    features = CudaFeatures(tuple(order), (ARCHITECTURES[order[0]],))
    return features.preferring(form) if form else features
