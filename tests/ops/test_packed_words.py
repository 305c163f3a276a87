"""Laws of packing: what is unpacked is what was packed, for sizes that fill no word and no panel."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fqt_deploy.ops.registry  # noqa: F401 - defines the ops
from fqt_deploy.ops.lib.packed_words import from_panels, to_panels, unpack_last_axis
from fqt_deploy.ops.packing.pack_signs import PackSigns
from fqt_deploy.ops.packing.pack_weight import PackWeight
from fqt_deploy.ops.packing.transpose_packed_weight import TransposePackedWeight
from fqt_deploy.ops.products.binary_conv2d import signs_of_weight

quick = settings(max_examples=60, deadline=None)
SEEDS, CHANNELS = st.integers(0, 2**31), st.integers(1, 70)


def signed(shape, seed):
    """Normal numbers, some of them zeros of both signs, some denormal."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    scale = torch.tensor([1.0, 0.0, 1e-40])[torch.randint(0, 3, x.shape, generator=generator)]
    return x * scale


def sign(x):
    """+1 above zero, else -1, as the algorithm has it."""
    return torch.where(x > 0, 1, -1)


@given(st.lists(st.integers(1, 5), max_size=3), CHANNELS, SEEDS)
@quick
def test_signs(leading, channels, seed):
    x = signed((*leading, channels), seed)
    words = PackSigns(x).reference()
    assert words.shape == (*leading, -(-channels // 32))
    assert torch.equal(2 * unpack_last_axis(words, channels) - 1, sign(x))
    assert not unpack_last_axis(words, 32 * words.shape[-1])[..., channels:].any(), "bits past the end are 0"


@given(CHANNELS, CHANNELS, st.integers(1, 3), st.integers(1, 3), SEEDS)
@quick
def test_weights(outputs, inputs, height, width, seed):
    w = signed((outputs, inputs, height, width), seed)
    words = PackWeight(w).reference()
    assert torch.equal(signs_of_weight(words, inputs, outputs, [height, width]), sign(w))
    ones = int((w > 0).sum())
    assert int(unpack_last_axis(words, 16 * 32).sum()) == ones, "bits past the last row and channel are 0"
    turned = TransposePackedWeight(words, inputs, outputs, height * width).reference()
    assert torch.equal(turned, PackWeight(w.transpose(0, 1)).reference())
    assert torch.equal(TransposePackedWeight(turned, outputs, inputs, height * width).reference(), words)


@given(st.integers(1, 50), st.integers(1, 4))
@quick
def test_panels(rows, words):
    x = torch.arange(1, rows * words + 1, dtype=torch.int32).view(rows, words)
    panels = to_panels(x)
    assert panels.shape == (-(-rows // 16), words, 16)
    assert torch.equal(from_panels(panels, rows), x)
    assert int((panels != 0).sum()) == rows * words
