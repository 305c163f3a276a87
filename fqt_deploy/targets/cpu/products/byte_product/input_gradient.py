"""Activation-gradient product by bytes: codes of the gradient times levels of weights."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.byte_product.code_convolution import convolve
from fqt_deploy.targets.cpu.products.byte_product.code_convolution_cut import Axis, CodeConvolutionCut
from fqt_deploy.targets.cpu.products.byte_product.least_planes import (
    MINIMUM_POSITIONS,
    gradients_pay,
    multiplier_of_levels,
)
from fqt_deploy.targets.cpu.products.byte_product.multiplier import ByteMultiplier
from fqt_deploy.targets.cpu.products.form import BYTE_PRODUCT, NO_CHOICE
from fqt_deploy.targets.products import BitInputGradient
from fqt_deploy.targets.tuning_log import Tile


class ByteInputGradient:
    """The form by bytes: positions that a stride lets read the same taps are multiplied together."""

    name: ClassVar[str] = BYTE_PRODUCT

    def accepts(self, product: BitInputGradient, features: CpuFeatures) -> bool:
        """Whether panels are whole, and one product of bytes is faster than a product for each plane of a weight."""
        if not product.has_whole_panels or product.samples * product.image[0] * product.image[1] < MINIMUM_POSITIONS:
            return False
        return gradients_pay(features, product.bits, product.weight_planes)

    def tiles(self, product: BitInputGradient, features: CpuFeatures) -> tuple[Tile, ...]:
        """The only choice: as many positions as the instruction's tile has."""
        return NO_CHOICE

    def kernel(self, product: BitInputGradient, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """The kernel: a convolution of the gradient's codes with the kernel turned around."""
        multiplier = multiplier_of_levels(features)
        assert multiplier is not None
        return kernel_of(product, multiplier)


def kernel_of(declared: BitInputGradient, multiplier: ByteMultiplier) -> tirx.PrimFunc:
    """The TIR function of the gradient in products of ``multiplier``."""
    p = declared
    if p.is_pointwise:
        p = replace(p, samples=p.positions, image=(1, 1), output=(1, 1))
    axes = zip(p.image, p.output, p.kernel, p.stride, p.border, strict=True)
    rows, columns = (
        Axis(positions, source, taps, phases=stride, border=border) for positions, source, taps, stride, border in axes
    )
    c = CodeConvolutionCut(p, p.bits, (rows, columns), True, multiplier)

    @script.prim_func(s_tir=True)
    def kernel(
        planes: T.Buffer((declared.samples, *declared.output, p.bits, p.words), "int32"),
        weight: T.Buffer(p.packed_weight, "int32"),
        result: T.Buffer((declared.samples, *declared.image, p.columns), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        codes = T.decl_buffer((p.samples, *p.output, p.bits, p.words), "int32", data=planes.data)
        gradient = T.decl_buffer((p.samples, *p.image, p.columns), "int32", data=result.data)
        convolve(
            c,
            lambda at, word: [codes[(*at, plane, word)] for plane in range(p.bits)],
            lambda value, at, lanes: value,
            weight,
            gradient,
        )

    return kernel
