"""The JavaScript package in Node, beside Python: the same losses, and checkpoints that go back and forth.

``npm install`` in ``js/`` brings what these tests need; they skip, and name the package, where it is missing.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import fqt_deploy
from fqt_deploy.compiler import compile_model, export_onnx_step, lower_model
from fqt_deploy.core.onnx_names import step_files
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.onnx_session import load_onnx

PACKAGE = Path(__file__).parents[2] / "js"
STEPS = 30


def node(package, *arguments, **variables):
    """What a program prints in Node, with ``package`` installed."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is missing")
    if not (PACKAGE / "node_modules" / package).is_dir():
        pytest.skip(f"{package} is missing: npm install in js/")
    environment = {**os.environ, **variables}
    command = [program, *map(str, arguments)]
    result = subprocess.run(
        command, cwd=PACKAGE, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(digits_source, digits, tmp_path_factory):
    """The step for JavaScript, its artifact, the batches, and a checkpoint that Python saved."""
    path = tmp_path_factory.mktemp("javascript")
    options = CompileOptions(seed=7)
    lowered = lower_model(digits_source, options)
    export_onnx_step(digits_source, options, lowered, path / "digits.step.onnx")
    compile_model(digits_source, options, path / "digits.fqt", lowered=lowered)
    images, labels = digits
    (path / "x.bin").write_bytes(images[: 8 * STEPS].numpy().astype("<f4").tobytes())
    (path / "y.bin").write_bytes(labels[: 8 * STEPS].numpy().astype("<i8").tobytes())
    session = fqt_deploy.load(path / "digits.fqt")
    session.step(images[:8].numpy(), labels[:8].numpy())
    session.lr, session.seed = 2e-3, -3
    session.save_checkpoint(path / "python.safetensors", {"epoch": "2"})
    return path


@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
def test_trains_as_python_does(folder, digits, package):
    """Thirty steps: the first loss to 1e-6, then the drift of last digits; what is learnt goes on in the artifact."""
    found = json.loads(node(package, "test/train.mjs", package, folder))
    files = step_files(folder / "digits.step.onnx")
    session = load_onnx(files.step, infer=files.prediction)
    x, y = digits[0].numpy(), digits[1].numpy()
    losses = [session.step(x[8 * i :][:8], y[8 * i :][:8]) for i in range(STEPS)]
    assert found["losses"][0] == pytest.approx(losses[0], abs=1e-6)
    assert np.mean(found["losses"][-10:]) == pytest.approx(np.mean(losses[-10:]), rel=0.1)
    assert np.mean(found["losses"][-10:]) < np.mean(found["losses"][:10])
    assert found["stepCount"] == STEPS

    artifact = fqt_deploy.load(folder / "digits.fqt")
    assert artifact.load_checkpoint(folder / "javascript.safetensors") == {"epoch": "1"}
    assert (artifact.step_count, artifact.lr, artifact.seed) == (STEPS, 5e-4, 11)
    logits = np.array(found["logits"]).reshape(-1, 10)
    np.testing.assert_allclose(artifact.predict(x[:11]), logits, rtol=1e-3, atol=1e-4)

    resumed = found["resumed"]
    assert artifact.load_checkpoint(folder / "python.safetensors") == resumed["metadata"] == {"epoch": "2"}
    assert (resumed["step"], resumed["lr"], resumed["seed"]) == (1, 2e-3, "-3")
    assert artifact.step(x[:8], y[:8]) == pytest.approx(resumed["loss"], rel=1e-5)


def test_the_package_itself(folder):
    """The tests in JavaScript."""
    shown = node("onnxruntime-node", "--test", "test/fqt_train.test.mjs", FQT_STEP=str(folder / "digits.step.onnx"))
    assert "fail 0" in shown


def test_types():
    """What a TypeScript program may write, and what it may not."""
    node("typescript", "node_modules/typescript/bin/tsc", "-p", "test/types")
