"""What other programs do with the flat step: the table in docs/onnx.md, each program in an environment of its own.

They are installed from PyPI: ``pytest -m slow tests/packaging/test_onnx_readers.py``.
"""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file

from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.export_onnx import export_onnx_step
from fqt_deploy.core.onnx_names import step_files
from fqt_deploy.core.options import CompileOptions
from tests.js.programs import CHROMIUM, node, require

pytestmark = pytest.mark.slow

HEAD = """
import sys
import numpy as np
model, given, found = sys.argv[1:]
arrays = np.load(given)
arrays = [arrays[f"arr_{i}"] for i in range(len(arrays.files))]
"""
RUN = {
    "openvino": """
import openvino
core = openvino.Core()
compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
results = compiled(arrays)
np.savez(found, *[results[output] for output in compiled.outputs])
""",
    "tract": """
import tract
runnable = tract.onnx().load(model).into_model().into_runnable()
np.savez(found, *[value.to_numpy() for value in runnable.run(arrays)])
""",
}
"""Programs that run a model: they write the outputs of one step."""
CONVERT = {
    "onnxslim": (  # its search for equal nodes fails where a pooling has indices and an equal one has none
        "import onnx, onnxslim\n"
        "kept = ['subexpression_elimination']\n"
        "onnx.save(onnxslim.slim(onnx.load(model), skip_optimizations=kept), found)"
    ),
    "onnxsim": "import onnx, onnxsim\nslim, ok = onnxsim.simplify(onnx.load(model))\nassert ok\nonnx.save(slim, found)",
    "onnx 20": (
        "import onnx\nfrom onnx import version_converter\n"
        "onnx.save(version_converter.convert_version(onnx.load(model), VERSION), found)"
    ).replace("VERSION", "20"),
}
CONVERT["onnx 25"] = CONVERT["onnx 20"].replace("20)", "25)")
"""Programs that write another model: smaller, simpler, or of another opset."""
VERSIONS = {
    "openvino": "2026.4.1",
    "tract": "0.23.9",
    "onnxslim": "0.1.98",
    "onnxsim": "0.8.1",
    "onnx": "1.23.2",
    "netron": "9.3.3",
}


@pytest.fixture(scope="module")
def files(digits_source, digits, tmp_path_factory):
    """Step and prediction; in.npz and predict.npz beside them hold their inputs, in order."""
    folder = tmp_path_factory.mktemp("readers")
    options = CompileOptions(seed=7)
    export_onnx_step(digits_source, options, lower_model(digits_source, options), folder / "digits.step.onnx")
    files = step_files(folder / "digits.step.onnx")
    state = load_file(files.state)
    given = {"x": digits[0][:8].numpy(), "y": digits[1][:8].numpy(), "seed": np.array(7), "lr": np.array([1e-3], "f4")}
    for path, name in ((files.step, "in.npz"), (files.prediction, "predict.npz")):
        np.savez(folder / name, *[{**state, **given}[value.name] for value in opened(path).get_inputs()])
    return files


def opened(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def arrays_of(path):
    with np.load(path) as stored:
        return [stored[f"arr_{i}"] for i in range(len(stored.files))]


def computed(path, given):
    """The outputs of a model in the installed ONNX Runtime, by name."""
    session = opened(path)
    names = [value.name for value in session.get_outputs()]
    feeds = dict(zip([value.name for value in session.get_inputs()], arrays_of(given), strict=True))
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.fixture
def program(tmp_path):
    """Runs a program of this file with its package, which is installed for it alone."""

    def run(name, code, model, given, found):
        package = name.partition(" ")[0]
        needed = [f"{package}=={VERSIONS[package]}", "numpy", "onnx==1.23.2"]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--target", str(tmp_path / "site"), *needed], check=True)
        return subprocess.run(
            [sys.executable, "-c", HEAD + code, str(model), str(given), str(found)],
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("name", CONVERT)
def test_converters_keep_the_step(files, tmp_path, program, name):
    """What they write is a step that computes the same: to the bit, but for onnxsim, which fuses."""
    given, found = files.step.with_name("in.npz"), tmp_path / "converted.onnx"
    done = program(name, CONVERT[name], files.step, given, found)
    assert done.returncode == 0, done.stderr[-2000:]
    expected, results = computed(files.step, given), computed(found, given)
    assert expected.keys() == results.keys()
    for key, value in expected.items():
        if name != "onnxsim":
            np.testing.assert_array_equal(results[key], value, err_msg=key)
        elif key in ("loss", "logits"):
            np.testing.assert_allclose(results[key], value, rtol=1e-4, atol=1e-5)
        elif key.startswith("adam_m/"):  # the gradients, with a few codes that a tie in rounding decides
            assert np.linalg.norm(results[key] - value) < 0.5 * np.linalg.norm(value), key


@pytest.mark.parametrize("name", RUN)
def test_others_predict(files, tmp_path, program, name):
    given = files.step.with_name("predict.npz")
    done = program(name, RUN[name], files.prediction, given, tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr[-2000:]
    (logits,) = computed(files.prediction, given).values()
    np.testing.assert_allclose(arrays_of(tmp_path / "out.npz")[0], logits, rtol=1e-4, atol=1e-5)


def test_openvino_takes_other_random_numbers(files, tmp_path, program):
    """The first loss is right, what backward draws is not: uint32 is computed as int32, which saturates."""
    given = files.step.with_name("in.npz")
    done = program("openvino", RUN["openvino"], files.step, given, tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr[-2000:]
    expected, results = computed(files.step, given), arrays_of(tmp_path / "out.npz")
    found = dict(zip(expected, results, strict=True))
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-3, atol=1e-4)
    gradient = "adam_m/features.0.weight::next"
    assert not np.allclose(found[gradient], expected[gradient], rtol=0.1), "the behaviour changed"


def test_tract_has_no_top_k_of_integers(files, tmp_path, program):
    done = program("tract", RUN["tract"], files.step, files.step.with_name("in.npz"), tmp_path / "out.npz")
    assert done.returncode != 0
    assert "TDim is not a number" in done.stderr, "the behaviour changed"


def test_netron_shows_layers(files, tmp_path):
    """Its page shows a node for each of the prediction, named after its layer, and its inputs."""
    require(["puppeteer-core"], browser=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(tmp_path), f"netron=={VERSIONS['netron']}"], check=True)
    code = (
        "import netron, sys\n"
        "host, port = netron.start(sys.argv[1], address=('127.0.0.1', 0), browse=False)\n"
        "print('port', port, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(files.prediction)], env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as serving:  # fmt: skip
        try:
            said = next(line for line in serving.stdout if line.startswith("port "))
            url = f"http://127.0.0.1:{int(said.split()[1])}/"
            shown = json.loads(node(["puppeteer-core"], "test/netron.mjs", CHROMIUM, url, browser=True))
        finally:
            serving.kill()
    names = [name for name, _ in shown]
    assert "input-name-x" in names
    nodes = {f"node-name-{each.name}" for each in onnx.load(files.prediction).graph.node}
    assert nodes <= set(names)
    assert any("features.3/forward" in name for name in names)
