"""Packing and unpacking that meet in a flat graph: both go, and the values stay."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fqt_deploy.export.flat_model import flatten
from fqt_deploy.ops.lib import onnx_bits
from fqt_deploy.ops.lib.onnx_bits import BITS, ONES, SIGNS
from fqt_deploy.ops.lib.onnx_body import OPSET, Body


def panels(op, words):
    rows = op.extent(words, 0)
    return onnx_bits.from_panels(op, onnx_bits.to_panels(op, words), rows)


def indices(op, *values):
    return op.constant(values, "int64")


MOVES = {
    "nothing": lambda op, words: words,
    "transposition": lambda op, words: op("Transpose", words, perm=[1, 0]),
    "reshape": lambda op, words: op.reshape(words, 4, -1),
    "two reshapes": lambda op, words: op.unsqueeze(op.reshape(words, -1), 1),
    "rows": lambda op, words: op("Gather", words, indices(op, 2, 0, 2), axis=0),
    "columns": lambda op, words: op("Gather", words, indices(op, -1, 0, 0), axis=-1),
    "slice": lambda op, words: op.back(words, indices(op, 3), 0),
    "slice from behind": lambda op, words: op.front(words, indices(op, 1), -1),
    "border": lambda op, words: op("Pad", words, indices(op, 1, 0, 2, 0), op.constant(0, "int32")),
    "border of an axis": lambda op, words: op(
        "Pad", words, indices(op, 0, 3), op.constant(0, "int32"), indices(op, -2)
    ),
    "constants beside": lambda op, words: op("Concat", words, op.constant([[-7, 3]] * 6, "int32"), axis=-1),
    "many equal ones": lambda op, words: op(
        "Concat", words, op("Expand", op.constant(-3, "int32"), indices(op, 40000, 2)), axis=0
    ),
    "panels": panels,
}
READS = {
    "bits": lambda op, words: onnx_bits.unpack(op, words, BITS, "uint8"),
    "numbers": lambda op, words: onnx_bits.unpack(op, words, BITS, "float32"),
    "signs": lambda op, words: onnx_bits.unpack(op, words, SIGNS, "float32"),
    "ones": lambda op, words: onnx_bits.table(op, words, ONES, "int32"),
}
KINDS = {"bits": TensorProto.UINT8, "numbers": TensorProto.FLOAT, "signs": TensorProto.FLOAT, "ones": TensorProto.INT32}


def model(move, read, channels, kind):
    op = Body()
    words = move(op, onnx_bits.pack(op, "x"))
    result = read(op, words)
    op.nodes.append(helper.make_node("Identity", [result], ["y"], name="y"))
    rank = {"ones": 3, "bits": 2, "numbers": 2, "signs": 2}
    x = helper.make_tensor_value_info("x", TensorProto.BOOL, [6, channels])
    y = helper.make_tensor_value_info("y", KINDS[kind], [None] * rank[kind])
    graph = helper.make_graph(op.nodes, "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def run(made, x):
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.quick(per="name")
@pytest.mark.parametrize("kind", READS)
@pytest.mark.parametrize("name", MOVES)
def test_bits_are_taken_as_they_were(name, kind):
    plain = model(MOVES[name], READS[kind], 64, kind)
    flat = flatten(plain)
    x = np.random.default_rng(0).integers(0, 2, (6, 64)).astype(bool)
    np.testing.assert_array_equal(run(flat, x), run(plain, x))
    assert not {"BitShift", "BitwiseAnd"} & {node.op_type for node in flat.graph.node}


@pytest.mark.parametrize("kind", READS)
def test_words_that_are_not_full_are_filled_with_zeros(kind):
    """The bits of their channels are taken as they were, too, and what is unpacked is the same."""
    plain = model(MOVES["panels"], READS[kind], 40, kind)
    x = np.random.default_rng(0).integers(0, 2, (6, 40)).astype(bool)
    flat = flatten(plain)
    np.testing.assert_array_equal(run(flat, x), run(plain, x))
    assert not {"BitShift", "BitwiseAnd"} & {node.op_type for node in flat.graph.node}


@pytest.mark.parametrize(
    ("table", "shift", "mask"),
    [(BITS, [0, 8, 16, 23], 255), (BITS, [0, 8, 16, 24], 127), (BITS[::-1], [0, 8, 16, 24], 255)],
)
def test_other_shifts_masks_and_tables_are_left_alone(table, shift, mask):
    """What only looks like unpacking is computed as it stands."""
    op = Body()
    words = op.cast(onnx_bits.pack(op, "x"), "uint32")
    shifted = op("BitShift", op.unsqueeze(words, -1), op.constant(shift, "uint32"), direction="RIGHT")
    octets = op.cast(op("BitwiseAnd", shifted, op.constant(mask, "uint32")), "int32")
    result = op("Gather", op.constant(table, "uint8"), octets, axis=0)
    op.nodes.append(helper.make_node("Identity", [result], ["y"], name="y"))
    x = helper.make_tensor_value_info("x", TensorProto.BOOL, [6, 64])
    y = helper.make_tensor_value_info("y", TensorProto.UINT8, [6, 2, 4, 8])
    graph = helper.make_graph(op.nodes, "g", [x], [y])
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    bits = np.random.default_rng(0).integers(0, 2, (6, 64)).astype(bool)
    np.testing.assert_array_equal(run(flatten(plain), bits), run(plain, bits))
    assert "BitShift" in {node.op_type for node in flatten(plain).graph.node}
