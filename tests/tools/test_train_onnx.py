"""``tools.train_onnx``: stock ONNX Runtime trains an exported file on data from an .npz."""

import re

import numpy as np

from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.export_onnx import export_onnx
from fqt_deploy.core.options import CompileOptions
from tools import train_onnx


def test_trains_from_npz_and_times_steps(loop_source, digits, tmp_path, monkeypatch, capsys):
    options = CompileOptions(recipe="none")
    export_onnx(loop_source, options, lower_model(loop_source, options), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=digits[0][:320].numpy(), y=digits[1][:320].numpy())
    arguments = [str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "--steps", "80", "--lr", "2e-3"]
    monkeypatch.setattr("sys.argv", ["train_onnx", *arguments, "--every", "1"])
    assert train_onnx.main() == 0
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 80
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert re.search(r"MB, loaded in [\d.]+ s, median step [\d.]+ ms", printed)
