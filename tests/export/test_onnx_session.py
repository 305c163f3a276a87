"""Training in ONNX Runtime beside the compiled step, and checkpoints that either can resume."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

import fqt_deploy
from fqt_deploy.compiler.compile_model import compile_model, lower_model
from fqt_deploy.compiler.export_onnx import export_onnx, export_onnx_inference
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.core.onnx_names import NEXT
from fqt_deploy.onnx_session import load_onnx
from fqt_deploy.runtime.checkpoint import load_checkpoint
from fqt_deploy.settings import options_of

STEPS = 50


def batch(digits, step, size=8):
    images, labels = digits
    at = slice(step * size, (step + 1) * size)
    return images[at].numpy(), labels[at].numpy()


def state_of(session):
    """The arrays that the session changes in place."""
    return session._state


def difference(ours, theirs):
    """Largest relative difference of a parameter or running statistic."""
    pairs = [(a.astype(np.float64), state_of(theirs)[n]) for n, a in state_of(ours).items() if not n.startswith("adam")]
    return max(float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-6)) for a, b in pairs)


@pytest.mark.thorough
def test_fifty_steps_beside_the_compiled_step(exported, digits):
    """From equal state, each step has the same loss, and the same next state up to rounding.

    Last digits of float sums differ, and now and then one of them flips a level, which moves the loss by a little, or a
    code, which moves a few gradients. So the state is handed over before each step. The first step is left out: while
    the biases of batch normalization are 0, a value equal to its channel's mean is a tie.
    """
    ours, theirs = fqt_deploy.load(exported.artifact), load_onnx(exported.train)
    ours.step(*batch(digits, 0))
    differences, losses = [], []
    for step in range(1, STEPS + 1):
        for name, array in state_of(ours).items():
            state_of(theirs)[name][...] = array
        x, y = batch(digits, step)
        losses.append(abs(theirs.step(x, y) / ours.step(x, y) - 1))
        if losses[-1] < 1e-6:
            np.testing.assert_allclose(theirs.last_logits, ours.last_logits, rtol=1e-4, atol=1e-5)
        differences.append(difference(ours, theirs))
    assert max(losses) < 1e-3
    assert np.mean(np.array(losses) < 1e-6) > 0.8
    assert max(differences) < 2e-2, "Adam moves a parameter by its rate, however small the gradient"
    assert np.mean(np.array(differences) < 1e-5) > 0.8


@pytest.mark.thorough
def test_both_learn_alike(exported, digits):
    """Without a hand-over the two runs drift apart in digits, not in what they learn."""
    sessions = fqt_deploy.load(exported.artifact), load_onnx(exported.train)
    losses = np.array([[session.step(*batch(digits, step)) for step in range(STEPS)] for session in sessions])
    assert losses[1, 0] == pytest.approx(losses[0, 0], rel=1e-5)
    first, last = losses[:, :10].mean(axis=1), losses[:, -10:].mean(axis=1)
    assert last[1] == pytest.approx(last[0], rel=0.1)
    assert (last < first).all()


def test_plain_onnx_runtime_needs_x_and_y_alone(exported, digits, capfd):
    """No code of ours: defaults first, then each output feeds the input of its name. ONNX Runtime has no warning."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(exported.train, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    x, y = batch(digits, 0)
    state, losses = {}, []
    for _ in range(5):
        results = dict(zip(outputs, session.run(outputs, {"x": x, "y": y, **state}), strict=True))
        losses.append(float(results["loss"]))
        state = {name.removesuffix(NEXT): value for name, value in results.items() if name.endswith(NEXT)}
    assert state["step"] == 5
    assert capfd.readouterr().err == ""
    assert losses[-1] < losses[0]


def initial_feeds(files):
    """The initial state of a flat step, which needs all of it as inputs."""
    manifest = Manifest.from_json(onnx_metadata(files.step)["fqt.manifest"])
    state, metadata = load_checkpoint(files.state, manifest)
    return {**state, "seed": np.array(int(metadata["seed"])), "lr": np.array(json.loads(metadata["lr"]), np.float32)}


def onnx_metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.quick(per="form")
@pytest.mark.parametrize("label", [10, -1, -99, 2**40])
@pytest.mark.parametrize("form", ["train", "step"])
def test_plain_onnx_runtime_refuses_a_label_that_is_none(exported, digits, form, label):
    """Nobody checks what is given, but no step is finite for it, and no memory beside a tensor is read."""
    path = exported.train if form == "train" else exported.step.step
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x, y = batch(digits, 0)
    feeds = {"x": x, "y": y, **(initial_feeds(exported.step) if form == "step" else {})}
    assert np.isfinite(session.run(["loss"], feeds)[0])
    wrong = y.copy()
    wrong[3] = label
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match=r"data bounds|out of range"):
        session.run(["loss"], feeds | {"y": wrong})


def test_a_label_that_is_none_is_refused_by_the_session(exported, digits):
    session = load_onnx(exported.train)
    x, y = batch(digits, 0)
    for label in (10, -1, -99, 2**40):
        with pytest.raises(FqtError, match="FQT507"):
            session.step(x, np.where(np.arange(8) == 3, label, y))
    assert session.step_count == 0


