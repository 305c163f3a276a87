"""The model for every ONNX Runtime: what is left in it, and that it computes the same bits."""

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError, InvariantError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.core.onnx_names import NEXT, step_files
from fqt_deploy.export.flat_model import flatten
from fqt_deploy.onnx_session import load_onnx
from fqt_deploy.runtime.checkpoint import load_checkpoint

HEAD = '<ir_version: 10, opset_import: ["" : 21, "ai.fqt" : 1]>'


def parsed(text):
    model = onnx.parser.parse_model(f"{HEAD} {text}")
    onnx.checker.check_model(model, full_check=True)
    return model


def ops(model):
    return [node.op_type for node in model.graph.node]


def run(model, **feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


X = np.array([[1.5, -0.0, np.nan], [np.inf, 2, -3]], dtype=np.float32)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        # shape arithmetic
        ("s = Shape(x) y = Reshape(x, s)", ["Identity"]),
        ("s = Shape<start: int = 1>(x) t = Cast<to: int = 1>(s) y = Mul(x, t)", ["Mul"]),
        ("s = Shape<start: int = -1, end: int = 9>(x) t = Cast<to: int = 1>(s) y = Mul(x, t)", ["Mul"]),
        ("s = Size(x) t = Cast<to: int = 1>(s) y = Mul(x, t)", ["Mul"]),
        # reshapes in a row
        ("a = Constant<value_ints = [0]>() b = Unsqueeze(x, a) c = Squeeze(b, a) y = Neg(c)", ["Neg"]),
        ("a = Constant<value_ints = [0]>() b = Unsqueeze(x, a) c = Flatten(b) y = Neg(c)", ["Reshape", "Neg"]),
        # nothing happens
        ("y = Cast<to: int = 1>(x)", ["Identity"]),
        ("y = Transpose<perm = [0, 1]>(x)", ["Identity"]),
        ("y = Concat<axis: int = 0>(x)", ["Identity"]),
        ("p = Constant<value_ints = [0, 0, 0, 0]>() y = Pad(x, p)", ["Identity"]),
        ("a = Constant<value_float: float = 1.0>() y = Mul(x, a)", ["Identity"]),
        ("a = Constant<value_float: float = 1.0>() y = Div(x, a)", ["Identity"]),
        ("a = Constant<value_ints = [0]>() b = Constant<value_ints = [9]>() y = Slice(x, a, b)", ["Identity"]),
        ("s = Constant<value_ints = [2, 3]>() y = Expand(x, s)", ["Identity"]),
        ("i = Constant<value_ints = [0, 1, 2]>() y = Gather<axis: int = 1>(x, i)", ["Identity"]),
        ("i = Constant<value_ints = [0, 1, 2]>() y = Gather<axis: int = -1>(x, i)", ["Identity"]),
        ("c = IsNaN(x) f = Cast<to: int = 1>(c) d = Cast<to: int = 9>(f) y = Where(d, x, x)", ["IsNaN", "Where"]),
        (
            "k = Cast<to: int = 7>(x) i = Constant<value_ints = [1]>() m = Mod(k, i) "
            "z = Cast<to: int = 1>(m) y = Max(x, z)",
            ["Max"],
        ),
        # something happens, though shape and type stay
        ("i = Constant<value_ints = [0, 2, 1]>() y = Gather<axis: int = 1>(x, i)", ["Gather"]),
        ("c = Constant<value: tensor = bool[3] {1, 0, 1}>() a = Neg(x) y = Where(c, x, a)", ["Neg", "Where"]),
        ("k = Cast<to: int = 6>(x) y = Cast<to: int = 1>(k)", ["Cast", "Cast"]),
        (
            "k = Cast<to: int = 7>(x) i = Constant<value_ints = [2]>() m = Mod(k, i) "
            "z = Cast<to: int = 1>(m) y = Max(x, z)",
            ["Cast", "Mod", "Cast", "Max"],
        ),
        ("i = Constant<value_float: float = 1.0>() y = Mod<fmod: int = 1>(x, i)", ["Mod"]),
        ("p = Constant<value_ints = [1, 0, -1, 0]>() y = Pad(x, p)", ["Pad"]),
        ("a = Constant<value_float: float = 1.0>() y = Div(a, x)", ["Div"]),
        ("a = Constant<value_float: float = 2.0>() y = Mul(x, a)", ["Mul"]),
        (
            "a = Constant<value_ints = [-1]>() b = Constant<value_ints = [-9]>() c = Constant<value_ints = [0]>() "
            "y = Slice(x, a, b, c, a)",
            ["Slice"],
        ),
        ("z = Constant<value_float: float = 0.0>() y = Add(x, z)", ["Add"]),  # -0 + 0 is 0
        # known when exporting, and not
        ("a = Constant<value_float: float = 2.0>() b = Sqrt(a) y = Mul(x, b)", ["Mul"]),
        ("a = Constant<value_float: float = 2.0>() b = Exp(a) y = Mul(x, b)", ["Exp", "Mul"]),
        # the same twice
        ("a = Neg(x) b = Neg(x) y = Mul(a, b)", ["Neg", "Mul"]),
        ("a, b = TopK<axis: int = 1>(x, k) c, d = TopK<axis: int = 1>(x, k) y = Sub(a, c)", ["TopK", "Sub"]),
        ("a = Elu<alpha: float = 1.0>(x) b = Elu<alpha: float = 2.0>(x) y = Mul(a, b)", ["Elu", "Elu", "Mul"]),
        ("unused = Neg(x) y = Abs(x)", ["Abs"]),
    ],
)  # fmt: skip
def test_what_is_left(body, left):
    """Few nodes, and the same bits, signs of zeros and NaN included."""
    body = body if "TopK" not in body else f"k = Constant<value_ints = [3]>() {body}"
    for axes in ("float[2, 3] x", "float[1, 3] x"):
        model = parsed(f"g ({axes}) => (float[?, ?] y) {{ {body.replace('[2, 3]', axes[5:11])} }}")
        flat = flatten(model)
        x = X[: int(axes[6])]
        np.testing.assert_array_equal(run(flat, x=x)[0].view(np.int32), run(model, x=x)[0].view(np.int32))
        if axes.startswith("float[2"):
            assert ops(flat) == left


