"""Products on bits in a flat graph: integer products of what was packed, with the values of the functions."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.export.flat_model import flatten
from fqt_deploy.export.op_functions import op_call, op_function
from fqt_deploy.ops.lib.convolution_shape import output_extents
from fqt_deploy.ops.lib.levels import plane_channels
from fqt_deploy.ops.lib.onnx_body import DOMAIN, OPSET, element_type, make_node
from fqt_deploy.ops.op import FQT_OPS

GEOMETRIES = {
    "3x3": ([3, 3], [1, 1], [1, 1]),
    "stride": ([3, 3], [2, 2], [1, 1]),
    "one tap": ([1, 1], [1, 1], [0, 0]),
    "one tap, stride": ([1, 1], [2, 2], [0, 0]),
    "uneven": ([2, 3], [1, 2], [0, 1]),
}
GRIDS = {"signs": (0, False), "1 bit": (1, False), "4 bits": (4, False), "4 bits, signed": (4, True)}
"""Planes of an activation, and the kind of its grid; without planes its signs are packed."""
CHANNELS, OUTPUTS, SAMPLES, EXTENTS = 64, 32, 4, (8, 6)


class Model:
    """A model in the making, of calls and standard nodes, beside the values that they have."""

    def __init__(self):
        self.nodes, self.functions, self.values, self.inputs = [], {}, {}, {}

    def input(self, tensor):
        name = f"in{len(self.inputs)}"
        self.values[name] = self.inputs[name] = tensor
        return name

    def call(self, op, *arguments):
        spec = FQT_OPS[op]
        tensors = [self.values.get(a, a) if isinstance(a, str) else a for a in arguments]
        written = op_call(spec(*arguments), spec(*tensors))
        self.functions.setdefault(op, op_function(spec, tuple(written.attributes)))
        return self._add(make_node(op, written.operands, [f"v{len(self.nodes)}"], f"n{len(self.nodes)}",
                                   written.attributes, DOMAIN), spec(*tensors).reference())  # fmt: skip

    def view(self, value, *shape):
        constant = self.input(torch.tensor(shape))
        return self._add(helper.make_node("Reshape", [value, constant], [f"v{len(self.nodes)}"]),
                         self.values[value].reshape(shape))  # fmt: skip

    def transposed(self, value, *order):
        return self._add(helper.make_node("Transpose", [value], [f"v{len(self.nodes)}"], perm=order),
                         self.values[value].permute(order).contiguous())  # fmt: skip

    def chosen(self, value, *rows):
        index = self.input(torch.tensor(rows))
        return self._add(helper.make_node("Gather", [value, index], [f"v{len(self.nodes)}"], axis=0),
                         self.values[value][list(rows)])  # fmt: skip

    def finish(self, result):
        """The model, whose shapes are constants as in an exported one."""
        shapes = {node.input[1] for node in self.nodes if node.op_type == "Reshape"}
        kinds = {name: element_type(str(t.dtype).removeprefix("torch.")) for name, t in self.values.items()}
        infos = {name: helper.make_tensor_value_info(name, kinds[name], t.shape) for name, t in self.values.items()}
        graph = helper.make_graph(
            self.nodes, "g", [infos[name] for name in self.inputs if name not in shapes], [infos[result]],
            initializer=[onnx.numpy_helper.from_array(self.inputs[name].numpy(), name) for name in shapes],
        )  # fmt: skip
        domains = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, functions=list(self.functions.values()), opset_imports=domains, ir_version=10)

    def check(self, result, *, expected):
        """The flat model computes the bits of the model; ``expected`` are its products."""
        model = self.finish(result)
        flat = flatten(model)
        onnx.checker.check_model(flat, full_check=True)
        feeds = {value.name: self.inputs[value.name].numpy() for value in model.graph.input}
        theirs, ours = (run(each, feeds) for each in (model, flat))
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(ours, self.values[result].numpy())
        found = [node.op_type for node in flat.graph.node]
        assert [op for op in found if op in ("MatMulInteger", "Conv", "ConvTranspose")] == expected
        assert {node.domain for node in flat.graph.node} == {""}
        return found

    def _add(self, node, value):
        self.nodes.append(node)
        self.values[node.output[0]] = value
        return node.output[0]


def run(model, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.fixture
def made():
    torch.manual_seed(0)
    return Model()


def packed(made, grid, channels=CHANNELS):
    """The packed activations of an image."""
    planes, signed = GRIDS[grid]
    x = made.input(torch.randn(SAMPLES, *EXTENTS, channels))
    return made.call("pack_levels", x, 0.37, planes, signed) if planes else made.call("pack_signs", x)


def positions(made, grid, geometry):
    """The packed positions of chosen samples, the number of them, and what is said of the grid."""
    planes, signed = GRIDS[grid]
    words = made.view(packed(made, grid), SAMPLES, *EXTENTS, max(planes, 1) * CHANNELS // 32)
    kernel, stride, padding = geometry
    output = output_extents(list(EXTENTS), kernel, stride, padding)
    rows = planes * plane_channels(CHANNELS) if planes else CHANNELS
    chosen = made.chosen(words, 3, 0)
    result = made.call("pack_positions", chosen, rows, kernel, stride, padding, output)
    return result, 2 * output[0] * output[1], ([planes, signed] if planes else [])


@pytest.mark.quick(per="name")
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("name", "channels", "outputs"), [*((n, CHANNELS, OUTPUTS) for n in GEOMETRIES), ("3x3", 40, 7)]
)
def test_a_convolution(made, name, channels, outputs, grid):
    kernel, stride, padding = GEOMETRIES[name]
    weight = made.call("pack_weight", made.input(torch.randn(outputs, channels, *kernel)))
    planes, signed = GRIDS[grid]
    operands = (packed(made, grid, channels), weight, channels, outputs, kernel, stride, padding)
    result = made.call("level_conv2d", *operands, signed) if planes else made.call("binary_conv2d", *operands)
    found = made.check(result, expected=["MatMulInteger"])
    assert "ReduceSum" not in found


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_gradient_of_an_input(made, name):
    kernel, stride, padding = GEOMETRIES[name]
    output = output_extents(list(EXTENTS), kernel, stride, padding)
    weight = made.call("pack_weight", made.input(torch.randn(OUTPUTS, CHANNELS, *kernel)))
    turned = made.call("transpose_packed_weight", weight, CHANNELS, OUTPUTS, kernel[0] * kernel[1])
    codes = made.call("pack_levels", made.input(torch.randn(SAMPLES, *output, OUTPUTS)), 0.2, 3, False)
    operands = (codes, turned, CHANNELS, OUTPUTS, list(EXTENTS), kernel, stride, padding)
    made.check(made.call("bitplane_conv2d_input_grad", *operands), expected=["MatMulInteger"])


@pytest.mark.quick(per="name")
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_gradient_of_a_weight(made, name, grid):
    rows, count, about = positions(made, grid, GEOMETRIES[name])
    codes = made.call("pack_levels", made.input(torch.randn(OUTPUTS, count)), 0.2, 3, False)
    planes = made.transposed(codes, 2, 1, 0)
    op = "level_weight_grad" if about else "bitplane_weight_grad"
    result = made.call(op, planes, rows, CHANNELS, GEOMETRIES[name][0], *about)
    assert "ReduceSum" not in made.check(result, expected=["MatMulInteger"])


@pytest.mark.quick(per="name")
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_sums_of_levels(made, name, grid):
    rows, _, about = positions(made, grid, GEOMETRIES[name])
    result = made.call("level_sums" if about else "position_sums", rows, CHANNELS, GEOMETRIES[name][0], *about)
    assert "BitShift" not in made.check(result, expected=[])


def test_levels_that_might_saturate_stay_planes(made):
    """With eight bits of each operand, ONNX Runtime's sums of two products in 16 bits could be too large."""
    kernel, stride, padding = GEOMETRIES["one tap"]
    x = made.call("pack_levels", made.input(torch.randn(SAMPLES, *EXTENTS, CHANNELS)), 0.05, 8, False)
    words = made.view(x, SAMPLES, *EXTENTS, 8 * CHANNELS // 32)
    rows = made.call("pack_positions", words, 8 * CHANNELS, kernel, stride, padding, list(EXTENTS))
    codes = made.call("pack_levels", made.input(torch.randn(OUTPUTS, SAMPLES * 48)), 0.05, 8, False)
    result = made.call("level_weight_grad", made.transposed(codes, 2, 1, 0), rows, CHANNELS, kernel, 8, False)
    assert "ReduceSum" in made.check(result, expected=["MatMulInteger"])


def test_words_of_elsewhere_are_unpacked(made):
    """Where words are given, nothing is known of what they were packed of."""
    kernel, stride, padding = GEOMETRIES["3x3"]
    words = made.input(torch.randint(-(2**31), 2**31 - 1, (SAMPLES, *EXTENTS, 2), dtype=torch.int32))
    weight = made.call("pack_weight", made.input(torch.randn(OUTPUTS, CHANNELS, *kernel)))
    result = made.call("binary_conv2d", words, weight, CHANNELS, OUTPUTS, kernel, stride, padding)
    made.check(result, expected=["Conv"])
