"""Attention and products of matrices on a CPU, of sizes that the samples of their ops do not reach."""

import numpy as np
import pytest
import torch
import tvm

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.ops.lib.attention_scores import kept_weights
from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.cpu.fp32.matrix_tile import tile_shape
from fqt_deploy.targets.cpu.options import CpuOptions
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import op_function

LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4")
ATTENTIONS = (
    (1, 197, 197, 3, 3, 64, 64, False),  # several blocks, a narrow last panel
    (1, 130, 130, 2, 1, 16, 40, True),  # later blocks see more keys; two heads of queries for one of keys
    (1, 3, 700, 1, 1, 80, 80, False),  # one short block of long rows, more vectors than a tile has
    (9, 20, 20, 1, 1, 8, 8, True),  # a job for each sample
)
"""B, N, M, H, G, D, E and whether causal."""
PRODUCTS = (
    ("batch_matmul", (3, 100, 300), (3, 300, 70)),  # two stretches of terms, two blocks of rows
    ("batch_matmul", (17, 7, 5), (17, 5, 3)),
    ("linear", (100, 300), (530, 300)),  # several groups of panels
    ("linear_input_grad", (5, 600), (600, 33)),
    ("linear_weight_grad", (300, 130), (300, 99)),
    ("linear_weight_grad", (1, 4), (1, 3)),
)


def kernel(target, name, arguments):
    module = tvm.compile(tvm.IRModule({"main": target.schedule(op_function(name, arguments))}), target.tvm_target)
    return module["main"]


def run(function, arguments, expected, threads):
    """Results of a kernel that is given arrays full of NaN to write to."""
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    results = [tvm.runtime.tensor(np.full(tuple(e.shape), np.nan, dtype=np.float32)) for e in expected]
    function(*(tvm.runtime.tensor(a.contiguous().numpy()) for a in arguments if isinstance(a, torch.Tensor)), *results)
    return [result.numpy() for result in results]


def check(target, name, arguments):
    """A kernel gives what its reference gives, the same bits on any number of threads."""
    expected = FQT_OPS[name](*arguments).reference()
    expected = list(expected) if isinstance(expected, tuple) else [expected]
    function = kernel(target, name, arguments)
    alone, both = (run(function, arguments, expected, threads) for threads in (1, 2))
    for one, two, right in zip(alone, both, expected, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, right.numpy(), rtol=1e-4, atol=1e-5 * float(right.abs().max()))


def attention_arguments(b, n, m, h, g, d, e, causal, mask=None, dropout=0.0):
    r = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*s, generator=r) for s in ((b, n, h, d), (b, m, g, d), (b, m, g, e)))
    draws = torch.randint(0, 2**24, (b, 2), generator=r) * 2.0**-24 if dropout else None
    operands = q, k, v, None if mask is None else torch.randn(*mask, generator=r), draws
    numbers = d**-0.5, causal, dropout
    output, logsumexp = FQT_OPS["attention"](*operands, *numbers).reference()
    gradient = torch.randn(output.shape, generator=r)
    return (*operands, *numbers), (gradient, *operands, logsumexp, *numbers)


@pytest.mark.quick
@pytest.mark.parametrize("sizes", ATTENTIONS)
def test_attention_equals_its_reference_on_any_number_of_threads(sizes):
    forward, backward = attention_arguments(*sizes)
    check(make_target("cpu"), "attention", forward)
    check(make_target("cpu"), "attention_backward", backward)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("sizes", "mask"),
    [
        ((3, 130, 130, 2, 2, 16, 16, False), (1, 2, 130, 130)),  # a learned bias of every head, in several parts
        ((2, 130, 70, 4, 2, 16, 16, False), (2, 1, 130, 70)),  # one for all heads
        ((2, 60, 61, 2, 1, 8, 8, False), (1, 1, 1, 61)),  # one for all queries of all samples
    ],
)
def test_masks_and_dropout_equal_their_reference(sizes, mask):
    forward, backward = attention_arguments(*sizes, mask, dropout=0.2)
    for name, arguments in (
        ("attention", forward), ("attention_backward", backward), ("attention_mask_gradient", backward)
    ):  # fmt: skip
        check(make_target("cpu"), name, arguments)


