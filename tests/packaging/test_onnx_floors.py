"""The oldest onnx and onnxruntime that pyproject.toml allows, and some between, in virtual environments of their own.

They are filled from PyPI: ``pytest -m slow tests/packaging/test_onnx_floors.py``.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.export_onnx import export_onnx, export_onnx_inference, export_onnx_step
from fqt_deploy.core.onnx_names import step_files
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.onnx_session import load_onnx

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
BASE = ("numpy>=2.0", "safetensors>=0.5", "click>=8.1", "apache-tvm-ffi>=0.1.14,<0.2")
PAIRS = [("1.21.0", "1.20.0"), ("1.23.2", "1.20.1"), ("1.25.1", "1.22.0")]
"""Versions of onnxruntime and onnx; the first pair are the floors."""
STEPS = 20

TRAIN = f"""
import hashlib, json, sys
import numpy as np
from fqt_deploy.onnx_session import load_onnx

data = np.load(sys.argv[3])
session = load_onnx(sys.argv[1], infer=sys.argv[2])
losses = [session.step(data["x"], data["y"]) for _ in range({STEPS})]
state = hashlib.sha256(b"".join(array.tobytes() for array in session.tensors().values())).hexdigest()
print(json.dumps([losses, state, session.predict(data["x"]).tolist()]))
"""


def run(*command, **variables):
    environment = {**os.environ, "FQT_NUM_THREADS": "1", **variables}
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def files(digits_source, digits, tmp_path_factory):
    """Training file, prediction, and the same for every client; a batch in data.npz."""
    folder = tmp_path_factory.mktemp("floors")
    options = CompileOptions(seed=7)
    lowered = lower_model(digits_source, options)
    export_onnx(digits_source, options, lowered, folder / "digits.onnx")
    export_onnx_inference(digits_source, options, lowered, folder / "digits.infer.onnx")
    export_onnx_step(digits_source, options, lowered, folder / "digits.step.onnx")
    np.savez(folder / "data.npz", x=digits[0][:8].numpy(), y=digits[1][:8].numpy())
    return folder


def test_the_first_pair_are_the_floors():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["compiler"]
    floors = {name: re.search(rf"^{name}>=([\d.]+)$", "\n".join(extra), re.M)[1] for name in ("onnxruntime", "onnx")}
    assert [f"{floors[name]}.0" for name in ("onnxruntime", "onnx")] == list(PAIRS[0])


@pytest.mark.parametrize(("runtime", "onnx"), PAIRS)
def test_trains_to_the_same_state(files, tmp_path, monkeypatch, runtime, onnx):
    """Twenty steps and a prediction, bit for bit those of the installed version."""
    monkeypatch.setenv("FQT_NUM_THREADS", "1")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(*PIP, "--python", python, "install", "--only-binary=:all:", *BASE, f"onnxruntime=={runtime}", f"onnx=={onnx}")
    data = np.load(files / "data.npz")
    step = step_files(files / "digits.step.onnx")
    for train, infer in ((files / "digits.onnx", files / "digits.infer.onnx"), (step.step, step.prediction)):
        shown = run(python, "-c", TRAIN, train, infer, files / "data.npz", PYTHONPATH=str(ROOT))
        losses, state, logits = json.loads(shown)
        session = load_onnx(train, infer=infer)
        assert [session.step(data["x"], data["y"]) for _ in range(STEPS)] == losses
        assert hashlib.sha256(b"".join(a.tobytes() for a in session.tensors().values())).hexdigest() == state
        np.testing.assert_array_equal(session.predict(data["x"]), np.array(logits, dtype=np.float32))


def test_the_oldest_onnx_exports(files, tmp_path):
    """The compiler with the oldest onnx writes a flat step of the same bytes."""
    run(*PIP, "install", "--no-deps", "--only-binary=:all:", "--target", tmp_path / "onnx", f"onnx=={PAIRS[0][1]}")
    code = "import sys; from fqt_deploy.cli import main; sys.exit(main())"
    command = (sys.executable, "-c", code, ROOT / "examples" / "digits_cnn.py", "--batch", 8, "--seed", 7, "--quiet")
    for kind, path in (("onnx", tmp_path / "digits.onnx"), ("onnx-step", tmp_path / "digits.step.onnx")):
        run(*command, "--emit", kind, "-o", path, PYTHONPATH=f"{tmp_path / 'onnx'}{os.pathsep}{ROOT}")
        assert path.read_bytes() == (files / path.name).read_bytes(), kind
