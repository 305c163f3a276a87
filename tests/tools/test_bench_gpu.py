"""The GPU benchmark: its checks find what is wrong, and it fails clearly where there is no GPU."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fqt_deploy
from tools import bench_gpu
from tools.gpu_bench import layout, run
from tools.gpu_bench.checks import random_batch


@pytest.mark.parametrize("runs", [False, True])
def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys, runs):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (tmp_path / layout.PRODUCT_TABLE).write_text("[]")
    monkeypatch.setattr("sys.argv", ["bench_gpu", *(["--run", str(tmp_path)] if runs else [])])
    with pytest.raises(SystemExit) as ended:
        bench_gpu.main()
    assert ended.value.code == 1
    assert "there is no CUDA device" in capsys.readouterr().err


def test_one_wrong_number_is_a_failure():
    found = {
        "kernels": {"wrong": []},
        "training": {"same": True, "falls": True},
        "device_tensors": {"same": True},
        "products": [{"equal": True}],
    }
    assert bench_gpu.correct(found)
    for change in (
        {"kernels": {"wrong": ["k"]}},
        {"training": {"same": False, "falls": True}},
        {"device_tensors": {"same": False}},
        {"products": [{"equal": True}, {"equal": False}]},
    ):
        assert not bench_gpu.correct({**found, **change})


def test_products_are_whole_words_and_panels():
    for shape in layout.SHAPES:
        assert shape.k % 32 == 0
        assert shape.n % 16 == 0
        assert shape.m >= 256
    assert {shape.m for shape in layout.SHAPES if shape.origin == "square"} >= {1024, 16384}
    json.dumps([shape.to_json() for shape in layout.SHAPES])


def test_errors_are_relative_for_floats_and_exact_for_integers():
    from tools.gpu_bench.checks import _error

    assert _error(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 0.0) == 0.25
    assert _error(np.array([3.0, 4.0]), np.array([3.0, 4.0 + 5e-3]), 0.0) == pytest.approx(1e-3, rel=1e-2)
    assert _error(np.array([1e-9]), np.array([0.0]), 1.0) == pytest.approx(1e-9)


SHAPE = layout.Product("test", 256, 32, 96)


def product(image, panels, result):
    """What the kernels compute, in PyTorch: [1, 1, m, words] and [n / 16, words, 16] to [1, 1, m, n]."""
    x, w = run._signs(image[0, 0]).int(), run._signs(panels.transpose(1, 2).reshape(-1, panels.shape[1])).int()
    result.copy_((x @ w.t())[None, None])


def test_a_product_is_timed_in_every_form_and_compared_with_int8():
    row = run.time_product({"and": product, "wgmma": product}, SHAPE, "cpu")
    assert row["equal"]
    assert set(row["forms"]) == {"and", "wgmma"}
    assert row["bits"] == row["forms"]["and"]
    assert all(row[name] > 0 for name in ("bits", "int8", "bf16"))


@pytest.mark.parametrize("wrong", ["one number", "nothing written"])
def test_a_form_that_is_wrong_is_found(wrong):
    def other(image, panels, result):
        if wrong == "one number":
            product(image, panels, result)
            result[0, 0, -1, -1] += 2

    assert not run.time_product({"and": product, "wgmma": other}, SHAPE, "cpu")["equal"]


@pytest.mark.parametrize("precision", ["bf16", "fp32", "tf32"])
def test_pytorchs_step_runs(precision):
    assert run.torch_step("digits", 8, precision, None, device="cpu", repeats=1) > 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", {mode for _, mode, _ in run.PYTORCH.values() if mode})
def test_pytorchs_step_runs_compiled(mode):
    assert run.torch_step("digits", 8, "bf16", mode, device="cpu", repeats=1) > 0


def test_a_step_carried_without_its_state_starts_from_the_examples_weights(digits_artifact, tmp_path):
    shutil.copytree(digits_artifact, tmp_path / "digits.fqt")
    whole = fqt_deploy.load(tmp_path / "digits.fqt")
    batch = random_batch(whole.manifest)
    expected = [whole.step(*batch) for _ in range(2)]
    (tmp_path / "digits.fqt" / "state.safetensors").unlink()
    carried = run.session_of(tmp_path / "digits.fqt", "digits")
    assert [carried.step(*batch) for _ in range(2)] == expected
    x, y = run.random_tensors(carried, "cpu")
    assert (tuple(x.shape), tuple(y.shape)) == tuple(spec.shape for spec in carried.manifest.inputs)


class Step:
    """A session that does nothing, beside the manifest that the table reads."""

    manifest = SimpleNamespace(kernels=(SimpleNamespace(bytes_moved=10**9),))

    def step(self, x, y):
        return 0.0


def test_tables_and_the_choice_of_a_form(tmp_path, monkeypatch, capsys):
    """The order of things on the GPU, with its parts replaced: what is printed, what is left out for want of time."""
    table = {"forms": ["and", "wgmma"], "shapes": [SHAPE.to_json()]}
    (tmp_path / layout.PRODUCT_TABLE).write_text(json.dumps(table))
    monkeypatch.setattr(run, "_module", lambda path: {SHAPE.symbol: path.name, layout.PEAK: lambda _: None})
    seconds = {"products_and.so": 2e-5, "products_wgmma.so": 1e-5}
    row = {"int8": 4e-5, "bf16": 8e-5, "fp8": None, "bits": 2e-5, "equal": True}
    monkeypatch.setattr(
        run, "time_product", lambda forms, _: {**row, "forms": {form: seconds[name] for form, name in forms.items()}}
    )
    monkeypatch.setattr(run, "session_of", lambda artifact, _: Step())
    monkeypatch.setattr(run, "random_tensors", lambda session, device: (None, None))
    monkeypatch.setattr(run, "torch_step", lambda *_, **__: 0.5)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    never = float("inf")
    rows, timed = run.products(tmp_path, never), run.steps(tmp_path, never, {"bytes_s": 1e12})
    assert [entry["name"] for entry in timed] == [*layout.STEPS, "vgg16-once-wgmma", *run.PYTORCH]
    found = run.fastest_form(rows, timed)
    assert (found["default"], found["products"]) == ("and", "wgmma")
    assert found["time_in_products"] == {"and": 1.0, "wgmma": pytest.approx(0.5)}
    assert set(found["step_s"]) == {"and", "wgmma"}
    printed = capsys.readouterr().out
    assert "and 20.0 us, wgmma 10.0 us" in printed
    assert "2.00    4.00       -" in printed
    assert run.products(tmp_path, 0.0) == []
    late = run.steps(tmp_path, 0.0, {"bytes_s": 1e12})
    assert [entry["name"] for entry in late] == [*layout.STEPS, "vgg16-once-wgmma"]
    assert "torch.compile bf16 was not run" in capsys.readouterr().out
    assert run.fastest_form([], [])["products"] is None
    json.dumps(found)
