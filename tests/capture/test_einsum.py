"""Sums of products by letters are those of PyTorch, and rows times a weight are a layer."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from fqt_deploy.capture.einsum import einsum
from fqt_deploy.capture.load_model import load_model
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.options import CompileOptions
from tests.capture.following import assert_follows_pytorch

aten = torch.ops.aten


def operand(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


PRODUCTS = {
    "bd,od->bo": ((3, 4), (5, 4)),
    "bd,do->bo": ((3, 4), (4, 5)),
    "od,bd->bo": ((5, 4), (3, 4)),
    "bnd,od->bno": ((3, 2, 4), (5, 4)),
    " b n d , o d -> b n o ": ((3, 2, 4), (5, 4)),
    "...d,od->...o": ((3, 2, 6, 4), (5, 4)),
    "...d,do->...o": ((4,), (4, 5)),
    "bnc,mn->bmc": ((3, 2, 4), (5, 2)),
    "mn,bnc->bmc": ((5, 2), (3, 2, 4)),
    "bd,dhk->bhk": ((3, 4), (4, 2, 5)),
    "bhk,hkd->bd": ((3, 2, 5), (2, 5, 4)),
    "bd,edo->beo": ((3, 4), (2, 4, 5)),
    "nchw,oc->nohw": ((2, 3, 4, 5), (6, 3)),
    "ij,ij->": ((3, 4), (3, 4)),
    "i,i->": ((3,), (3,)),
}
LEFT = {
    "bqd,bkd->bqk": ((3, 2, 4), (3, 5, 4)),
    "bhi,hio->bho": ((3, 2, 4), (2, 4, 5)),
    "i,j->ij": ((3,), (4,)),
    "bd,od": ((3, 4), (5, 4)),
    "bi,od->bo": ((3, 2), (5, 4)),
    "ii,ij->j": ((3, 3), (3, 2)),
    "...d,...d->...": ((3, 4), (3, 4)),
    "bd->b": ((3, 4),),
    "bd,dk,ko->bo": ((3, 4), (4, 2), (2, 5)),
}


@pytest.mark.parametrize("equation", PRODUCTS)
def test_values_and_gradients_are_those_of_pytorch_by_one_product(equation):
    operands = [operand(*shape).requires_grad_() for shape in PRODUCTS[equation]]
    results = [f(equation, *operands) for f in (einsum, torch.einsum)]
    torch.testing.assert_close(*results)
    goal = operand(*results[0].shape)
    found, expected = (torch.autograd.grad((y * goal).sum(), operands) for y in results)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    traced = make_fx(lambda *tensors: einsum(equation, *tensors))(*(x.detach() for x in operands))
    assert not traced.graph.find_nodes(op="call_function", target=aten.bmm.default)
    torch.testing.assert_close(einsum(equation, operands), results[1])


@pytest.mark.parametrize("equation", LEFT)
def test_what_is_no_such_product_is_left_to_pytorch(equation):
    operands = [operand(*shape) for shape in LEFT[equation]]
    assert torch.equal(einsum(equation, *operands), torch.einsum(equation, *operands))


@pytest.mark.parametrize(("equation", "shapes"), [("bd,od->bx", [(3, 4), (5, 4)]), ("bdk,od->bo", [(3, 4), (5, 4)])])
def test_an_equation_that_does_not_fit_is_refused_in_the_words_of_pytorch(equation, shapes):
    with pytest.raises(RuntimeError, match=r"einsum\(\)"):
        einsum(equation, *(operand(*shape) for shape in shapes))


def test_axes_by_number_are_left_to_pytorch():
    x, w = operand(3, 4), operand(5, 4)
    assert torch.equal(einsum(x, [0, 1], w, [2, 1], [0, 2]), torch.einsum("bd,od->bo", x, w))


MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(16, 64), nn.Linear(64, 4)
        self.first, self.second = nn.Parameter(torch.randn(64, 64) * 0.1), nn.Parameter(torch.randn(64, 64) * 0.1)
        self.tokens = nn.Parameter(torch.randn(36, 36) * 0.1)

    def forward(self, x):
        x = self.embed(x)
        x = torch.relu(torch.einsum("bnd,od->bno", x, self.first))
        x = torch.relu(torch.einsum("bnd,do->bno", x, self.second))
        x = torch.relu(torch.einsum("mn,bnd->bmd", self.tokens, x))
        return self.head(x.mean(1))


def build_model():
    return Net()


def example_inputs():
    return torch.randn(8, 36, 16), torch.randint(0, 4, (8,))
"""


def test_layers_written_with_letters_run_in_one_bit_and_follow_pytorch(model_file, tmp_path):
    source = load_model(model_file(MODEL))
    train = lower_model(source, CompileOptions()).train
    assert {layer.path for layer in train.layers if layer.binarized} == {"first", "second", "tokens"}
    assert isinstance(source.module, nn.Module)
    assert_follows_pytorch(source, tmp_path / "step")
