"""``tools.compare_onnx`` and ``tools.bench_browser``: a line for each file or turn, and numbers in JSON."""

import json

import pytest

from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.export_onnx import export_onnx, export_onnx_step
from fqt_deploy.core.options import CompileOptions
from tests.js.programs import RUNTIMES, require
from tools import bench_browser, compare_onnx


@pytest.fixture(scope="module")
def stem(loop_source, tmp_path_factory):
    """The path of m.onnx and m.step.onnx, without their endings."""
    folder, options = tmp_path_factory.mktemp("files"), CompileOptions()
    lowered = lower_model(loop_source, options)
    export_onnx(loop_source, options, lowered, folder / "m.onnx")
    export_onnx_step(loop_source, options, lowered, folder / "m.step.onnx")
    return folder / "m"


def test_files_take_turns(stem, monkeypatch, capsys):
    files = [f"{stem}.onnx", f"{stem}.step.onnx"]
    monkeypatch.setattr("sys.argv", ["compare_onnx", *files, "--steps", "2"])
    assert compare_onnx.main() == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == files
    assert len({line.rpartition("loss ")[2] for line in lines}) == 1, lines
    found = json.loads(last)
    assert found["batch"] == 8
    assert found["files"][0]["ratio"] == 1
    assert found["files"][1]["ratio"] > 0


@pytest.mark.thorough
def test_browser_and_native_take_turns(stem, monkeypatch, capsys):
    require(RUNTIMES["chromium"], browser=True)
    monkeypatch.setattr("sys.argv", ["bench_browser", str(stem), "--steps", "2", "--turns", "1", "--threads", "2"])
    assert bench_browser.main() == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["native", "browser"]
    found = json.loads(last)
    assert found["first_loss_apart"] < 1e-6
    assert found["step_ratio"] > 0
    assert found["browser_load_s"] > 0
