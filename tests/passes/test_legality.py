"""What is legal in each stage: an illegal graph is caught, and the node that breaks the law is named."""

import itertools

import pytest

from fqt_deploy.core.diagnostics import InvariantError
from fqt_deploy.core.graph import Stage
from fqt_deploy.core.text import parse_graph
from fqt_deploy.passes.invariants import ALWAYS, every_op_has_a_kernel
from fqt_deploy.passes.legality import LEGAL, ops_are_legal_in_stage
from fqt_deploy.passes.pass_base import Pipeline

INPUTS = """
layer body = conv2d index=0 binarized=True
input %x = x : f32[2, 4, 4, 32]
input %w = w : f32[8, 32, 3, 3]
input %one = one : f32[8, 1, 3, 3]
input %g = g : f32[2, 1, 4]
input %zero = zero : f32[2]
input %key = key : i32[2]
input %count = count : i64[]
"""
SIGNS = "%found = fqt.sign(%x)"
CODES = "%codes = fqt.quantize_samples(%g, alpha=None, index=None, zero=%zero, reciprocal=%zero, key=%key, bits=3)\n"
WORDS = "%words = fqt.pack_signs(%x)\n"
CONVOLUTION = "stride=[1, 1], padding=[1, 1])"

ILLEGAL = {
    "captured: a quantizer": (Stage.CAPTURED, SIGNS, "fqt.sign.default is an op of quantization"),
    "captured: packed bits": (Stage.CAPTURED, "%found = fqt.pack_signs(%x)", "is an op of packing"),
    "captured: a selection": (Stage.CAPTURED, "%found = fqt.gather_rows(%x, %key)", "is an op of selection"),
    "captured: a write": (Stage.CAPTURED, "%found = aten.relu_(%x)", "aten.relu_.default writes its operand"),
    "normalized: no lowering": (
        Stage.NORMALIZED, "%found = aten.convolution(%x, %x, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)",
        "aten.convolution.default has no lowering",
    ),
    "normalized: a wide type": (
        Stage.NORMALIZED, "%found = aten._to_copy(%x, dtype=f64)", "aten._to_copy.default has no lowering",
    ),
    "normalized: a type without kernels": (
        Stage.NORMALIZED, "%found = aten.view(%wide, size=[1])", "%found is c64[1], a type that nothing computes in",
    ),
    "normalized: a product of integers": (
        Stage.NORMALIZED, "%i = aten._to_copy(%x, dtype=i32)\n%found = fqt.conv2d(%i, %w, " + CONVOLUTION,
        "a product reads %i, i32[2, 4, 4, 32]: it computes on f32",
    ),
    "normalized: signs": (Stage.NORMALIZED, SIGNS, "is an op of quantization"),
    "quantized: packed bits": (Stage.QUANTIZED, "%found = fqt.pack_signs(%x)", "is an op of packing"),
    "quantized: arithmetic on codes": (
        Stage.QUANTIZED, CODES + "%moved = aten.view(%codes, [2, 4])\n%found = aten.mul.Tensor(%moved, 2)",
        "aten.mul.Tensor reads %moved, u8[2, 4], which are codes",
    ),
    "quantized: a product of codes": (
        Stage.QUANTIZED, CODES + "%rows = aten.view(%codes, [2, 4])\n%found = fqt.linear(%rows, %rows)",
        "a product reads %rows, u8[2, 4]: it computes on f32",
    ),
    "lowered: arithmetic on words": (
        Stage.LOWERED, WORDS + "%found = aten.add.Tensor(%words, %words)",
        "aten.add.Tensor reads %words, i32[2, 4, 4, 1], which are packed words",
    ),
    "lowered: unpacked codes": (
        Stage.LOWERED, CODES.replace("%codes", "%found"), "computes codes that are not packed",
    ),
    "lowered: words times floats": (
        Stage.LOWERED, WORDS + "%found = fqt.conv2d(%words, %one, " + CONVOLUTION,
        "a product reads %words, i32[2, 4, 4, 1] and %one, f32[8, 1, 3, 3]: it computes on one type",
    ),
    "lowered: a product of other integers": (
        Stage.LOWERED, "%b = aten._to_copy(%g, dtype=i64)\n"
        "%c = aten.view(%b, [2, 4, 1])\n%found = fqt.batch_matmul(%b, %c)",
        "a product reads %b, i64[2, 1, 4]: it computes on f32 or on words, i32",
    ),
    "lowered: a binarized layer in fp32": (
        Stage.LOWERED, "%found = fqt.conv2d(%x, %w, " + CONVOLUTION + " {layer=body direction=forward}",
        "layer body is binarized, but fqt.conv2d.default computes it in floating point",
    ),
}  # fmt: skip


def graph_of(stage, lines):
    wide = "input %wide = wide : c64[1]\n"
    return parse_graph(f"graph stage={stage.name.lower()} batch=2\n{INPUTS}{wide}{lines}\noutput found = %found\n")


@pytest.mark.parametrize("case", ILLEGAL)
def test_what_is_illegal_is_caught_and_named(case):
    stage, lines, said = ILLEGAL[case]
    with pytest.raises(InvariantError) as caught:
        Pipeline((), ALWAYS).run(graph_of(stage, lines))
    assert said in caught.value.message
    assert caught.value.node.name == "found"
    assert stage.name in caught.value.message or "writes" in said


LEGAL_HERE = {
    Stage.CAPTURED: "%found = aten.convolution(%x, %x, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)",
    Stage.NORMALIZED: "%y = fqt.conv2d(%x, %w, " + CONVOLUTION + "\n%found = fqt.stream_key(%count, %count, 1, 5)",
    Stage.QUANTIZED: CODES + "%found = fqt.dequantize(%codes, %zero, %zero, 0)",
    Stage.LOWERED: WORDS + "%v = fqt.pack_weight(%w)\n%moved = aten.view(%words, [2, 16, 1, 1])\n%found = aten.neg(%x)",
}


@pytest.mark.parametrize("stage", Stage)
def test_what_is_legal_is_not_refused(stage):
    Pipeline((), ALWAYS).run(graph_of(stage, LEGAL_HERE[stage]))


def test_every_stage_has_its_own_statement():
    assert list(LEGAL) == list(Stage)
    statements = list(LEGAL.values())
    assert all(a != b for i, a in enumerate(statements) for b in statements[:i])
    for before, after in itertools.pairwise(statements):
        assert before.families < after.families, "lowering adds kinds of ops"


@pytest.mark.parametrize("name", ["", "propagate-layout", "check-operators", "binarize-forward", "write-state"])
def test_a_graph_is_in_the_stage_that_its_passes_made(graph_after, name):
    stages = {"check-operators": Stage.NORMALIZED, "binarize-forward": Stage.QUANTIZED, "write-state": Stage.LOWERED}
    graph = graph_after("dense", name)
    assert graph.stage is stages.get(name, Stage.CAPTURED)
    ops_are_legal_in_stage(graph)


def test_composite_ops_have_no_kernel():
    gradient = "%found = fqt.latent_weight_grad(%w, %w, False)"
    with pytest.raises(InvariantError, match=r"no kernel for fqt\.latent_weight_grad\.default"):
        every_op_has_a_kernel(graph_of(Stage.LOWERED, gradient))
