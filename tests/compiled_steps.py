"""Fixtures that import the compiler: steps that many files share, and how kernels are compiled."""

import fcntl
import sys
from pathlib import Path

import pytest
import torch
import tvm

from fqt_deploy.capture.load_model import ModelSource, load_model
from fqt_deploy.codegen.kernel_objects import PASS_CONFIG
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core.optimizer import AdamW
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.core.user_cache import user_cache
from fqt_deploy.packaging.build_c_api import LIBRARY, build_c_api
from fqt_deploy.targets.toolchain import native_toolchain

torch.set_num_threads(1)  # the tensors of tests are small: a second thread only waits

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def as_in_a_step():
    """Kernels are compiled as those of a step, which trust their arguments: checks would take half of LLVM's time."""
    with tvm.transform.PassContext(config=PASS_CONFIG):
        yield


@pytest.fixture(scope="session", autouse=True)
def no_log_of_the_user(tmp_path_factory):
    """Compilations go by the tiles that come with a target, not by what was measured here before."""
    module = sys.modules[compile_model.__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "default_log", lambda: tmp_path_factory.getbasetemp() / "tuned_tiles.jsonl")
        yield


@pytest.fixture(scope="session")
def digits_source() -> ModelSource:
    return load_model(EXAMPLES / "digits_cnn.py", batch=8)


@pytest.fixture(scope="session")
def digits_artifact(digits_source, tmp_path_factory) -> Path:
    """The digits example, compiled for this machine by default; to be copied by who changes it.

    What is exported of it beside an artifact shares its kernels, if the options differ in a seed alone.
    """
    folder = tmp_path_factory.mktemp("digits") / "digits.fqt"
    compile_model(digits_source, CompileOptions(), folder)
    return folder


@pytest.fixture(scope="session")
def c_api() -> Path:
    """The folder that ``make c-api`` builds: once for all workers, in the cache folder that they share."""
    folder = user_cache() / "c-api"
    with (user_cache() / "c-api.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "lib" / LIBRARY).is_file():
            build_c_api(folder, native_toolchain())
    return folder


@pytest.fixture(scope="session")
def loop_options():
    """Options of a step that does all that a training loop may do between backward and the next batch."""
    groups = {"0.*": {"lr": 3e-3, "betas": (0.8, 0.9)}}
    adam = AdamW(
        lr=1e-2, weight_decay=0.1, groups=groups, decay="matrices", clip_norm=0.5, clip_value=0.1, accumulate=2,
        ema=0.9, metrics=("grad_norm", "param_norm"),
    )  # fmt: skip
    return CompileOptions(optimizer=adam, recipe="none", exclude=("*",))


@pytest.fixture(scope="session")
def loop_source() -> ModelSource:
    """A small network; biases that a norm takes out would have gradients of rounding noise."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(144, 32, bias=False), torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Linear(32, 10),
    )  # fmt: skip
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return ModelSource(model, torch.nn.functional.cross_entropy, (x, torch.arange(8)))


@pytest.fixture(scope="session")
def loop_artifact(loop_source, loop_options, tmp_path_factory) -> Path:
    """The step of ``loop_options``, compiled for this machine."""
    folder = tmp_path_factory.mktemp("loop") / "loop.fqt"
    compile_model(loop_source, loop_options, folder)
    return folder


@pytest.fixture(scope="session")
def digits():
    """Images [N, 1, 8, 8] of unit scale and labels of scikit-learn's digits, shuffled once."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order].contiguous(), torch.from_numpy(data.target)[order].long()
