"""The custom-op library: the same file, the same codes, other kernels."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

import fqt_deploy
from fqt_deploy.cli import main as compile_command
from fqt_deploy.compiler import export_plugin
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.onnx_session import load_onnx
from fqt_deploy.ops.lib.onnx_body import KERNELS
from fqt_deploy.targets.registry import make_target

built = pytest.mark.skipif(
    not export_plugin.PLUGIN.is_file(), reason="make onnx-plugin was not run; it needs Debian's libonnxruntime-dev"
)


@pytest.fixture(scope="module")
def plugin(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugin") / "digits.plugin"
    options = CompileOptions()
    export_plugin.export_plugin(exported.lowered, make_target(options.target), folder)
    return folder / "plugin.so"


@built
def test_every_kernel_agrees_with_its_reference(exported, digits, plugin, values_of, check_every_kernel):
    feeds = {"x": digits[0][:8].numpy(), "y": digits[1][:8].numpy()}
    check_every_kernel(exported.lowered.train, values_of(onnx.load(exported.train), feeds, plugin))


@built
@pytest.mark.parametrize("name", ["train", "infer"])
def test_nothing_is_left_to_onnx_runtime(exported, plugin, tmp_path, name):
    """What a session runs with the plug-in: its kernels, and the check of the file."""
    path = getattr(exported, name)
    settings = onnxruntime.SessionOptions()
    settings.register_custom_ops_library(str(plugin))
    settings.optimized_model_filepath = str(tmp_path / "run.onnx")
    onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    run = onnx.load(tmp_path / "run.onnx").graph.node
    assert sorted(node.op_type for node in run) == sorted(node.op_type for node in onnx.load(path).graph.node)
    assert {node.domain for node in run} == {KERNELS}


@built
def test_kernels_are_those_of_the_artifact(exported, digits, plugin):
    """The same code on the same values: losses and state are equal to the last bit."""
    ours, theirs = load_onnx(exported.train, plugin=plugin), fqt_deploy.load(exported.artifact)
    for step in range(3):
        x, y = (t[8 * step : 8 * step + 8].numpy() for t in digits)
        assert ours.step(x, y) == theirs.step(x, y)
    for name, array in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name], array, err_msg=name)


@built
def test_misaligned_inputs_are_copied(exported, digits, plugin, values_of):
    """Kernels load whole registers; what a caller binds may lie anywhere."""
    x, y = digits[0][:8].numpy(), digits[1][:8].numpy()
    buffer = np.zeros(x.size + 16, dtype=np.float32)
    start = next(i for i in range(16) if buffer[i:].ctypes.data % 64 == 4)
    moved = buffer[start : start + x.size].reshape(x.shape)
    moved[...] = x
    model = onnx.load(exported.train)
    results = [values_of(model, {"x": given, "y": y}, plugin)["loss"] for given in (x, moved)]
    assert results[0] == results[1]


@built
def test_trains_and_predicts_as_without_it(exported, digits, plugin):
    sessions = [load_onnx(exported.train, infer=exported.infer, plugin=p) for p in (None, plugin)]
    for step in range(1, 6):
        x, y = (t[8 * step : 8 * step + 8].numpy() for t in digits)
        np.testing.assert_allclose(*[session.predict(x) for session in sessions], rtol=1e-4, atol=1e-5)
        losses = [session.step(x, y) for session in sessions]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        for name, array in sessions[0]._state.items():
            sessions[1]._state[name][...] = array


@built
def test_a_foreign_plugin_is_refused(exported, plugin, digits_source, tmp_path):
    """One that lacks a kernel is an error when the session is made, not a slow or wrong step."""
    options = CompileOptions(activation_bits=1)
    lowered = lower_model(digits_source, options)
    other = tmp_path / "other.plugin"
    export_plugin.export_plugin(lowered, make_target(options.target), other)
    for path in (exported.train, exported.infer):
        with pytest.raises(FqtError, match="made for another model") as caught:
            load_onnx(exported.train, infer=path, plugin=other / "plugin.so")
        assert caught.value.code == "FQT502"
    with pytest.raises(FqtError) as caught:
        load_onnx(exported.train, plugin=tmp_path / "absent.so")
    assert caught.value.code == "FQT502"


@built
def test_a_changed_file_is_refused(exported, plugin):
    """Kernels are compiled for one shape: a call on another is an error, not a read behind its operand."""
    model = onnx.load(exported.train)
    node = next(node for node in model.graph.node if node.op_type.startswith("channel_moments"))
    shape = next(info for info in model.graph.value_info if info.name == node.input[0]).type.tensor_type.shape
    smaller = onnx.helper.make_tensor_value_info(
        "smaller", onnx.TensorProto.FLOAT, [d.dim_value for d in shape.dim[1:]]
    )
    model.graph.input.append(smaller)
    node.input[0] = "smaller"
    settings = onnxruntime.SessionOptions()
    settings.register_custom_ops_library(str(plugin))
    with pytest.raises(Exception, match="input 0 is not float32"):
        onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


@built
def test_other_folders_are_never_overwritten(exported, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    options = CompileOptions()
    with pytest.raises(FqtError, match="not a plug-in") as caught:
        export_plugin.export_plugin(exported.lowered, make_target(options.target), tmp_path / "mine")
    assert caught.value.code == "FQT508"
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_plugin_that_is_not_built_is_said_first(tmp_path, monkeypatch):
    monkeypatch.setattr(export_plugin, "PLUGIN", tmp_path / "absent.so")
    result = CliRunner().invoke(compile_command, ["absent.py", "--emit", "onnx-plugin", "-o", str(tmp_path / "p")])
    assert result.exit_code == 1
    assert "error[FQT509]" in result.output
    assert "make onnx-plugin" in result.output
