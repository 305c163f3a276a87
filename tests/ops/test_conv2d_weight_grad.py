"""The reference of a convolution's weight gradient, beside what it must not be computed by."""

import torch

from fqt_deploy.ops.products import conv2d_weight_grad
from fqt_deploy.ops.products.conv2d_weight_grad import Conv2dWeightGrad


def test_the_reference_does_without_onednn(monkeypatch):
    """oneDNN writes outside of its memory for some shapes; the setting is as it was afterwards."""
    seen = []

    def spy(*arguments):
        seen.append(torch._C._get_mkldnn_enabled())
        return original(*arguments)

    original = conv2d_weight_grad.conv2d_weight
    monkeypatch.setattr(conv2d_weight_grad, "conv2d_weight", spy)
    before = torch._C._get_mkldnn_enabled()
    x, g = torch.randn(2, 4, 4, 3), torch.randn(2, 4, 4, 5)
    found = Conv2dWeightGrad(x, g, [1, 1], [1, 1], [0, 0]).reference()
    torch.testing.assert_close(found[:, :, 0, 0], torch.einsum("nhwo,nhwi->oi", g, x))
    assert seen == [False]
    assert torch._C._get_mkldnn_enabled() == before
