"""Products of packed bits, as problems to solve: read once from a kernel's function, for all forms on all targets.

Signs are bits, and the codes of quantized gradients are bit-planes. The weight of a convolution lies in panels of
sixteen columns, the channels of the result; its depth, the channels that are summed, is packed into words. What each op
computes is said in ``ops/``; here is what all of its kernels start from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tvm import tirx

from fqt_deploy.ops.lib import convolution_shape, levels
from fqt_deploy.ops.lib.packed_words import PANEL, panel_count, word_count
from fqt_deploy.ops.lib.weight_planes import weight_planes
from fqt_deploy.targets.kernel_arguments import arguments_of

Extents = tuple[int, int]
"""A pair of vertical and horizontal extents."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """The taps of a layer's kernel, row after row.

    Attributes:
        kernel: how many there are vertically and horizontally.
    """

    kernel: Extents

    @property
    def taps(self) -> int:
        """Number of taps of the kernel."""
        return self.kernel[0] * self.kernel[1]

    def tap(self, number: Any) -> tuple[Any, Any]:
        """Row and column of a tap of the kernel."""
        return number // self.kernel[1], number % self.kernel[1]


@dataclass(frozen=True, kw_only=True)
class Convolution(Kernel):
    """The shape of a convolution, as its layer runs it forward; its gradients say so of the same layer.

    Attributes:
        samples: number of images.
        image: height and width of the input.
        output: height and width of the result.
        stride: distance of the positions that neighbouring results read.
        padding: zeros above and below, left and right.
    """

    samples: int
    image: Extents
    output: Extents
    stride: Extents
    padding: Extents

    @property
    def positions(self) -> int:
        """Positions of the result, of all samples."""
        return self.samples * self.output[0] * self.output[1]

    @property
    def is_padded(self) -> bool:
        """Whether some tap of some position may lie outside of the image."""
        return any(self.padding)

    @property
    def is_pointwise(self) -> bool:
        """Whether each position of the result reads the position of the image with its own number, and no other."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and not self.is_padded

    def input_position(self, position: tuple[Any, Any], tap: tuple[Any, Any]) -> tuple[Any, Any, Any]:
        """Whether a tap of a position of the result lies in the image, and row and column there."""
        return convolution_shape.input_position(
            *position, *tap, list(self.image), list(self.stride), list(self.padding)
        )

    def output_position(self, position: tuple[Any, Any], tap: tuple[Any, Any]) -> tuple[Any, Any, Any]:
        """Whether a position of the image is read through a tap, and row and column of the result that reads it."""
        return convolution_shape.output_position(
            *position, *tap, list(self.output), list(self.stride), list(self.padding)
        )


@dataclass(frozen=True, kw_only=True)
class PackedConvolution(Convolution):
    """A convolution with a packed weight [panels, taps * words, 16], in either direction.

    Attributes:
        depth: channels that are summed.
        columns: channels of the result.
        weight_planes: bit-planes of a weight; of one, signs, there is no axis.
    """

    depth: int
    columns: int
    weight_planes: int = 1

    @property
    def words(self) -> int:
        """Packed words of the channels of one position."""
        return word_count(self.depth)

    @property
    def packed_weight(self) -> tuple[int, ...]:
        """The shape of the packed weight."""
        planes = (self.weight_planes,) if self.weight_planes > 1 else ()
        return (*planes, self.panels, self.contraction, PANEL)

    @property
    def largest_weight(self) -> int:
        """The largest level of a weight, 1 of signs."""
        return (1 << self.weight_planes) - 1

    def weight_words(self, weight: Any, panel: Any, row: Any, lanes: Any) -> list[Any]:
        """The words of ``lanes``, a ramp, of a row of a panel: of each plane of the packed weight, lowest first."""
        place = panel, row, lanes
        return [weight[(p, *place)] for p in range(self.weight_planes)] if self.weight_planes > 1 else [weight[place]]

    @property
    def contraction(self) -> int:
        """Packed words that one element of the result is summed over."""
        return self.taps * self.words

    @property
    def panels(self) -> int:
        """Panels of sixteen columns; the last one may be filled in part."""
        return panel_count(self.columns)

    @property
    def has_whole_panels(self) -> bool:
        """Whether all panels are full."""
        return self.columns % PANEL == 0


@dataclass(frozen=True, kw_only=True)
class BitConvolution(PackedConvolution):
    """The product of signs and signs, ``binary_conv2d``: [N, H, W, words] and a weight to [N, OH, OW, columns].

    Attributes:
        dtype: the dtype of the result.
    """

    dtype: str

    @staticmethod
    def of(function: tirx.PrimFunc, arguments: dict[str, Any]) -> BitConvolution:
        """The convolution that ``function`` computes."""
        x, weight, result = function.params
        return BitConvolution(
            weight_planes=weight_planes(weight),
            **_layer(arguments),
            samples=int(x.shape[0]),
            image=_spatial(x),
            output=_spatial(result),
            depth=arguments["in_channels"],
            columns=arguments["out_channels"],
            dtype=str(result.dtype),
        )


