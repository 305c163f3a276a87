"""The examples that call the C interface from Python's ctypes and from Node: the bits of the Python session."""

import re
import subprocess
import sys

import numpy as np
import pytest

import fqt_deploy
from tests.js.programs import PACKAGE, require
from tests.packaging.conftest import EXAMPLE, write_rows


def command(language):
    """The beginning of a command line that trains; skips, and names what is missing."""
    if language == "ctypes":
        return [sys.executable, "-S", EXAMPLE.with_suffix(".py")]
    return [require(["koffi"]), EXAMPLE.with_suffix(".mjs")]


@pytest.mark.parametrize("language", ["ctypes", "koffi"])
def test_trains_with_the_same_bits(language, c_api, digits_artifact, digits, tmp_path):
    begin = command(language)
    images, labels = (t[:24].numpy() for t in digits)
    write_rows(tmp_path / "data.raw", images, labels)
    session = fqt_deploy.load(digits_artifact)

    def run(*arguments):
        whole = [*begin, c_api / "lib" / "libfqt_runtime.so", *arguments]
        return subprocess.run([str(part) for part in whole], cwd=PACKAGE, capture_output=True, text=True, check=False)

    for epochs in (2, 1):  # the second run goes on from the checkpoint of the first
        done = run(digits_artifact, tmp_path / "data.raw", epochs, tmp_path / "c.safetensors")
        assert done.returncode == 0, done.stderr
        losses = [np.float32(text) for text in re.findall(r"^step \d+ loss (\S+)$", done.stdout, re.MULTILINE)]
        batches = [(images[i : i + 8], labels[i : i + 8]) for _ in range(epochs) for i in range(0, 24, 8)]
        assert losses == [np.float32(session.step(*batch)) for batch in batches]
    assert fqt_deploy.load(digits_artifact).load_checkpoint(tmp_path / "c.safetensors") == {}

    refused = run(tmp_path / "absent.fqt", tmp_path / "data.raw", 1)
    assert refused.returncode == 1
    assert refused.stderr.startswith("FQT501") or refused.stderr.startswith("FQT502"), refused.stderr
