"""The base package alone, in a virtual environment of its own: no PyTorch, no TVM compiler, and it trains an artifact.

The environment is filled from PyPI, with the versions of constraints.txt; a second one adds the extra ``images``.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import fqt_deploy
from fqt_deploy.profiling.html_report import html_report
from fqt_deploy.profiling.step_profile import read_profile

ROOT = Path(__file__).parents[2]
SOURCES = ("fqt_deploy", "pyproject.toml", "README.md", "LICENSE")
EXPECTED = {"apache-tvm-ffi", "click", "fqt-deploy", "numpy", "safetensors", "typing_extensions"}
LARGEST, LARGEST_WITH_IMAGES = 95e6, 130e6
"""Bytes; docs/bundle.md says what takes how much."""

TRAIN = """
import importlib.util, json, sys
import numpy as np
import fqt_deploy

assert not any(importlib.util.find_spec(name) for name in ("torch", "tvm", "rich", "onnx"))
session = fqt_deploy.load(sys.argv[1])
data = np.load(sys.argv[2])
losses = [session.step(x, y) for x, y in zip(data["x"], data["y"])]
session.save_checkpoint(sys.argv[3])
print(json.dumps([losses, session.predict(data["x"][0]).tolist()]))
"""
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
"""Of every command: what a developer adds to the path is not in the environment that is tested."""


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd="/", env=ENVIRONMENT)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def packages_of(environment):
    (packages,) = environment.parent.glob("lib/python*/site-packages")
    return packages


def size_of(folder):
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The ``bin`` folder of a virtual environment in which only ``fqt-deploy`` was installed."""
    folder = tmp_path_factory.mktemp("base")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:  # building leaves files behind: not in the repository
        path = ROOT / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    (wheel,) = folder.glob("*.whl")
    python = folder / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", "--only-binary=:all:", "-c", ROOT / "constraints.txt", wheel)
    return python.parent


def test_the_base_package_needs_no_more_than_this(environment):
    listed = run(sys.executable, "-m", "pip", "--python", environment / "python", "list", "--format", "json")
    assert {package["name"].lower() for package in json.loads(listed)} == EXPECTED
    packages = packages_of(environment)
    assert (packages / "fqt_deploy" / "c_api" / "include" / "fqt_runtime.h").is_file()
    size = size_of(packages)
    assert size < LARGEST, f"{size / 1e6:.1f} MB"


@pytest.mark.thorough
def test_it_trains_with_the_same_bits(environment, digits_artifact, digits, tmp_path):
    session = fqt_deploy.load(digits_artifact)
    images, labels = digits
    x, y = images[:80].numpy().reshape(10, 8, 1, 8, 8), labels[:80].numpy().reshape(10, 8)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    checkpoint = tmp_path / "checkpoint.safetensors"
    printed = run(environment / "python", "-c", TRAIN, digits_artifact, tmp_path / "data.npz", checkpoint)
    losses, logits = json.loads(printed)
    assert [session.step(*batch) for batch in zip(x, y, strict=True)] == losses
    assert np.array_equal(session.predict(x[0]), np.float32(logits))
    resumed = fqt_deploy.load(digits_artifact)
    resumed.load_checkpoint(checkpoint)
    assert resumed.step(x[0], y[0]) == session.step(x[0], y[0])


@pytest.mark.thorough
def test_its_commands_train_and_say_what_they_lack(environment, digits_artifact, digits, tmp_path):
    images, labels = digits
    np.savez(tmp_path / "data.npz", x=images[:160].numpy(), y=labels[:160].numpy())
    checkpoint = tmp_path / "checkpoint.safetensors"
    command = ["fqt-train", digits_artifact, "--data", tmp_path / "data.npz", "--checkpoint", checkpoint]
    run(environment / command[0], *command[1:])
    assert checkpoint.is_file()
    for arguments in (["model.py"], ["--list-ops"]):
        result = subprocess.run(
            [environment / "fqt-compile", *arguments], capture_output=True, text=True, cwd="/", env=ENVIRONMENT
        )
        assert result.returncode == 1, result.stderr
        assert "error[FQT303]" in result.stderr
        assert "fqt-deploy[compiler]" in result.stderr
    program = "import fqt_deploy\ntry: fqt_deploy.compile\nexcept fqt_deploy.FqtError as error: print(error.code)"
    assert run(environment / "python", "-c", program).strip() == "FQT303"