@pytest.mark.quick(only=("0.3",))
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_right_where_one_key_has_nearly_all_the_weight(dropout):
    """Scores are whole numbers near a thousand: none is rounded, but the logarithm of their sum is, to 6e-5."""
    r = torch.Generator().manual_seed(0)
    n, m, h, d = 70, 37, 2, 2
    q, k = (torch.randint(-1, 2, (2, rows, h, d), generator=r).float() for rows in (n, m))
    v, gradient = (torch.randn(2, rows, h, 16, generator=r) for rows in (m, n))
    mask = 1000.0 + 8.0 * torch.eye(m)[torch.randint(0, m, (1, h, n), generator=r)]
    draws = torch.randint(0, 2**24, (2, 2), generator=r) * 2.0**-24 if dropout else None
    _, logsumexp = FQT_OPS["attention"](q, k, v, mask, draws, 1.0, False, dropout).reference()
    arguments = gradient, q, k, v, mask, draws, logsumexp, 1.0, False, dropout

    leaves = query, key, value, added = [x.double().requires_grad_() for x in (q, k, v, mask)]
    weights = (torch.einsum("bnhd,bmhd->bhnm", query, key) + added).softmax(3)
    output = torch.einsum("bhnm,bmhe->bnhe", weights * kept_weights(draws, dropout, weights.shape), value)
    *towards, towards_mask = torch.autograd.grad(output, leaves, gradient.double())

    for name, right in (("attention_backward", towards), ("attention_mask_gradient", [towards_mask])):
        reference = FQT_OPS[name](*arguments).reference()
        reference = list(reference) if isinstance(reference, tuple) else [reference]
        found = run(kernel(make_target("cpu"), name, arguments), arguments, reference, 2)
        for ours, fp32, exact in zip(found, reference, right, strict=True):
            assert np.linalg.norm(ours - exact.numpy()) <= 1e-4 * float(exact.norm())
            assert float((fp32 - exact).norm()) <= 1e-4 * float(exact.norm())


@pytest.mark.quick(per="name")
@pytest.mark.parametrize(("name", "first", "second"), PRODUCTS)
def test_products_equal_their_reference_on_any_number_of_threads(name, first, second):
    r = torch.Generator().manual_seed(0)
    check(make_target("cpu"), name, (torch.randn(first, generator=r), torch.randn(second, generator=r)))


@pytest.mark.quick(only=("x86-64-v3",))
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_has_its_tile(level):
    try:
        target = make_target("cpu", CpuOptions(mcpu=level))
    except FqtError:
        pytest.skip("this machine cannot run it")
    tile = tile_shape(target.features)
    registers = tile.rows * tile.vectors * 512 // target.features.vector_bits
    assert registers <= target.features.vector_registers * 3 // 4
    forward, backward = attention_arguments(2, 19, 33, 2, 1, 20, 20, True)
    check(target, "attention", forward)
    check(target, "attention_backward", backward)
    check(target, "attention_mask_gradient", attention_arguments(2, 7, 19, 2, 1, 4, 4, True, (2, 2, 7, 19), 0.5)[1])
    check(target, "linear", (torch.randn(20, 40), torch.randn(50, 40)))


def test_numbers_that_are_none_stay_visible():
    """A query that is not a number gets no number, and no other query is touched."""
    forward, _ = attention_arguments(1, 20, 20, 1, 1, 16, 16, False)
    forward[0][0, 7] = float("nan")
    expected = FQT_OPS["attention"](*forward).reference()
    output, logsumexp = run(kernel(make_target("cpu"), "attention", forward), forward, expected, 1)
    assert np.isnan(output[0, 7]).all()
    assert np.isnan(logsumexp[0, 0, 7])
    assert np.isfinite(np.delete(output, 7, axis=1)).all()
