"""Laws of the products on bits: each is the integer product of signs and codes, with exact zero padding and stride.

The other side of each equation is PyTorch's convolution, and its autograd, in double precision.
"""

import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fqt_deploy.ops.registry  # noqa: F401 - defines the ops
from fqt_deploy.ops.lib.convolution_shape import output_extents
from fqt_deploy.ops.lib.levels import plane_channels
from fqt_deploy.ops.lib.packed_words import pack_last_axis
from fqt_deploy.ops.packing.pack_levels import PackLevels
from fqt_deploy.ops.packing.pack_positions import PackPositions
from fqt_deploy.ops.packing.pack_signs import PackSigns
from fqt_deploy.ops.packing.pack_weight import PackWeight
from fqt_deploy.ops.packing.pack_weight_plane import PackWeightPlane
from fqt_deploy.ops.packing.transpose_packed_weight import TransposePackedWeight
from fqt_deploy.ops.products.binary_conv2d import BinaryConv2d
from fqt_deploy.ops.products.bitplane_conv2d_input_grad import BitplaneConv2dInputGrad
from fqt_deploy.ops.products.bitplane_weight_grad import BitplaneWeightGrad
from fqt_deploy.ops.products.level_conv2d import LevelConv2d
from fqt_deploy.ops.products.level_sums import LevelSums
from fqt_deploy.ops.products.level_weight_grad import LevelWeightGrad
from fqt_deploy.ops.products.position_sums import PositionSums
from fqt_deploy.ops.products.tap_sums import TapSums

quick = settings(max_examples=40, deadline=None)


@st.composite
def layers(draw):
    """A convolution: samples, channels, image, kernel, stride and padding, with at least one output position."""

    def pair(low, high):
        return [draw(st.integers(low, high)), draw(st.integers(low, high))]

    kernel, stride = pair(1, 3), pair(1, 3)
    padding = [draw(st.integers(0, extent - 1)) for extent in kernel]
    image = [draw(st.integers(max(1, k - 2 * p), 7)) for k, p in zip(kernel, padding, strict=True)]
    return draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 40)), image, kernel, stride, padding


class Layer:
    """Signs of a layer's input and weight as doubles [N, I, H, W] and [O, I, KH, KW], and packed."""

    def __init__(self, case, seed):
        self.samples, self.inputs, self.outputs, self.image, self.kernel, self.stride, self.padding = case
        self.generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.samples, *self.image, self.inputs, generator=self.generator)
        w = torch.randn(self.outputs, self.inputs, *self.kernel, generator=self.generator)
        self.x = torch.where(x > 0, 1.0, -1.0).double().permute(0, 3, 1, 2)
        self.w = torch.where(w > 0, 1.0, -1.0).double()
        self.x_bits, self.w_bits = PackSigns(x).reference(), PackWeight(w).reference()
        self.output_hw = output_extents(self.image, self.kernel, self.stride, self.padding)

    def turned(self):
        return TransposePackedWeight(
            self.w_bits, self.inputs, self.outputs, self.kernel[0] * self.kernel[1]
        ).reference()

    def positions(self):
        arguments = (self.inputs, self.kernel, self.stride, self.padding, self.output_hw)
        return PackPositions(self.x_bits, *arguments).reference()

    def forward(self, x, w):
        """Zeros around the signs, not signs of zeros."""
        padded = F.pad(x, (self.padding[1], self.padding[1], self.padding[0], self.padding[0]))
        return F.conv2d(padded, w, stride=self.stride)

    def codes(self, bits):
        """Codes and their zero point, one for all: integers [N, O, OH, OW] and an integer."""
        shape = (self.samples, self.outputs, *self.output_hw)
        return torch.randint(0, 2**bits, shape, generator=self.generator), int(
            torch.randint(-9, 9, (), generator=self.generator)
        )

    def gradients(self, codes):
        """Gradients of input and weight for this gradient of the output, by autograd."""
        x, w = self.x.clone().requires_grad_(), self.w.clone().requires_grad_()
        return torch.autograd.grad(self.forward(x, w), (x, w), codes.double())


@given(layers(), st.integers(0, 2**31))
@example((3, 1, 8, [1, 3], [3, 2], [1, 2], [2, 0]), 0)  # oneDNN gets this one wrong in float32
@quick
def test_forward(case, seed):
    layer = Layer(case, seed)
    geometry = (layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.padding)
    z = BinaryConv2d(layer.x_bits, layer.w_bits, *geometry).reference()
    assert torch.equal(z.double(), layer.forward(layer.x, layer.w).permute(0, 2, 3, 1))


@given(layers(), st.integers(0, 2**31), st.sampled_from([1, 2, 4, 8]))
@quick
def test_input_gradient(case, seed, bits):
    """Codes and zero point apart: the product of the codes, and the tap sums for the zero point."""
    layer = Layer(case, seed)
    codes, zero = layer.codes(bits)
    planes = torch.stack([pack_last_axis((codes.permute(0, 2, 3, 1) >> p) & 1 > 0) for p in range(bits)], 3)
    geometry = (layer.kernel, layer.stride, layer.padding)
    product = BitplaneConv2dInputGrad(
        planes, layer.turned(), layer.inputs, layer.outputs, layer.image, *geometry
    ).reference()
    sums = TapSums(layer.turned(), layer.inputs, layer.outputs, layer.image, layer.output_hw, *geometry).reference()
    wanted = layer.gradients(codes + zero)[0].permute(0, 2, 3, 1)
    assert torch.equal((product + zero * sums).double(), wanted)