@pytest.mark.parametrize(
    ("condition", "left"),
    [("bool {1}", ["Identity"]), ("bool[2, 3] {0, 0, 0, 0, 0, 0}", ["Neg", "Identity"]), ("bool[3] {1, 0, 1}", None)],
)
def test_a_choice_that_is_known_is_none(condition, left):
    """What ``Where`` takes everywhere stays as it is. ONNX Runtime's own makes 0 of -0, which the standard does not."""
    body = f"c = Constant<value: tensor = {condition}>() a = Neg(x) y = Where(c, x, a)"
    model = parsed(f"g (float[2, 3] x) => (float[2, 3] y) {{ {body} }}")
    found = run(flatten(model), x=X)[0]
    if left is None:
        np.testing.assert_array_equal(found, run(model, x=X)[0])
        assert ops(flatten(model)) == ["Neg", "Where"]
    else:
        assert ops(flatten(model)) == left
        np.testing.assert_array_equal(found.view(np.int32), (X if left == ["Identity"] else -X).view(np.int32))


def test_transposition_of_single_elements_alone_is_none():
    for perm, left in (([0, 2, 1, 3], ["Transpose"]), ([1, 0, 2, 3], ["Identity"]), ([2, 1, 0, 3], ["Transpose"])):
        model = parsed(f"g (float[1, 1, 3, 3] x) => (float[?, ?, ?, ?] y) {{ y = Transpose<perm = {perm}>(x) }}")
        assert ops(flatten(model)) == left, perm
        x = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
        np.testing.assert_array_equal(run(flatten(model), x=x)[0], run(model, x=x)[0])


FUNCTION = """
g (float[2, 3] x) => (float[2, 3] y, float[3, 2] z, float[2, 3] w) {
  [call] y, z = ai.fqt.f<order = [1, 0], scale = {2.0}>(x)
  [again] w, unused = ai.fqt.f<order = [0, 1], scale = {3.0}>(y)
}
<domain: "ai.fqt", opset_import: ["" : 21]>
f <order, scale> (a) => (scaled, turned) {
  [s] v0 = Constant<value: tensor = @scale>()
  [m] v1 = Mul(a, v0)
  [t] v2 = Transpose<perm: ints = @order>(a)
  [scaled] scaled = Identity(v1)
  [turned] turned = Identity(v2)
}
"""


