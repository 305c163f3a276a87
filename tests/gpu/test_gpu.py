"""On a real GPU: numerics of every kernel of every example, and training."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fqt_deploy
from fqt_deploy.capture.load_model import load_model
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.settings import options_of

pytestmark = pytest.mark.gpu

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = [
    ("none", "sampled"), ("psq-8", "sampled"), ("psq-1", "sampled"), ("scq", "sampled"),
    ("scq+agp", "sampled"), ("scq+agp", "topk"), ("scq+agp", "once"), ("scq+agp", "nested"),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def architecture():
    """Architecture of this machine's GPU."""
    # in a process of its own: the compiler may have loaded its stand-in for the driver into this one
    if subprocess.run(
        [sys.executable, "-c", "import ctypes; ctypes.CDLL('libcuda.so.1')"], capture_output=True
    ).returncode:
        pytest.skip("no NVIDIA driver: libcuda.so.1 is missing")
    from fqt_deploy.runtime.cuda_runtime import CudaRuntime
    from fqt_deploy.targets.cuda.features import ARCHITECTURES

    try:
        runtime = CudaRuntime([name for name in ARCHITECTURES if not name.endswith("a")])
    except fqt_deploy.FqtError as error:
        pytest.skip(error.message)
    major, minor = runtime.capability
    return f"sm_{major}{minor}"


def compiled(example, architecture, folder, **settings):
    source = load_model(EXAMPLES / f"{example}.py", batch=settings.pop("batch", 8))
    options = options_of({"target": "cuda", "arch": architecture, **settings})
    return source, compile_model(source, options, folder / "step.fqt")


@pytest.mark.parametrize(("recipe", "agp"), RECIPES)
def test_every_recipe_agrees_with_pytorch_kernel_by_kernel(architecture, tmp_path, recipe, agp):
    _, result = compiled("digits_cnn", architecture, tmp_path, recipe=recipe, agp=agp, verify="numerics")
    assert [row for row in result.verification.rows if not row.ok] == []


def test_products_of_warpgroups_agree_with_pytorch(architecture, tmp_path):
    if architecture != "sm_90":
        pytest.skip("wgmma is an instruction of sm_90a")
    _, result = compiled("digits_cnn", "sm_90a:wgmma", tmp_path, verify="numerics")
    assert [row for row in result.verification.rows if not row.ok] == []


@pytest.mark.parametrize("form", ["sm_75", "sm_100"])
def test_products_of_other_generations_agree_with_pytorch(architecture, tmp_path, monkeypatch, form):
    """Newer devices execute XOR, from sm_80 on, and bytes, too."""
    if architecture == "sm_75" != form:
        pytest.skip("sm_75 has neither bytes of this shape nor asynchronous copies")
    from fqt_deploy.targets.cuda.features import ARCHITECTURES

    monkeypatch.setitem(ARCHITECTURES, architecture, ARCHITECTURES[form])
    _, result = compiled("digits_cnn", architecture, tmp_path, verify="numerics")
    assert [row for row in result.verification.rows if not row.ok] == []


def test_fp32_products_in_tf32_agree_with_pytorch(architecture, tmp_path):
    if architecture == "sm_75":
        pytest.skip("sm_75 has no TF32")
    _, result = compiled("digits_cnn", architecture, tmp_path, tf32=True, verify="numerics")
    assert [row for row in result.verification.rows if not row.ok] == []


@pytest.mark.parametrize("example", ["vgg16_cifar", "resnet18_cifar", "mlp_mixer"])
def test_every_example_agrees_with_pytorch_kernel_by_kernel(architecture, tmp_path, example):
    _, result = compiled(example, architecture, tmp_path, verify="numerics")
    assert [row for row in result.verification.rows if not row.ok] == []


@pytest.mark.parametrize("example", ["digits_cnn", "vgg16_cifar"])
def test_fifty_steps_repeat_bit_for_bit_and_learn(architecture, tmp_path, example, monkeypatch):
    source, result = compiled(example, architecture, tmp_path, batch=32)
    x, y = (tensor.numpy() for tensor in source.example_inputs)
    losses = []
    for graphs in ("1", "0"):
        monkeypatch.setenv("FQT_CUDA_GRAPH", graphs)
        session = fqt_deploy.load(result.output)
        losses.append([session.step(x, y) for _ in range(50)])
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.8 * losses[0][0]


def test_tensors_of_pytorch_are_used_on_the_device(architecture, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("PyTorch was built without CUDA")
    source, result = compiled("digits_cnn", architecture, tmp_path)
    x, y = source.example_inputs
    host, device = fqt_deploy.load(result.output), fqt_deploy.load(result.output)
    for _ in range(12):
        assert device.step(x.cuda(), y.cuda()) == host.step(x.numpy(), y.numpy())
    weight = torch.from_dlpack(device.tensors()["param/classifier.weight"])
    np.testing.assert_array_equal(weight.cpu().numpy(), host.state_dict()["classifier.weight"])


def test_kernels_are_timed_by_events(architecture, tmp_path):
    from fqt_deploy.profiling.profile_artifact import profile_artifact
    from fqt_deploy.profiling.rows import layer_rows

    compiled("digits_cnn", architecture, tmp_path)
    profile = profile_artifact(tmp_path / "step.fqt", steps=5)
    for step in profile.timed:
        assert all(begin <= end for begin, end in step.kernels)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(step.kernels))
    assert 0 < profile.kernels_s <= max(profile.timed_seconds)
    assert sum(row.seconds for row in layer_rows(profile)) == pytest.approx(profile.kernels_s)
    assert profile.ceilings.bytes > 1e10
