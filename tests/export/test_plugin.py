"""The custom-op library: the same file, the same codes, other kernels."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from fqt_deploy.cli import main as compile_command
from fqt_deploy.compiler import export_plugin
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.onnx_session import load_onnx
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
def test_every_node_agrees_with_its_reference(exported, digits, plugin, values_of, check_every_node):
    feeds = {"x": digits[0][:8].numpy(), "y": digits[1][:8].numpy()}
    check_every_node(exported.lowered.train, values_of(onnx.load(exported.train), feeds, plugin))


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
def test_a_foreign_plugin_is_refused(exported, plugin, tmp_path):
    """A kernel that is missing is an error when the session is made, not a slow or wrong step."""
    other = tmp_path / "other.plugin"
    shutil.copytree(plugin.parent, other)
    lines = (other / "kernels.txt").read_text().splitlines(keepends=True)
    (other / "kernels.txt").write_text(
        "".join(line for line in lines if " binary_conv2d " not in line or "8,8,8" not in line)
    )
    assert (other / "kernels.txt").read_text() != "".join(lines)
    with pytest.raises(FqtError, match="made for another model"):
        load_onnx(exported.train, plugin=other / "plugin.so")
    with pytest.raises(FqtError) as caught:
        load_onnx(exported.train, plugin=tmp_path / "absent.so")
    assert caught.value.code == "FQT502"


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