PLANES = """g (uint8[4, 6] x) => (float[?, ?, ?] y) {
  limit = Constant<value: tensor = uint8 {LIMIT}>() codes = Min(x, limit)
  middle = Constant<value_ints = [1]>() alone = Unsqueeze(codes, middle)
  shifts = Constant<value: tensor = uint8[3, 1] {0, 1, 2}>()
  shifted = BitShift<direction: string = "RIGHT">(alone, shifts)
  one = Constant<value: tensor = uint8 {1}>() low = BitwiseAnd(shifted, one) planes = Cast<to: int = 9>(low)
  parts = Constant<value_ints = [4, 3, 2, 3]>() cut = Reshape(planes, parts)
  turned = Transpose<perm = [2, 0, 1, 3]>(cut) numbers = Cast<to: int = 1>(turned)
  weights = Constant<value: tensor = float[3, 1] {WEIGHTS}>() weighted = Mul(numbers, weights)
  axis = Constant<value_ints = [AXIS]>() y = ReduceSum<keepdims: int = 0>(weighted, axis)
}"""


@pytest.mark.parametrize(
    ("limit", "weights", "axis", "left"),
    [
        (7, "1, 2, 4", -2, ["Min", "Reshape", "Transpose", "Cast", "Identity"]),
        (7, "1, 2, 4", 2, ["Min", "Reshape", "Transpose", "Cast", "Identity"]),
        (5, "1, 2, 4", -2, ["Min", "Reshape", "Transpose", "Cast", "Identity"]),
        (200, "1, 2, 4", -2, ["Min", "Reshape", "BitwiseAnd", "Reshape", "Transpose", "Cast", "Identity"]),
        (7, "1, 2, 3", -2, None),
        (7, "4, 2, 1", -2, None),
        (7, "1, 2, 4", -1, None),
        (7, "1, 2, 4", 0, None),
    ],
)
def test_planes_become_codes_again(limit, weights, axis, left):
    """The bits of codes, moved and summed up, are codes that are moved; other sums stay."""
    text = PLANES.replace("LIMIT", str(limit)).replace("WEIGHTS", weights).replace("AXIS", str(axis))
    model = parsed(text)
    flat = flatten(model)
    x = np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8)
    np.testing.assert_array_equal(run(flat, x=x)[0], run(model, x=x)[0])
    if left is None:
        assert "ReduceSum" in ops(flat)
    else:
        assert ops(flat) == left