def test_checkpoints_go_both_ways(exported, digits, tmp_path):
    """Each runtime resumes what the other saved: all state bit for bit, step, seed and learning rate."""
    makers = (lambda: fqt_deploy.load(exported.artifact)), (lambda: load_onnx(exported.train))
    for saves, resumes in (makers, makers[::-1]):
        first, second = saves(), resumes()
        for step in range(3):
            first.step(*batch(digits, step))
        first.lr, first.seed = 2e-3, 11
        first.save_checkpoint(tmp_path / "c.safetensors", {"epoch": "1"})
        assert second.load_checkpoint(tmp_path / "c.safetensors") == {"epoch": "1"}
        assert (second.step_count, second.seed, second.lr) == (3, 11, 2e-3)
        for name, array in state_of(first).items():
            np.testing.assert_array_equal(state_of(second)[name], array, err_msg=name)
        x, y = batch(digits, 3)
        assert second.step(x, y) == pytest.approx(first.step(x, y), rel=1e-5)


@pytest.mark.thorough
def test_saved_file_goes_on(exported, digits, tmp_path):
    """``save`` writes an ONNX file whose initial values are those of now."""
    session = load_onnx(exported.train)
    session.step(*batch(digits, 0))
    session.lr = 5e-4
    session.save(tmp_path / "later.onnx")
    onnx.checker.check_model(tmp_path / "later.onnx", full_check=True)
    later = load_onnx(tmp_path / "later.onnx")
    assert (later.step_count, later.lr) == (1, pytest.approx(5e-4))
    assert later.step(*batch(digits, 1)) == session.step(*batch(digits, 1))


def test_prediction_follows_the_state(exported, digits):
    session = load_onnx(exported.train, infer=exported.infer)
    compiled = fqt_deploy.load(exported.artifact)
    x, y = batch(digits, 0)
    before = session.predict(x)
    np.testing.assert_allclose(before, compiled.predict(x), rtol=1e-4, atol=1e-5)
    session.step(x, y)
    compiled.load_state_dict(session.state_dict())
    np.testing.assert_allclose(session.predict(x), compiled.predict(x), rtol=1e-4, atol=1e-5)
    assert not np.array_equal(session.predict(x), before)


def test_mistakes(exported, digits, tmp_path, monkeypatch):
    """One clear error each."""

    def fails(code, action):
        with pytest.raises(FqtError) as caught:
            action()
        assert caught.value.code == code

    (tmp_path / "text.onnx").write_text("not an ONNX file")
    other = '<ir_version: 10, opset_import: ["" : 21]> g (float x) => (float y) { y = Abs(x) }'
    onnx.save(onnx.parser.parse_model(other), tmp_path / "other.onnx")
    fails("FQT502", lambda: load_onnx(tmp_path / "absent.onnx"))
    fails("FQT502", lambda: load_onnx(tmp_path / "text.onnx"))
    fails("FQT501", lambda: load_onnx(tmp_path / "other.onnx"))
    fails("FQT501", lambda: load_onnx(exported.infer))
    session = load_onnx(exported.train)
    x, y = batch(digits, 0)
    fails("FQT501", lambda: session.predict(x))
    fails("FQT505", lambda: session.step(x[:4], y[:4]))
    fails("FQT508", lambda: session.save(tmp_path / "absent" / "m.onnx"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    fails("FQT509", lambda: load_onnx(exported.train))


WITHOUT_COMPILER = """
import sys
for name in ("torch", "tvm", "click", "rich"):
    sys.modules[name] = None
import numpy as np
from fqt_deploy.onnx_session import load_onnx
session = load_onnx(sys.argv[1])
print(session.step(np.zeros((8, 1, 8, 8), np.float32), np.zeros(8, np.int64)))
assert not any(name.startswith("fqt_deploy.ops") for name in sys.modules)
"""


def test_needs_neither_torch_nor_the_compiler(exported):
    command = [sys.executable, "-c", WITHOUT_COMPILER, str(exported.train)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert np.isfinite(float(result.stdout))


@pytest.mark.thorough
def test_a_step_with_all_that_a_loop_does_between_batches(loop_source, loop_options, loop_artifact, digits, tmp_path):
    """Groups, clipping, sums over two batches, averages and metrics are state in the file as in the artifact."""
    lowered = lower_model(loop_source, loop_options)
    export_onnx(loop_source, loop_options, lowered, tmp_path / "loop.onnx")
    export_onnx_inference(loop_source, loop_options, lowered, tmp_path / "loop.infer.onnx")
    theirs = load_onnx(tmp_path / "loop.onnx", infer=tmp_path / "loop.infer.onnx")
    ours = fqt_deploy.load(loop_artifact)
    for step in range(6):
        for name, array in state_of(ours).items():
            state_of(theirs)[name][...] = array
        assert theirs.step(*batch(digits, step)) == pytest.approx(ours.step(*batch(digits, step)), rel=1e-5)
        assert theirs.metrics == pytest.approx(ours.metrics, rel=1e-3)
        assert difference(ours, theirs) < 1e-4
    for averaged in (False, True):
        ours.averaged = theirs.averaged = averaged
        x = batch(digits, 0)[0]
        np.testing.assert_allclose(theirs.predict(x), ours.predict(x), rtol=1e-3, atol=1e-3)


@pytest.mark.thorough
def test_moments_in_8_bits(digits_source, digits, tmp_path):
    options = options_of({"moment_bits": 8, "recipe": "none"})
    export_onnx(digits_source, options, lower_model(digits_source, options), tmp_path / "coded.onnx")
    compile_model(digits_source, options, tmp_path / "coded.fqt")
    theirs, ours = load_onnx(tmp_path / "coded.onnx"), fqt_deploy.load(tmp_path / "coded.fqt")
    for step in range(4):
        for name, array in state_of(ours).items():
            state_of(theirs)[name][...] = array
        assert theirs.step(*batch(digits, step)) == pytest.approx(ours.step(*batch(digits, step)), rel=1e-5)
        assert difference(ours, theirs) < 1e-4
