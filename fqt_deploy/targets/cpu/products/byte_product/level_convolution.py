"""Convolution of levels, or of signs, with levels of weights by bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.border_signs import BorderSigns, sum_signs
from fqt_deploy.targets.cpu.products.byte_product.code_convolution import convolve
from fqt_deploy.targets.cpu.products.byte_product.code_convolution_cut import Axis, CodeConvolutionCut
from fqt_deploy.targets.cpu.products.byte_product.least_planes import (
    MINIMUM_POSITIONS,
    levels_pay,
    multiplier_of_levels,
    signs_pay,
)
from fqt_deploy.targets.cpu.products.byte_product.multiplier import ByteMultiplier
from fqt_deploy.targets.cpu.products.form import BYTE_PRODUCT, NO_CHOICE
from fqt_deploy.targets.products import BitConvolution, LevelConvolution
from fqt_deploy.targets.tuning_log import Tile


class ByteLevelConvolution:
    """The form by bytes: codes times levels of weights, and what the largest code takes off."""

    name: ClassVar[str] = BYTE_PRODUCT

    def accepts(self, product: BitConvolution, features: CpuFeatures) -> bool:
        """Whether panels are whole, and one product of bytes is faster than a product for each plane of a weight."""
        if not product.has_whole_panels or product.positions < MINIMUM_POSITIONS:
            return False
        if isinstance(product, LevelConvolution):
            return levels_pay(features, product.bits, product.weight_planes)
        return signs_pay(features, product.weight_planes)

    def tiles(self, product: BitConvolution, features: CpuFeatures) -> tuple[Tile, ...]:
        """The only choice: as many positions as the instruction's tile has."""
        return NO_CHOICE

    def kernel(self, product: BitConvolution, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """The kernel: constants of borders, where levels have signs, then the convolution of codes."""
        multiplier = multiplier_of_levels(features)
        assert multiplier is not None
        return kernel_of(product, multiplier)


def as_levels(product: BitConvolution) -> LevelConvolution:
    """The product, of which signs are levels of one bit."""
    return product if isinstance(product, LevelConvolution) else LevelConvolution(**vars(product), bits=1, signed=True)


def kernel_of(product: BitConvolution, multiplier: ByteMultiplier) -> tirx.PrimFunc:
    """The TIR function of the convolution in products of ``multiplier``."""
    p = flat(as_levels(product))
    planes = (p.bits,) if isinstance(product, LevelConvolution) else ()
    axes = zip(p.output, p.image, p.kernel, p.stride, p.padding, strict=True)
    rows, columns = (Axis.forward(*axis) for axis in axes)
    c, borders = CodeConvolutionCut(p, p.bits, (rows, columns), False, multiplier), BorderSigns(p)
    declared = as_levels(product)

    @script.prim_func(s_tir=True)
    def kernel(
        operand: T.Buffer((declared.samples, *declared.image, *planes, p.words), "int32"),
        weight: T.Buffer(p.packed_weight, "int32"),
        result: T.Buffer((declared.samples, *declared.output, p.columns), p.dtype),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        codes = T.decl_buffer((p.samples, *p.image, p.bits, p.words), "int32", data=operand.data)
        sums_of_levels = T.decl_buffer((p.samples, *p.output, p.columns), p.dtype, data=result.data)
        constants = T.alloc_buffer(borders.shape, "int32")
        if p.signed:
            for panel in T.parallel(p.panels):
                sum_signs(borders, weight, constants, panel)
        convolve(
            c,
            lambda at, word: [codes[(*at, plane, word)] for plane in range(p.bits)],
            lambda value, at, lanes: borders.level(value, constants, borders.kind(at[1], at[2]), lanes),
            weight,
            sums_of_levels,
        )

    return kernel


def flat(product: LevelConvolution) -> LevelConvolution:
    """A product of matrices as images of one position; another product as it is."""
    if not product.is_pointwise:
        return product
    return replace(product, samples=product.positions, image=(1, 1), output=(1, 1))