@given(layers(), st.integers(0, 2**31), st.sampled_from([1, 2, 4, 8]))
@quick
def test_weight_gradient(case, seed, bits):
    """The same over positions, of which padded ones count in neither part."""
    layer = Layer(case, seed)
    codes, zero = layer.codes(bits)
    rows = codes.transpose(0, 1).flatten(1)
    planes = torch.stack([pack_last_axis((rows >> p) & 1 > 0) for p in range(bits)], 1).permute(2, 1, 0)
    product = BitplaneWeightGrad(planes, layer.positions(), layer.inputs, layer.kernel).reference()
    sums = PositionSums(layer.positions(), layer.inputs, layer.kernel).reference()
    assert torch.equal((product + zero * sums).double(), layer.gradients(codes + zero)[1])


GRIDS = [(1, False), (2, True), (2, False), (3, True), (4, True), (8, True), (8, False)]


def with_levels(layer, bits, signed):
    """Levels drawn at random take the place of the layer's signs; returns what packs them: planes."""
    codes = torch.randint(0, 2**bits, layer.x.shape, generator=layer.generator)
    layer.x = (2 * codes - 2**bits + 1 if signed else codes).double()
    values = layer.x.permute(0, 2, 3, 1).float() / (2 if signed else 1)  # a spacing of 1
    return PackLevels(values.contiguous(), 1.0, bits, signed).reference()


@given(layers(), st.integers(0, 2**31), st.sampled_from(GRIDS))
@quick
def test_forward_of_levels(case, seed, grid):
    layer = Layer(case, seed)
    planes = with_levels(layer, *grid)
    geometry = (layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.padding)
    z = LevelConv2d(planes, layer.w_bits, *geometry, grid[1]).reference()
    assert torch.equal(z.double(), layer.forward(layer.x, layer.w).permute(0, 2, 3, 1))


@given(layers(), st.integers(0, 2**31), st.sampled_from([1, 3, 8]), st.sampled_from(GRIDS))
@quick
def test_weight_gradient_of_levels(case, seed, width, grid):
    """Codes and zero point apart, as with signs."""
    layer = Layer(case, seed)
    bits, signed = grid
    packed = with_levels(layer, bits, signed).flatten(3)
    codes, zero = layer.codes(width)
    rows = codes.transpose(0, 1).flatten(1)
    planes = torch.stack([pack_last_axis((rows >> p) & 1 > 0) for p in range(width)], 1).permute(2, 1, 0)
    geometry = (layer.kernel, layer.stride, layer.padding, layer.output_hw)
    positions = PackPositions(packed, bits * plane_channels(layer.inputs), *geometry).reference()
    product = LevelWeightGrad(planes, positions, layer.inputs, layer.kernel, bits, signed).reference()
    sums = LevelSums(positions, layer.inputs, layer.kernel, bits, signed).reference()
    assert torch.equal((product + zero * sums).double(), layer.gradients(codes + zero)[1])


@given(layers(), st.integers(0, 2**31), st.sampled_from([2, 4]), st.sampled_from(GRIDS), st.sampled_from([1, 3]))
@quick
def test_weights_of_several_bits(case, seed, weight_bits, grid, gradient_bits):
    """Levels in the place of a weight's signs, in forward and in the activation gradient."""
    layer = Layer(case, seed)
    latent = torch.randn(layer.w.shape, generator=layer.generator)
    reciprocals = torch.rand(layer.outputs, generator=layer.generator) + 0.5
    weight_codes = (latent * reciprocals.view(-1, 1, 1, 1)).floor().add(2 ** (weight_bits - 1))
    layer.w = 2 * weight_codes.clamp(0, 2**weight_bits - 1).double() - 2**weight_bits + 1
    packed = [PackWeightPlane(latent, reciprocals, weight_bits, plane).reference() for plane in range(weight_bits)]
    channels = (layer.inputs, layer.outputs)
    geometry = (layer.kernel, layer.stride, layer.padding)

    z = BinaryConv2d(layer.x_bits, torch.stack(packed), *channels, *geometry).reference()
    assert torch.equal(z.double(), layer.forward(layer.x, layer.w).permute(0, 2, 3, 1))
    planes = with_levels(layer, *grid)
    z = LevelConv2d(planes, torch.stack(packed), *channels, *geometry, grid[1]).reference()
    assert torch.equal(z.double(), layer.forward(layer.x, layer.w).permute(0, 2, 3, 1))

    turned = torch.stack(
        [TransposePackedWeight(p, *channels, layer.kernel[0] * layer.kernel[1]).reference() for p in packed]
    )
    codes, _ = layer.codes(gradient_bits)
    planes = torch.stack([pack_last_axis((codes.permute(0, 2, 3, 1) >> p) & 1 > 0) for p in range(gradient_bits)], 3)
    product = BitplaneConv2dInputGrad(planes, turned, *channels, layer.image, *geometry).reference()
    assert torch.equal(product.double(), layer.gradients(codes)[0].permute(0, 2, 3, 1))
