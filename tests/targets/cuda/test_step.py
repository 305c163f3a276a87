"""Whole steps on the emulated GPU: every kernel agrees with PyTorch, and a session trains as on the CPU."""

import dataclasses
import json

import numpy as np
import pytest

import fqt_deploy
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.targets.cuda.options import CudaOptions


def batches(digits, count):
    images, labels = (tensor.numpy() for tensor in digits)
    return [(images[i : i + 8], labels[i : i + 8]) for i in range(0, 8 * count, 8)]


def test_every_kernel_agrees_with_pytorch(digits_step):
    result, *_ = digits_step
    assert len(result.verification.rows) == len(result.manifest.kernels) > 100
    assert [row for row in result.verification.rows if not row.ok] == []
    assert (result.manifest.target["name"], result.manifest.target["mcpu"]) == ("cuda", "sm_80,sm_90a")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "agp"),
    [("none", "sampled"), ("psq-8", "sampled"), ("psq-1", "sampled"), ("scq", "sampled"), ("scq+agp", "sampled"),
     ("scq+agp", "topk")],
)  # fmt: skip
def test_every_recipe_agrees_with_pytorch(digits_source, emulated_cuda, tmp_path, recipe, agp):
    options = CompileOptions(target="cuda", recipe=recipe, agp=agp, verify="numerics")
    result = compile_model(digits_source, options, tmp_path / "step")
    assert [row for row in result.verification.rows if not row.ok] == []


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_75", "sm_90a:wgmma", "sm_120"])
def test_every_form_of_the_products_agrees_with_pytorch(digits_source, emulated_cuda, tmp_path, arch):
    options = CompileOptions(target="cuda", target_options=CudaOptions(arch=arch), agp="once", verify="numerics")
    result = compile_model(digits_source, options, tmp_path / "step")
    assert [row for row in result.verification.rows if not row.ok] == []
    assert result.manifest.target.get("ptx") == ("none" if "wgmma" in arch else None)


@pytest.mark.slow
@pytest.mark.parametrize("example", ["vgg16_cifar", "resnet18_cifar", "mlp_mixer"])
def test_every_example_agrees_with_pytorch(example, emulated_cuda, tmp_path):
    from pathlib import Path

    from fqt_deploy.capture.load_model import load_model

    source = load_model(Path(__file__).parents[3] / "examples" / f"{example}.py", batch=2)
    result = compile_model(source, CompileOptions(target="cuda", verify="numerics"), tmp_path / "step")
    assert [row for row in result.verification.rows if not row.ok] == []


def test_graphs_give_the_same_bits_as_single_launches(digits_step, digits, monkeypatch):
    losses, states = [], []
    for graphs in ("1", "0"):
        monkeypatch.setenv("FQT_CUDA_GRAPH", graphs)
        session = fqt_deploy.load(digits_step[1])
        losses.append([session.step(*batch) for batch in batches(digits, 2)])
        states.append(session.state_dict())
        assert session.step_count == 2
    assert losses[0] == losses[1]
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name])


@pytest.mark.thorough
def test_checkpoints_resume_bit_for_bit(digits_step, digits, tmp_path):
    session = fqt_deploy.load(digits_step[1])
    work = batches(digits, 4)
    for batch in work[:2]:
        session.step(*batch)
    session.lr = 5e-4
    session.save_checkpoint(tmp_path / "here.safetensors")
    onward = [session.step(*batch) for batch in work[2:]]
    session.save(tmp_path / "moved.fqt")
    again = fqt_deploy.load(tmp_path / "moved.fqt")
    again.load_checkpoint(tmp_path / "here.safetensors")
    assert again.lr == pytest.approx(5e-4)
    assert [again.step(*batch) for batch in work[2:]] == onward


def test_weights_and_predictions_go_in_and_out(digits_step, digits, digits_source):
    session = fqt_deploy.load(digits_step[1])
    before = session.predict(digits[0][:11].numpy())
    weights = session.state_dict()
    assert before.shape == (11, 10)
    assert session.last_logits is None
    session.step(*batches(digits, 1)[0])
    assert session.last_logits.shape == (8, 10)
    assert not np.array_equal(session.predict(digits[0][:11].numpy()), before)
    session.load_state_dict(weights)
    np.testing.assert_array_equal(session.predict(digits[0][:11].numpy()), before)
    shared = session.tensors()["param/classifier.weight"]
    assert tuple(shared.shape) == weights["classifier.weight"].shape
    assert shared.__dlpack_device__() == (2, 0)


class OnDevice:
    """A tensor of another library in the GPU's memory, as DLPack shows it."""

    def __init__(self, session, array):
        self.tensor = session._library.place(array)
        self.streams = []

    def __dlpack__(self, *, stream=None, **_):
        self.streams.append(stream)
        return self.tensor.__dlpack__()

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