def test_functions_are_inlined_with_names_and_attributes():
    model = parsed(FUNCTION.replace("{2.0}", "float {2.0}").replace("{3.0}", "float {3.0}"))
    model.graph.node[0].metadata_props.add(key="layer", value="body.0")
    flat = flatten(model)
    assert not flat.functions
    assert [entry.domain for entry in flat.opset_import] == [""]
    assert {(node.name, node.op_type, tuple(node.output)) for node in flat.graph.node} == {
        ("call/m", "Mul", ("y",)), ("call/t", "Transpose", ("z",)), ("again/m", "Mul", ("w",)),
    }  # fmt: skip
    assert [p.value for p in flat.graph.node[0].metadata_props] == ["body.0"]
    for ours, theirs in zip(run(flat, x=X), run(model, x=X), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_large_values_are_computed_not_stored():
    body = "n = Constant<value_ints = [300, 300]>() z = ConstantOfShape(n) y = Add(x, z)"
    flat = flatten(parsed(f"g (float[300, 300] x) => (float[300, 300] y) {{ {body} }}"))
    assert ops(flat) == ["ConstantOfShape", "Add"]
    assert flat.ByteSize() < 2000


def test_a_shape_that_is_not_static_is_a_bug():
    model = parsed("g (float[2, 3] x, int64[2] s) => (float[?, ?] y) { y = Reshape(x, s) }")
    with pytest.raises(InvariantError, match="shape of y"):
        flatten(model)


def test_the_step_needs_standard_ops_and_no_default(exported):
    for path, first in ((exported.step.step, ["x", "y", "seed", "lr"]), (exported.step.prediction, ["x"])):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        inputs = [value.name for value in model.graph.input]
        assert not model.functions
        assert {node.domain for node in model.graph.node} == {""}
        assert not {"Shape", "Size", "Identity"} & set(ops(model)) or path == exported.step.step
        assert "Shape" not in ops(model)
        assert not set(inputs) & {tensor.name for tensor in model.graph.initializer}
        assert inputs[: len(first)] == first
        assert len(inputs) > len(first)
        typed = {info.name for info in (*model.graph.value_info, *model.graph.output)}
        assert {value for node in model.graph.node for value in node.output if value} <= typed
    step = onnx.load(exported.step.step)
    layers = {p.value for node in step.graph.node for p in node.metadata_props if p.key == "layer"}
    assert {"features.3", "features.10", "classifier"} <= layers
    assert any(node.name.startswith("features.10/backward/") for node in step.graph.node)


def test_the_flat_step_computes_the_same_bits(exported, digits):
    """Five steps and a prediction, all outputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    theirs, ours, prediction, constant = (
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for path in (exported.train, exported.step.step, exported.step.prediction, exported.infer)
    )
    manifest = Manifest.from_json(ours.get_modelmeta().custom_metadata_map["fqt.manifest"])
    state, metadata = load_checkpoint(exported.step.state, manifest)
    given = {"seed": np.array(int(metadata["seed"])), "lr": np.array(json.loads(metadata["lr"]), dtype=np.float32)}
    x = digits[0][:8].numpy()
    values = {"x": x, **{name: state[name] for name in manifest.predict_state}}
    np.testing.assert_array_equal(prediction.run(None, values)[0], constant.run(None, {"x": x})[0])
    outputs = [value.name for value in ours.get_outputs()]
    for step in range(5):
        batch = {"x": digits[0][8 * step :][:8].numpy(), "y": digits[1][8 * step :][:8].numpy()}
        wanted, got = theirs.run(outputs, {**batch, **state}), ours.run(outputs, {**batch, **given, **state})
        for name, a, b in zip(outputs, wanted, got, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{name} in step {step}")
        state = {n.removesuffix(NEXT): a for n, a in zip(outputs, got, strict=True) if n.endswith(NEXT)}
    assert state["step"] == 5


def test_no_file_tells_where_it_was_made(exported, digits_source):
    """Lines of the model are shown relative to its folder."""
    folder = str(digits_source.path.resolve().parent).encode()
    files = [exported.train, exported.infer, *dataclasses.astuple(exported.step), exported.artifact / "manifest.json"]
    for path in files:
        content = path.read_bytes()
        assert folder not in content, path
        assert b"/site-packages/" not in content, path
    assert b"digits_cnn.py:" in exported.step.step.read_bytes()
    assert b"digits_cnn.py:" in (exported.artifact / "manifest.json").read_bytes()


def test_the_state_is_a_checkpoint_of_the_artifact(exported):
    artifact = fqt_deploy.load(exported.artifact)
    before = {name: np.array(array) for name, array in artifact.tensors().items()}
    assert artifact.load_checkpoint(exported.step.state) == {}
    for name, array in artifact.tensors().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    assert artifact.seed == 7


@pytest.mark.thorough
def test_load_onnx_takes_the_step(exported, digits, tmp_path):
    """Steps, predictions and what is saved, as with the file that has the state inside."""
    ours = load_onnx(exported.step.step, infer=exported.step.prediction)
    theirs = load_onnx(exported.train, infer=exported.infer)
    batches = [(digits[0][8 * i :][:8].numpy(), digits[1][8 * i :][:8].numpy()) for i in range(3)]
    for x, y in batches[:2]:
        assert ours.step(x, y) == theirs.step(x, y)
        np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))
    ours.lr = 5e-4
    ours.save(tmp_path / "later.step.onnx")
    later = load_onnx(tmp_path / "later.step.onnx")
    assert (later.step_count, later.seed, later.lr) == (2, 7, 5e-4)
    assert later.step(*batches[2]) == ours.step(*batches[2])


def test_mistakes(exported, tmp_path):
    alone = tmp_path / "alone.step.onnx"
    alone.write_bytes(exported.step.step.read_bytes())
    with pytest.raises(FqtError, match=r"alone\.state\.safetensors") as caught:
        load_onnx(alone)
    assert caught.value.code == "FQT502"
    with pytest.raises(FqtError, match="plug-in") as caught:
        load_onnx(exported.step.step, plugin=tmp_path / "plugin.so")
    assert caught.value.code == "FQT501"


def test_names_of_the_files(tmp_path):
    for given in ("m.step.onnx", "m.onnx", "m"):
        files = step_files(tmp_path / given)
        assert [p.name for p in dataclasses.astuple(files)] == [given, "m.predict.onnx", "m.state.safetensors"]
