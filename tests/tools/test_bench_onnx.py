"""``tools.bench_onnx``: one line a contender, and numbers in JSON."""

import json

from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.export_onnx import export_onnx, export_onnx_step
from fqt_deploy.core.options import CompileOptions
from tools import bench_onnx


def test_times_what_lies_beside_the_stem(loop_source, tmp_path, monkeypatch, capsys):
    options = CompileOptions(recipe="none")
    lowered = lower_model(loop_source, options)
    export_onnx(loop_source, options, lowered, tmp_path / "m.onnx")
    export_onnx_step(loop_source, options, lowered, tmp_path / "m.step.onnx")
    monkeypatch.setattr("sys.argv", ["bench_onnx", str(tmp_path / "m"), "--steps", "2"])
    assert bench_onnx.main() == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["stock", "flat"]
    losses = {line.rpartition("loss ")[2] for line in lines}
    assert len(losses) == 1, losses
    found = json.loads(last)
    assert found["batch"] == 8
    for name in ("stock", "flat"):
        assert 0 < found[f"{name}_fastest_ms"] <= found[f"{name}_ms"]
