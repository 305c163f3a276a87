"""The example page in headless Chromium: it trains, teaches, cancels, saves and loads, also when its server is gone."""

import json
import subprocess
import threading

import numpy as np
import pytest

from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.export_onnx import export_onnx_step
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.onnx_session import load_onnx
from tests.js.programs import CHROMIUM, PACKAGE, require
from tools.digits_page import server, write_page


@pytest.fixture(scope="module")
def page(digits_source, tmp_path_factory):
    """The folder that ``make digits-page`` serves, with a step for 8 samples."""
    require(["onnxruntime-web", "puppeteer-core"], browser=True)
    folder = tmp_path_factory.mktemp("page")
    options = CompileOptions()
    export_onnx_step(digits_source, options, lower_model(digits_source, options), folder / "model" / "digits.step.onnx")
    write_page(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder that the page's checkpoint is saved in."""
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def seen(page, saved):
    """What ``test/page.mjs`` saw on a narrow screen, and of a wide one; the server ends before anything is done."""
    serving = server(page, 0)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{serving.server_address[1]}/"
    command = ["node", "test/page.mjs", CHROMIUM, url, "400", "1280", str(saved)]
    with subprocess.Popen(
        command, cwd=PACKAGE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            first = process.stdout.readline()
        finally:
            serving.shutdown()
            serving.server_close()
            thread.join()
        shown, errors = process.communicate("\n", timeout=120)
    assert (first, process.returncode) == ("loaded\n", 0), errors
    return json.loads(shown)


@pytest.mark.thorough
def test_it_trains_without_its_server(page, seen, saved):
    assert seen["place"] == "Row 2, column 4: painted"
    assert 0.1 < seen["inked"] < 0.6
    assert seen["cleared"] == 0
    assert seen["examples"] == "1 of your drawings, the latest one of class 1."
    assert seen["cancelled"].startswith("Cancelled after ")
    steps = int(seen["cancelled"].split()[2])
    assert 20 <= steps < 50 * 1367 // 8
    assert seen["points"] == steps
    assert f"After {steps} steps" in seen["words"]
    assert seen["name"] == f"digits-{steps}.safetensors"
    assert seen["status"] == f"Goes on after {steps} steps."
    session = load_onnx(page / "model" / "digits.step.onnx")
    session.load_checkpoint(saved / seen["name"])
    assert session.step_count == steps


@pytest.mark.thorough
def test_it_can_be_used_by_all(seen):
    assert seen["fits"] == {"400": {"tooWide": [], "scrolls": False}, "1280": {"tooWide": [], "scrolls": False}}
    assert seen["unnamed"] == []
    assert seen["headings"][0] == 1
    assert all(b <= a + 1 for a, b in zip(seen["headings"], seen["headings"][1:], strict=False))
    controls = {"drawing", "clear", "class", "epochs", "rate", "start", "save", "load", "Add this drawing"}
    assert controls <= set(seen["reached"])


def test_the_pixels_of_a_drawing_are_those_of_the_digits(page):
    from sklearn import datasets

    about = json.loads((page / "data" / "about.json").read_text())
    images = np.frombuffer((page / "data" / "images.bin").read_bytes(), "<f4").reshape(-1, 64)
    pixels = images * about["deviation"] + about["mean"]
    np.testing.assert_allclose(np.sort(pixels, axis=None), np.sort(datasets.load_digits().data, axis=None), atol=1e-4)
