"""The JavaScript package in Node and in Chromium, beside Python: the same losses, and checkpoints back and forth.

``npm install`` in ``js/`` brings what these tests need, and ``apt install chromium`` the browser; they skip, and name
what is missing.
"""

import re
import shutil
import subprocess

import numpy as np
import pytest
from click.testing import CliRunner

import fqt_deploy
from fqt_deploy.cli_train import main as train_command
from fqt_deploy.compiler.compile_model import compile_model, lower_model
from fqt_deploy.compiler.export_onnx import export_onnx_step
from fqt_deploy.core.onnx_names import step_files
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.onnx_session import load_onnx
from fqt_deploy.settings import options_of
from tests.js.programs import RUNTIMES, node, trained
from tests.packaging.conftest import compile_example, write_rows
from tools.examples import load_example
from tools.train_digits import load_digits
from tools.training import accuracy

STEPS = 30


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


@pytest.mark.quick(only=("onnxruntime-node",))
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_trains_as_python_does(folder, digits, runtime):
    """Thirty steps: the first loss to 1e-6, then the drift of last digits; what is learnt goes on in the artifact."""
    found = trained(runtime, folder)
    first = fqt_deploy.load(folder / "digits.fqt")
    first.load_checkpoint(folder / f"{runtime}.first.safetensors")
    files = step_files(folder / "digits.step.onnx")
    session = load_onnx(files.step, infer=files.prediction)
    x, y = digits[0].numpy(), digits[1].numpy()
    losses = [session.step(x[:8], y[:8])]
    for name, array in session.tensors().items():
        if name.startswith("adam_m/"):  # the gradients; of weights, Adam's first step shows no more than their signs
            error = np.linalg.norm(first.tensors()[name] - array) / np.linalg.norm(array)
            assert error < 0.5, f"{name}: {error}"  # ties in rounding decide a few codes; other random numbers give 1
    losses += [session.step(x[8 * i :][:8], y[8 * i :][:8]) for i in range(1, STEPS)]
    assert found["losses"][0] == pytest.approx(losses[0], abs=1e-6)
    assert np.mean(found["losses"][-10:]) == pytest.approx(np.mean(losses[-10:]), rel=0.1)
    assert np.mean(found["losses"][-10:]) < np.mean(found["losses"][:10])
    assert found["stepCount"] == STEPS

    artifact = fqt_deploy.load(folder / "digits.fqt")
    assert artifact.load_checkpoint(folder / f"{runtime}.safetensors") == {"epoch": "1"}
    assert (artifact.step_count, artifact.lr, artifact.seed) == (STEPS, 5e-4, 11)
    logits = np.array(found["logits"]).reshape(-1, 10)
    np.testing.assert_allclose(artifact.predict(x[:11]), logits, rtol=1e-3, atol=1e-4)

    resumed = found["resumed"]
    assert artifact.load_checkpoint(folder / "python.safetensors") == resumed["metadata"] == {"epoch": "2"}
    assert (resumed["step"], resumed["lr"], resumed["seed"]) == (1, 2e-3, "-3")
    assert artifact.step(x[:8], y[:8]) == pytest.approx(resumed["loss"], rel=1e-5)
    assert found["own"] == {"metadata": {"epoch": "1"}, "step": STEPS, "seed": "11"}
    if runtime == "chromium":
        worker = found["worker"]
        assert worker["told"] == [i + 1 for i in range(worker["steps"])]
        assert worker["cancelled"]
        assert 2 <= worker["steps"] < 10  # of 30 000: what was begun before the message came is finished
        assert (worker["refused"], worker["released"]) == ("FqtError FQT505", "FQT512")


@pytest.mark.thorough
def test_a_checkpoint_of_the_browser_goes_on_everywhere(folder, digits, c_api, tmp_path):
    """In C with the bits of Python, from there back in JavaScript, and with ``fqt-train --resume``."""
    trained("chromium", folder)
    x, y = digits[0][:16].numpy(), digits[1][:16].numpy()
    session = fqt_deploy.load(folder / "digits.fqt")
    session.load_checkpoint(folder / "chromium.safetensors")
    expected = [session.step(x[i : i + 8], y[i : i + 8]) for i in (0, 8)]

    program = compile_example("gcc", c_api, tmp_path / "train")
    write_rows(tmp_path / "data.raw", x, y)
    in_c = tmp_path / "in_c.safetensors"
    shutil.copy(folder / "chromium.safetensors", in_c)
    command = [program, folder / "digits.fqt", tmp_path / "data.raw", "1", in_c]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [np.float32(text) for text in re.findall(r"^step \d+ loss (\S+)$", shown, re.MULTILINE)] == expected

    back = tmp_path / "back"
    shutil.copytree(folder, back, ignore=shutil.ignore_patterns("*.fqt"))
    shutil.copy(in_c, back / "python.safetensors")
    resumed = trained("onnxruntime-node", back)["resumed"]
    assert (resumed["step"], resumed["lr"], resumed["seed"]) == (STEPS + 2, 5e-4, "11")
    assert resumed["loss"] == pytest.approx(session.step(x[:8], y[:8]), rel=1e-5)

    kept = tmp_path / "kept.safetensors"
    shutil.copy(folder / "chromium.safetensors", kept)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    options = ["--data", tmp_path / "data.npz", "--checkpoint", kept, "--resume", "--epochs", 20]
    result = CliRunner().invoke(train_command, [str(part) for part in (folder / "digits.fqt", *options)])
    assert result.exit_code == 0, result.output
    goes_on = fqt_deploy.load(folder / "digits.fqt")
    goes_on.load_checkpoint(kept)
    assert goes_on.step_count == 20 * 2  # the epochs before it count: 30 steps were 15 of these


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_learns_as_much_as_python(runtime, tmp_path):
    """Five epochs of digits, on average over seeds: single runs drift apart, by up to two points at the end."""
    source, data, seeds, epochs = load_example("digits", 16), load_digits(), 8, 5
    options = options_of(source.options)
    export_onnx_step(source, options, lower_model(source, options), tmp_path / "digits.step.onnx")
    arrays = {"x": data.train_x, "y": data.train_y, "testX": data.test_x, "testY": data.test_y}
    for name, array in arrays.items():
        (tmp_path / f"{name}.bin").write_bytes(array.astype("<f4" if name.endswith(("x", "X")) else "<i8").tobytes())
    found = trained(runtime, tmp_path, seeds, epochs)["accuracies"]
    files = step_files(tmp_path / "digits.step.onnx")
    expected = []
    for seed in range(seeds):
        session = load_onnx(files.step, infer=files.prediction)
        session.seed = seed
        for _ in range(epochs):
            for first in range(0, len(data.train_x) - 15, 16):
                session.step(data.train_x[first : first + 16], data.train_y[first : first + 16])
        expected.append(accuracy(session, data.test_x, data.test_y))
    print(f"{runtime}: {found}; Python: {expected}")
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.01)
    assert min(found) > 0.9


@pytest.mark.thorough
def test_the_package_itself(folder):
    """The tests in JavaScript."""
    shown = node(["onnxruntime-node"], "--test", "test/fqt_train.test.mjs", FQT_STEP=str(folder / "digits.step.onnx"))
    assert "fail 0" in shown


def test_what_the_arrays_of_a_batch_may_hold():
    """Ranges of labels and of columns, in JavaScript."""
    assert "fail 0" in node([], "--test", "test/batch.test.mjs")


@pytest.mark.thorough
def test_types():
    """What a TypeScript program may write, and what it may not."""
    node(["typescript"], "node_modules/typescript/bin/tsc", "-p", "test/types")
