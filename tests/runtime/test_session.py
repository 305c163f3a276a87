"""Sessions: state moves to the module and back, refused inputs change nothing, and no torch or compiler is needed."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError

X, Y = np.ones((4, 1, 8, 8), np.float32), np.arange(4)

PROGRAM = """
import builtins, sys
original = builtins.__import__
def refuse(name, *rest, **options):
    if name.partition(".")[0] in ("torch", "tvm"):
        raise ImportError(name)
    return original(name, *rest, **options)
builtins.__import__ = refuse
import numpy as np, fqt_deploy
session = fqt_deploy.load(sys.argv[1])
x = np.linspace(-1, 1, 256, dtype=np.float32).reshape(4, 1, 8, 8)
print([session.step(x, np.arange(4)) for _ in range(3)], session.predict(x[:3]).sum())
assert "tvm" not in sys.modules and "torch" not in sys.modules
"""


def test_runs_where_torch_and_tvm_cannot_be_imported(artifact):
    def run(threads):
        environment = {**os.environ, "FQT_NUM_THREADS": threads}
        command = [sys.executable, "-c", PROGRAM, str(artifact)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    one, two = run("1"), run("2")
    assert one.returncode == 0, one.stderr
    assert one.stdout == two.stdout, "results must not depend on the number of threads"
    bad = run("none")
    assert bad.returncode != 0
    assert "FQT202" in bad.stderr


def test_state_dicts_are_those_of_the_module(model, session):
    session.step(X, Y)
    state = {name: torch.from_numpy(array) for name, array in session.state_dict().items()}
    assert state.keys() == model.state_dict().keys()
    assert torch.equal(state["first.weight"], state["second.weight"])
    assert not torch.equal(state["first.weight"], model.first.weight)
    session.load_state_dict(model.state_dict())
    assert np.array_equal(session.state_dict()["head.weight"], model.head.weight.detach().numpy())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head.weight": None}, "no value for head.weight"),
        ({"tail.weight": np.zeros(3)}, "has no tail.weight"),
        ({"head.bias": np.zeros(3, np.float32)}, "head.bias is float32"),
        ({"head.bias": np.zeros(10, np.complex64)}, "head.bias is complex64"),
    ],
)
def test_state_that_does_not_fit_is_refused(session, change, said):
    before = session.state_dict()
    state = {name: np.zeros_like(array) for name, array in before.items()} | change
    with pytest.raises(FqtError, match="FQT504") as caught:
        session.load_state_dict({name: array for name, array in state.items() if array is not None})
    assert said in caught.value.message
    after = session.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_refused_inputs_change_nothing(session):
    before = session.state_dict()
    for x, y in ((X * np.nan, Y), (X, Y + 10), (X[:2], Y), (X, Y.astype(np.int32))):
        with pytest.raises(FqtError):
            session.step(x, y)
    after = session.state_dict()
    assert session.step_count == 0
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_predicts_any_number_of_samples(session):
    x = np.random.default_rng(0).standard_normal((11, 1, 8, 8)).astype(np.float32)
    every = session.predict(x)
    assert every.shape == (11, 10)
    assert session.predict(x[:0]).shape == (0, 10)
    for i in range(11):
        np.testing.assert_array_equal(session.predict(x[i : i + 1])[0], every[i])


@pytest.mark.parametrize("rate", [-1, float("nan"), float("inf"), [0.1, 0.2]])
def test_impossible_learning_rates_are_refused(session, rate):
    with pytest.raises(FqtError, match="FQT202"):
        session.lr = rate


def test_a_loss_that_is_not_finite_is_told(session):
    session.load_state_dict({n: np.full_like(a, 3e38) for n, a in session.state_dict().items()})
    with pytest.raises(FqtError, match="FQT511"):
        session.step(X, Y, check=True)


def test_importing_the_package_imports_nothing_heavy():
    program = "import sys, fqt_deploy; sys.exit(any(name in sys.modules for name in ('torch', 'tvm', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert set(fqt_deploy.__all__) >= {"compile", "load", "Adam", "FqtError"}


@pytest.mark.parametrize("bad", [np.nan, -np.nan])
def test_nan_that_signs_cannot_hold_is_told_with_its_layer(session, bad):
    weight = np.from_dlpack(session.tensors()["param/first.weight"])
    weight[3, 5] = bad
    with pytest.raises(FqtError, match="step 1: NaN was met in first") as refused:
        session.step(X, Y, check=True)
    assert refused.value.code == "FQT511"
    assert np.isnan(session.step(X, Y)), "without the check the loss is returned"