@dataclass(frozen=True, kw_only=True)
class LevelConvolution(BitConvolution):
    """The product of levels and signs, ``level_conv2d``: [N, H, W, bits, words] and a weight to [N, OH, OW, columns].

    Attributes:
        bits: bit-planes of a code.
        signed: whether a level is twice its code less the largest one, or the code itself.
    """

    bits: int
    signed: bool

    @property
    def largest_code(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @staticmethod
    def of(function: tirx.PrimFunc, arguments: dict[str, Any]) -> LevelConvolution:
        """The convolution that ``function`` computes."""
        return LevelConvolution(
            **vars(BitConvolution.of(function, arguments)),
            bits=int(function.params[0].shape[3]),
            signed=arguments["signed"],
        )


@dataclass(frozen=True, kw_only=True)
class BitInputGradient(PackedConvolution):
    """The product of codes and signs, ``bitplane_conv2d_input_grad``.

    It takes [N, OH, OW, bits, words] and a weight to [N, H, W, columns]. It is a convolution of the gradient,
    its positions ``stride`` apart, with the kernel turned around.

    Attributes:
        bits: bit-planes of a code.
    """

    bits: int

    @property
    def border(self) -> Extents:
        """Rows above and columns left of the gradient that the first position of the result reads; may be negative."""
        return self.kernel[0] - 1 - self.padding[0], self.kernel[1] - 1 - self.padding[1]

    def has_gradient(self, y: Any, z: Any) -> Any:
        """Whether there is a gradient at a row and a column of the spread gradient: it has one every ``stride``."""
        axes = tuple(zip((y, z), self.output, self.stride, strict=True))
        inside = (tirx.all(at >= 0, at < extent * step) for at, extent, step in axes)
        return tirx.all(*inside, *((at % step).equal(0) for at, _, step in axes))

    @staticmethod
    def of(function: tirx.PrimFunc, arguments: dict[str, Any]) -> BitInputGradient:
        """The gradient that ``function`` computes."""
        planes, weight, result = function.params
        return BitInputGradient(
            weight_planes=weight_planes(weight),
            **_layer(arguments),
            samples=int(planes.shape[0]),
            image=_spatial(result),
            output=_spatial(planes),
            depth=arguments["out_channels"],
            columns=arguments["in_channels"],
            bits=int(planes.shape[3]),
        )


@dataclass(frozen=True, kw_only=True)
class BitWeightGradient(Kernel):
    """The product of codes and bits, ``bitplane_weight_grad`` and ``level_weight_grad``: a product over positions.

    The codes are [words, bits, kept]. The other operand, [panels, words, 16], has a row for every tap and channel of
    the input, and behind them one for every tap that says which positions lie inside of the image. Of activations of
    several bits each tap has the channels of one plane after another, which are filled up to whole words; what they
    sum up to is weighed and added.

    Attributes:
        words: packed words along the positions.
        bits: bit-planes of a code.
        kept: channels of the gradient.
        channels: channels of the input, those of all its planes.
        results: channels of the result.
        planes: bit-planes of the input.
        signed: whether levels of the input are twice their codes less the largest one, as signs are, or codes.
    """

    words: int
    bits: int
    kept: int
    channels: int
    results: int
    planes: int = 1
    signed: bool = True

    @property
    def plane_channels(self) -> int:
        """Channels of one plane of the input."""
        return self.channels // self.planes

    @property
    def largest_code(self) -> int:
        """The largest code of the input."""
        return (1 << self.planes) - 1

    @property
    def rows(self) -> int:
        """Rows of the second operand that mean something."""
        return self.taps * (self.channels + 1)

    @property
    def panels(self) -> int:
        """Panels of sixteen rows; the last one may be filled in part."""
        return panel_count(self.rows)

    @property
    def has_whole_panels(self) -> bool:
        """Whether every panel is of one plane of one tap and gives results, or is of masks alone."""
        return self.plane_channels % PANEL == 0 and self.results == self.plane_channels

    @property
    def tap_panels(self) -> int:
        """Panels of the channels of one tap, if panels are whole."""
        return self.channels // PANEL

    @property
    def channel_panels(self) -> int:
        """Panels of the channels of all taps, if panels are whole."""
        return self.taps * self.channels // PANEL

    @property
    def plane_panels(self) -> int:
        """Panels of the channels of one plane of all taps, if panels are whole."""
        return self.channel_panels // self.planes

    def plane_panel(self, panel: Any, plane: Any) -> Any:
        """The place, among all panels, of a panel of one plane, if panels are whole."""
        if self.planes == 1:
            return panel
        own = self.tap_panels // self.planes
        return panel // own * self.tap_panels + plane * own + panel % own

    def level(self, count: Any, mask: Any) -> Any:
        """The sum of levels, from that of codes and from how much of the gradient meets the image."""
        return count * 2 - mask * self.largest_code if self.signed else count

    @property
    def mask_panels(self) -> int:
        """Panels behind them that say which positions lie inside, if panels are whole."""
        return panel_count(self.taps)

    @staticmethod
    def of(function: tirx.PrimFunc, arguments: dict[str, Any]) -> BitWeightGradient:
        """The gradient that ``function`` computes."""
        words, bits, kept = (int(d) for d in function.params[0].shape)
        results, kernel = arguments["in_channels"], _extents(arguments, "kernel")
        planes, signed = arguments.get("bits", 1), arguments.get("signed", True)
        channels = planes * levels.plane_channels(results) if "signed" in arguments else results
        return BitWeightGradient(
            words=words, bits=bits, kept=kept, channels=channels, results=results, planes=planes, signed=signed,
            kernel=kernel,
        )  # fmt: skip


Product = TypeVar("Product", bound=PackedConvolution)

BitProduct = BitConvolution | BitInputGradient | BitWeightGradient

BIT_PRODUCTS: dict[str, Callable[[tirx.PrimFunc, dict[str, Any]], BitProduct]] = {
    "binary_conv2d": BitConvolution.of,
    "bitplane_conv2d_input_grad": BitInputGradient.of,
    "bitplane_weight_grad": BitWeightGradient.of,
    "level_conv2d": LevelConvolution.of,
    "level_weight_grad": BitWeightGradient.of,
}
"""Readers of a product from its function and arguments, by op."""


def numbered_position(number: Any, extents: Extents) -> tuple[Any, Any, Any]:
    """Sample, row and column of a position, where all positions of all images of ``extents`` are numbered."""
    height, width = extents
    return number // (height * width), number // width % height, number % width


def in_short_rows(product: Product, most: int) -> Product:
    """The same product of matrices as one image whose rows have as many positions as divide all, at most ``most``.

    Where each result reads one position, which image that belongs to does not matter: any number of positions is cut
    into tiles and jobs alike. Another product comes back as it is.
    """
    if not product.is_pointwise:
        return product
    width = next(w for w in range(most, 0, -1) if product.positions % w == 0)
    extents = product.positions // width, width
    return replace(product, samples=1, image=extents, output=extents)


def product_of(function: tirx.PrimFunc) -> BitProduct | None:
    """The product that ``function``, a kernel of one of ``BIT_PRODUCTS``, computes; None if something was inlined."""
    arguments = arguments_of(function)
    return None if arguments is None else BIT_PRODUCTS[str(function.attrs["fqt.op"])](function, arguments)


def convolution_of(
    function: tirx.PrimFunc, *, image: Any = None, output: Any = None, kernel: Any = None
) -> Convolution | None:
    """The convolution that another kernel belongs to.

    None if something was inlined into its op, or for groups, dilation, or another number of spatial axes than two.

    Args:
        function: whose first operand counts the samples, and whose arguments say ``stride`` and ``padding``.
        image: operand [N, H, W, ...] of the image's extents.
        output: operand [N, OH, OW, ...] of the result's; None if they are the argument ``output_hw``.
        kernel: operand [O, I, KH, KW]; None if the taps are the argument ``kernel``.
    """
    arguments = arguments_of(function)
    if arguments is None or arguments.get("groups", 1) != 1 or len(arguments["stride"]) != 2:
        return None
    if any(step != 1 for step in arguments.get("dilation", ())):
        return None
    return Convolution(
        samples=int(function.params[0].shape[0]),
        image=_spatial(image),
        output=_extents(arguments, "output_hw") if output is None else _spatial(output),
        kernel=_extents(arguments, "kernel") if kernel is None else (int(kernel.shape[2]), int(kernel.shape[3])),
        stride=_extents(arguments, "stride"),
        padding=_extents(arguments, "padding"),
    )


def _layer(arguments: dict[str, Any]) -> dict[str, Extents]:
    """The extents that all convolutions of bits give of their layer: kernel, stride and padding."""
    return {name: _extents(arguments, name) for name in ("kernel", "stride", "padding")}


def _extents(arguments: dict[str, Any], name: str) -> Extents:
    vertical, horizontal = arguments[name]
    return vertical, horizontal


def _spatial(operand: Any) -> Extents:
    """Height and width of an operand [N, H, W, ...]."""
    return int(operand.shape[1]), int(operand.shape[2])
