"""``tools.bench_onnx``: one line a contender, and numbers in JSON."""

import json

from fqt_deploy.compiler import export_onnx, lower_model
from fqt_deploy.core.options import CompileOptions
from tools import bench_onnx


def test_times_what_lies_beside_the_stem(digits_source, tmp_path, monkeypatch, capsys):
    options = CompileOptions(recipe="none")
    export_onnx(digits_source, options, lower_model(digits_source, options), tmp_path / "m.onnx")
    monkeypatch.setattr("sys.argv", ["bench_onnx", str(tmp_path / "m"), "--steps", "2"])
    assert bench_onnx.main() == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["stock"]
    found = json.loads(last)
    assert found["batch"] == 8
    assert 0 < found["stock_fastest_ms"] <= found["stock_ms"]