@pytest.mark.thorough
def test_tensors_on_the_device_are_used_where_they_are(digits_step, digits):
    work = batches(digits, 2)
    host, device = fqt_deploy.load(digits_step[1]), fqt_deploy.load(digits_step[1])
    for x, y in work:
        x_there, y_there = OnDevice(device, x), OnDevice(device, y)
        assert device.step(x_there, y_there) == host.step(x, y)
        assert x_there.streams == [device._library._cuda.stream]
    x = OnDevice(device, work[0][0])
    np.testing.assert_array_equal(device.predict(x), device.predict(work[0][0]))
    with pytest.raises(FqtError, match=r"float32\[3, 1, 8, 8\]"):
        device.step(OnDevice(device, work[0][0][:3]), work[0][1])


@pytest.mark.thorough
def test_batches_from_many_places_share_one_recording(digits_step, digits, monkeypatch):
    monkeypatch.setattr("fqt_deploy.runtime.cuda_library.GRAPHS", 2)
    host, device = fqt_deploy.load(digits_step[1]), fqt_deploy.load(digits_step[1])
    kept = []
    for x, y in batches(digits, 3):
        kept.append((OnDevice(device, x), OnDevice(device, y)))
        assert device.step(*kept[-1]) == host.step(x, y)
    assert len(device._library._graphs) == 2


@pytest.mark.thorough
def test_a_tensor_that_begins_within_another_is_copied(digits_step, digits, monkeypatch):
    """Kernels read vectors; what is not aligned for them goes to the place of host arrays."""
    monkeypatch.setattr("fqt_deploy.runtime.cuda_library.ALIGNMENT", 1 << 62)
    host, device = fqt_deploy.load(digits_step[1]), fqt_deploy.load(digits_step[1])
    for x, y in batches(digits, 2):
        assert device.step(OnDevice(device, x), OnDevice(device, y)) == host.step(x, y)
    assert len(device._library._graphs) == 1


@pytest.mark.slow
def test_a_step_in_tf32_says_so_and_agrees_with_pytorch(digits_source, emulated_cuda, tmp_path):
    options = CompileOptions(target="cuda", target_options=CudaOptions(tf32=True), verify="numerics")
    result = compile_model(digits_source, options, tmp_path / "step")
    assert [row for row in result.verification.rows if not row.ok] == []
    assert result.manifest.target["fp32_products"] == "tf32"


@pytest.mark.parametrize(
    ("variable", "value", "code", "words"),
    [
        ("FQT_EMULATED_DEVICES", "0", "FQT403", "no device"),
        ("FQT_EMULATED_CAPABILITY", "75", "FQT405", "this device is sm_75"),
        ("FQT_EMULATED_DRIVER", "12080", "FQT405", "CUDA 12.8; the step needs 13.0"),
        ("FQT_EMULATED_MEMORY", "1", "FQT406", "memory is full"),
        ("FQT_CUDA_GRAPH", "yes", "FQT202", "must be 0 or 1"),
    ],
)
def test_a_device_that_does_not_fit_is_one_clear_error(digits_step, monkeypatch, variable, value, code, words):
    monkeypatch.setenv(variable, value)
    with pytest.raises(FqtError, match=words) as error:
        fqt_deploy.load(digits_step[1])
    assert error.value.code == code


def test_bad_inputs_are_refused_before_anything_changes(digits_step, digits):
    session = fqt_deploy.load(digits_step[1])
    x, y = batches(digits, 1)[0]
    for bad_x, bad_y, code in ((x[:3], y, "FQT505"), (x * np.nan, y, "FQT506"), (x, y + 10, "FQT507")):
        with pytest.raises(FqtError) as error:
            session.step(bad_x, bad_y)
        assert error.value.code == code
    assert session.step_count == 0


@pytest.mark.slow
def test_the_benchmark_checks_a_carried_step(emulated_cuda, tmp_path, capsys, monkeypatch):
    """Its checks, as they run on the machine with the GPU, accept right kernels and name a wrong one."""
    from tools.gpu_bench import build, checks, layout

    monkeypatch.setattr(build, "CHECKED_BATCH", 4)
    build._checked(tmp_path, "sm_80")
    found = checks.check_kernels(tmp_path)
    assert found["kernels"] > 100
    assert found["wrong"] == []
    assert checks.check_training(tmp_path, steps=12)["same"]
    table = layout.artifact(tmp_path, layout.CHECKED) / layout.CASE_TABLE
    rows = json.loads(table.read_text())
    arrays = dict(np.load(table.with_name(layout.CASES)))
    number = next(i for i, row in enumerate(rows) if row["op"] == "binary_conv2d")
    arrays[f"{number}_expected_0"] += 1
    np.savez(table.with_name(layout.CASES), **arrays)
    assert [row["symbol"] for row in checks.check_kernels(tmp_path)["wrong"]] == [rows[number]["symbol"]]


@pytest.mark.thorough
def test_a_step_with_all_that_a_loop_does_between_batches(loop_source, loop_options, emulated_cuda, tmp_path):
    options = dataclasses.replace(loop_options, target="cuda", target_options=CudaOptions(), verify="numerics")
    result = compile_model(loop_source, options, tmp_path / "step")
    assert {"accumulate_gradient", "adam_update", "average_parameter"} <= {k.op for k in result.manifest.kernels}
    assert [row for row in result.verification.rows if not row.ok] == []
