"""The GPU benchmark: its checks find what is wrong, and it fails clearly where there is no GPU."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from tools import bench_gpu
from tools.gpu_bench import layout


def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, "-m", "tools.bench_gpu"]
    (tmp_path / layout.PRODUCT_TABLE).write_text("[]")
    for options, words in (([], "there is no CUDA device"), (["--run", str(tmp_path)], "there is no CUDA device")):
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr


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
