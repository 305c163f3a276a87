"""Every op's kernel, as emitted for the GPU and executed by the emulation, agrees with its reference on its samples."""

import dataclasses
import re

import numpy as np
import pytest
import torch
import tvm

from fqt_deploy.codegen.build import lower_relax
from fqt_deploy.compiler.verify import TF32_TOLERANCE
from fqt_deploy.ops.op import FQT_OPS, Kind
from tests.targets.op_kernel import op_function

SAMPLES = {
    f"{spec.name}_{i}": (spec, arguments)
    for spec in FQT_OPS.values()
    if spec.traits.kind is not Kind.COMPOSITE
    for i, arguments in enumerate(spec.sample_inputs())
}
PRODUCTS = ("binary_conv2d", "bitplane_conv2d_input_grad", "bitplane_weight_grad", "level_conv2d", "level_weight_grad")


def flat(result):
    return list(result) if isinstance(result, (tuple, list)) else [result]


IN_OTHER_FORMS = [
    *(f"binary_conv2d_{i}" for i in (1, 5)),
    *(f"bitplane_conv2d_input_grad_{i}" for i in range(4)),
    *(f"bitplane_weight_grad_{i}" for i in range(4)),
    *(f"level_conv2d_{i}" for i in (1, 3, 4, 5)),
    *(f"level_weight_grad_{i}" for i in (0, 2, 3)),
]
"""Samples with every number of planes, odd channels, strides, padding."""


IN_TF32 = ["conv2d_0", "conv2d_1", "conv2d_input_grad_1", "conv2d_weight_grad_0", "linear_0", "batch_matmul_0"]
COPIED = ["conv2d_0", "conv2d_5", "conv2d_input_grad_0"]


def unscheduled(name):
    """The loop nests of one sample."""
    spec, arguments = SAMPLES[name]
    return op_function(spec.name, arguments)


def kernel(target, name):
    """The scheduled kernel of one sample."""
    return target.schedule(unscheduled(name)).with_attr("global_symbol", name)


def compile_samples(target, names):
    return target.compile(tvm.IRModule({name: kernel(target, name) for name in names}), lower_relax)


@pytest.fixture(scope="module")
def tensor_cores(emulated_target, request, cases):
    """The samples that a test will run, in one library."""
    return compile_samples(emulated_target(), {case["name"] for case in cases(request.module, "tensor_cores")})


FORMS = {
    # form of the 1-bit products -> how a target gets it
    "xor": lambda target: target("sm_75"),
    "int8": lambda target: target("sm_100,sm_120"),
    "wgmma": lambda target: with_forms(target("sm_90a"), *target("sm_90a").features.preferring("wgmma").bit_forms),
    "popcount": lambda target: with_forms(target("sm_75")),
}


def with_forms(target, *forms):
    return dataclasses.replace(target, features=dataclasses.replace(target.features, bit_forms=forms))


@pytest.fixture(scope="module")
def other_forms(emulated_target, request, cases):
    """Samples of 1-bit products in other forms than that of sm_80, in one library; names begin with the form."""
    targets = {form: make(emulated_target) for form, make in FORMS.items()}
    functions = {
        f"{form}_{name}": kernel(targets[form], name).with_attr("global_symbol", f"{form}_{name}")
        for form, name in ((case["form"], case["name"]) for case in cases(request.module, "other_forms"))
    }
    return targets["xor"].compile(tvm.IRModule(functions), lower_relax)


def check(library, name, *, in_place=False, prefix="", expected=None):
    spec, arguments = SAMPLES[name]
    expected = flat(spec(*arguments).reference() if expected is None else expected)
    device = tvm.cuda(0)
    operands = [tvm.runtime.tensor(a.contiguous().numpy(), device) for a in arguments if isinstance(a, torch.Tensor)]
    fresh = [tvm.runtime.tensor(torch.zeros_like(e).numpy(), device) for e in expected]
    outputs = operands[: len(expected)] if in_place else fresh
    library[prefix + name](*operands, *outputs)
    for output, wanted in zip(outputs, expected, strict=True):
        actual = output.numpy()
        if not wanted.dtype.is_floating_point:
            np.testing.assert_array_equal(actual, wanted.numpy())
            continue
        finite = np.isfinite(wanted.numpy())
        np.testing.assert_array_equal(actual[~finite], wanted.numpy()[~finite])
        error = np.linalg.norm((actual - wanted.numpy())[finite].astype(np.float64))
        assert error <= spec.tolerance * np.linalg.norm(wanted.numpy()[finite].astype(np.float64))


@pytest.mark.quick(per=lambda case: SAMPLES[case["name"]][0])
@pytest.mark.parametrize("name", SAMPLES)
def test_emitted_kernel_agrees_with_reference(tensor_cores, name):
    check(tensor_cores, name)


