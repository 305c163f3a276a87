"""Programs in JavaScript, run in Node and in Chromium; tests skip, and name what is missing."""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "js"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
RUNTIMES = {
    "onnxruntime-node": ["onnxruntime-node"],
    "onnxruntime-web": ["onnxruntime-web"],
    "chromium": ["onnxruntime-web", "puppeteer-core"],
}
"""What runs exported steps, and the npm packages that it takes."""


def require(packages, *, browser=False):
    """Path of Node, where all of ``packages`` are installed."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is missing")
    if browser and CHROMIUM is None:
        pytest.skip("chromium is missing")
    for package in packages:
        if not (PACKAGE / "node_modules" / package).is_dir():
            pytest.skip(f"{package} is missing: npm install in js/")
    return program


def node(packages, *arguments, browser=False, **variables):
    """What a program prints in Node, with ``packages`` installed."""
    command = [require(packages, browser=browser), *map(str, arguments)]
    environment = {**os.environ, **variables}
    result = subprocess.run(
        command, cwd=PACKAGE, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@functools.cache
def trained(runtime, folder, *arguments):
    """What ``js/test/train.mjs`` prints; its checkpoints become those of RUNTIME in ``folder``."""
    browser = runtime == "chromium"
    shown = node(
        RUNTIMES[runtime], "test/train.mjs", CHROMIUM if browser else runtime, folder, *arguments, browser=browser
    )
    if not arguments:
        for end in ("safetensors", "first.safetensors"):
            (folder / f"javascript.{end}").rename(folder / f"{runtime}.{end}")
    return json.loads(shown)