@pytest.mark.thorough
def test_its_profile_is_shown_where_more_is_installed(environment, digits_artifact, tmp_path):
    """As a device without PyTorch and the PC: the one measures and writes a file, the other draws and compares."""
    saved = tmp_path / "device.json"
    printed = run(environment / "fqt-profile", digits_artifact, "--steps", "1", "--save", saved)
    assert "its kernels sum to" in printed
    refused = subprocess.run(
        [environment / "fqt-profile", saved, "--html", tmp_path / "r.html"],
        capture_output=True,
        text=True,
        cwd="/",
        env=ENVIRONMENT,
    )
    assert refused.returncode == 1
    assert "error[FQT509]" in refused.stderr
    assert "--save keeps the profile" in refused.stderr
    here = read_profile(saved)
    assert [kernel.symbol for kernel in here.kernels] == [
        kernel.symbol for kernel in fqt_deploy.load(digits_artifact).manifest.kernels
    ]
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    shown = html_report([here, here.named("other")])
    assert all(layer.path in shown for layer in here.layers)


@pytest.fixture(scope="module")
def with_images(environment, tmp_path_factory):
    """The ``bin`` folder of an environment with the packages of the first one and the extra ``images``."""
    folder = tmp_path_factory.mktemp("images") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    (packages_of(python.parent) / "base.pth").write_text(f"{packages_of(environment)}\n")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", python)
    (wheel,) = environment.parents[1].glob("*.whl")
    run(*pip, "install", "--only-binary=:all:", "-c", ROOT / "constraints.txt", f"{wheel}[images]")
    return python.parent


@pytest.mark.thorough
def test_with_the_extra_for_images_it_trains_from_a_folder_of_them(
    with_images, environment, digits_artifact, digits, tmp_path
):
    """It validates, keeps the best, writes logs, and exports; the artifact is a copy, as on another machine."""
    listed = run(sys.executable, "-m", "pip", "--python", with_images / "python", "list", "--format", "json")
    assert {package["name"].lower() for package in json.loads(listed)} == EXPECTED | {"pillow", "simplejpeg"}
    added = size_of(packages_of(with_images))
    assert size_of(packages_of(environment)) + added < LARGEST_WITH_IMAGES, f"{added / 1e6:.1f} MB more"
    shutil.copytree(digits_artifact, tmp_path / "digits.fqt")
    images = ((digits[0].numpy()[:, 0] + 1) * 8 * 15).astype(np.uint8)
    for part, rows in (("train", range(400)), ("test", range(400, 500))):
        for i in rows:
            folder = tmp_path / part / str(int(digits[1][i]))
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i]).save(folder / f"{i}.jpg", quality=95)
    data = ("--data", tmp_path / "train", "--eval-data", tmp_path / "test", "--mean", "0.5", "--std", "0.5")
    logs = ("--log", tmp_path / "log.csv", "--tensorboard", tmp_path / "board", "--epochs", "4", "--lr", "3e-3")
    python = with_images / "python"
    run(python, "-m", "fqt_deploy.cli_train", tmp_path / "digits.fqt", *data, *logs)
    with (tmp_path / "log.csv").open() as file:
        shares = [float(row["eval_accuracy"]) for row in csv.DictReader(file)]
    assert len(shares) == 4
    assert max(shares) > 0.5
    best, weights = tmp_path / "digits.fqt" / "best.safetensors", tmp_path / "w.safetensors"
    run(python, "-m", "fqt_deploy.cli_export", tmp_path / "digits.fqt", "--checkpoint", best, "-o", weights)
    session = fqt_deploy.load(digits_artifact)
    session.load_checkpoint(best)
    assert session.step_count == 50 * (int(np.argmax(shares)) + 1)
    exported = load_file(weights)
    assert all(np.array_equal(exported[name], array) for name, array in session.state_dict().items())