@pytest.mark.quick(per=lambda case: SAMPLES[case["name"]][0])
@pytest.mark.parametrize("name", [n for n, (spec, _) in SAMPLES.items() if spec.traits.kind is Kind.UPDATE])
def test_emitted_update_writes_in_place(tensor_cores, name):
    check(tensor_cores, name, in_place=True)


IN_ONE_FORM = (
    "binary_conv2d_1-xor", "bitplane_conv2d_input_grad_0-int8", "bitplane_weight_grad_0-wgmma", "level_conv2d_1-int8",
    "level_weight_grad_0-popcount",
)  # fmt: skip
"""Each product once, each form at least once."""


@pytest.mark.quick(only=IN_ONE_FORM)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", IN_OTHER_FORMS)
def test_products_in_other_forms_agree_with_reference(other_forms, name, form):
    check(other_forms, name, prefix=f"{form}_")


@pytest.fixture(scope="module")
def fp32_variants(emulated_target):
    """Products in TF32, and with operands copied first that lie badly; in one library, names begin with the variant."""
    target = emulated_target("sm_80")
    functions = {f"tf32_{name}": kernel(target.with_tf32(), name) for name in IN_TF32}
    patch = pytest.MonkeyPatch()
    patch.setattr("fqt_deploy.targets.cuda.contraction.COPY_USES", 1)
    functions.update({f"copied_{name}": kernel(target, name) for name in COPIED})
    patch.undo()
    for name in COPIED:
        assert "copied" in str(functions[f"copied_{name}"].body)
        assert "copied" not in str(kernel(target, name).body)
    functions = {name: function.with_attr("global_symbol", name) for name, function in functions.items()}
    return target.compile(tvm.IRModule(functions), lower_relax)


@pytest.mark.parametrize("name", COPIED)
def test_products_of_copied_operands_agree_with_reference(fp32_variants, name):
    check(fp32_variants, name, prefix="copied_")


@pytest.mark.parametrize("name", IN_TF32)
def test_products_in_tf32_round_operands_only(fp32_variants, name):
    """The result is that of operands rounded to 11 bits, up to the rounding of fp32 sums."""
    spec, arguments = SAMPLES[name]
    rounded = [rounded_to_tf32(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    check(fp32_variants, name, prefix="tf32_", expected=spec(*rounded).reference())
    difference = (spec(*rounded).reference() - spec(*arguments).reference()).norm() / spec(
        *arguments
    ).reference().norm()
    assert spec.tolerance < difference < TF32_TOLERANCE


def rounded_to_tf32(tensor):
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize(
    ("architectures", "instruction"),
    [
        (None, "m16n8k256"),
        ("sm_90a,sm_100", "m16n8k256"),
        ("sm_75", "m8n8k128"),
        ("sm_75,sm_90a", "m8n8k128"),
        ("sm_100a", "m16n8k32"),
        ("sm_100,sm_120", "m16n8k32"),
    ],
)
def test_products_use_the_tensor_cores_that_all_architectures_have(emulated_target, architectures, instruction):
    target = emulated_target(architectures)
    for name in (f"{product}_0" for product in PRODUCTS):
        assert set(re.findall(r"m\d+n\d+k\d+", str(kernel(target, name).body))) == {instruction}


TAKEN = {
    "fp32_product": ("conv2d", "conv2d_input_grad", "conv2d_weight_grad", "linear", "linear_input_grad",
                     "linear_weight_grad", "batch_matmul"),
    "binary_conv2d": ("binary_conv2d",),
    "bitplane_conv2d_input_grad": ("bitplane_conv2d_input_grad",),
    "bitplane_weight_grad": ("bitplane_weight_grad",),
    "ballot_packing": ("pack_signs", "quantize_pack_samples", "transpose_packed_weight"),
    "column_packing": ("quantize_pack_channels", "pack_weight"),
    "pack_positions": ("pack_positions",),
    "single_block": ("select_sampled", "select_topk"),
}  # fmt: skip
"""File of the rule -> ops that it takes with all their samples."""


@pytest.mark.parametrize(("rule", "ops"), TAKEN.items(), ids=str)
def test_special_kernels_do_not_fall_through_to_the_generic_rule(emulated_target, rule, ops):
    target = emulated_target()
    for name, (spec, _) in SAMPLES.items():
        if spec.name in ops:
            function = unscheduled(name)
            takers = (r for r in target.rules if not r.ops or spec.name in r.ops)
            taken = next(r for r in takers if r.apply(function, target.features) is not None)
            assert type(taken).__module__.endswith(f"cuda.{rule}"), name
