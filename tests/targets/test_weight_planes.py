"""Products with weights of several bits: computed whole where bytes are multiplied, and right in any case."""

from dataclasses import replace

import pytest
import torch
import tvm

from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.cpu.products.bit_product_rule import BitProductRule
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import op_function

PRODUCTS = ("binary_conv2d", "bitplane_conv2d_input_grad", "level_conv2d")


def samples(name, planes):
    """The samples of an op, with so many planes of a weight: random ones and its own."""
    generator = torch.Generator().manual_seed(planes)
    for x, w, *rest in FQT_OPS[name].sample_inputs():
        # of the bits that are set, so that those past the end stay 0
        others = [w & torch.randint(-(2**31), 2**31, w.shape, generator=generator).int() for _ in range(planes - 1)]
        yield x, torch.stack([*others, w]), *rest


@pytest.mark.parametrize("planes", [2, 4])
@pytest.mark.parametrize("name", PRODUCTS)
def test_kernels_compute_what_the_reference_does(name, planes):
    """On this machine, in tiles or by bytes where it has them and by plain loops elsewhere."""
    target = make_target("cpu")
    found = list(samples(name, planes))
    functions = {f"k{i}": target.schedule(op_function(name, case).with_attr("global_symbol", f"k{i}"))
                 for i, case in enumerate(found)}  # fmt: skip
    module = tvm.compile(tvm.IRModule(functions), target.tvm_target)
    for i, case in enumerate(found):
        expected = FQT_OPS[name](*case).reference()
        result = tvm.runtime.tensor(torch.zeros_like(expected).numpy())
        module[f"k{i}"](*(tvm.runtime.tensor(a.contiguous().numpy()) for a in case[:2]), result)
        assert torch.equal(torch.from_numpy(result.numpy()), expected), i


@pytest.mark.parametrize("name", PRODUCTS)
def test_tiles_multiply_levels_in_one_product(name):
    if not make_target("cpu").features.is_x86:
        pytest.skip("LLVM for this machine does not make x86 code")
    features = replace(make_target("cpu").features, has_amx=True)
    target = tvm.target.Target({"kind": "llvm", "mcpu": "sapphirerapids"})
    rule = BitProductRule()
    functions = [op_function(name, case) for case in samples(name, 4)]
    choices = [(function, rule.choice(function, features)) for function in functions]
    kernels = [rule.apply(f, features) for f, choice in choices if choice and choice.form == "tile-registers"]
    assert kernels
    for kernel in kernels:
        module = tvm.compile(tvm.IRModule({"main": kernel.with_attr("tirx.is_scheduled", True)}), target)
        assert "\ttdpb" in module.mod.inspect_source("asm")


@pytest.mark.parametrize("name", PRODUCTS)
def test_no_form_takes_planes_that_it_would_read_wrongly(name):
    """Without tiles only bytes do, and where those do not pay none."""
    features = replace(make_target("cpu").features, has_amx=False)
    for case in samples(name, 4):
        choice = BitProductRule().choice(op_function(name, case), features)
        assert choice is None or choice.form == "byte-product"
    narrow = replace(features, vector_bits=128)
    assert all(BitProductRule().choice(op_function(name, case), narrow) is None for case in samples(name, 2))
