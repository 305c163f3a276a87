"""The report in headless Chromium: no error, every layer, pictures with marks in them, on wide and narrow windows."""

import dataclasses
import itertools

import pytest

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.profiling.html_report import html_report
from fqt_deploy.profiling.step_profile import TorchTimes

_WORDS_OUTSIDE = """() => [...document.querySelectorAll("svg text")]
  .filter(word => word.textContent.trim() && getComputedStyle(word).opacity !== "0")
  .filter(word => {
    const box = word.getBoundingClientRect(), all = word.ownerSVGElement.getBoundingClientRect();
    return box.left < all.left - 1 || box.right > all.right + 1 || box.bottom > all.bottom + 1;
  }).map(word => word.textContent)"""
"""Words in pictures that lie outside of them, where they are cut off."""


@pytest.fixture(scope="module")
def full(profile):
    """A profile with everything that a report can show; PyTorch's times are made up."""
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    times = {f"{layer.path} {d}": 1e-3 for layer in profile.layers for d in ("forward", "input_grad", "weight_grad")}
    statistics = tuple(
        {"step": step, "layer": layer.path, "grad_norm": 0.1 * step, "flips": 0.01, "grad_noise": None}
        for step in (10, 20)
        for layer in profile.layers
    )
    passes = {
        profile.layers[1].path: (("lower-to-1bit", "%a = fqt.conv2d(%x)", "%a = fqt.binary_conv2d(%x) </script>"),)
    }
    return dataclasses.replace(
        profile, torch=TorchTimes({"fp32": 0.1}, {"fp32": times}), statistics=statistics, passes=passes
    )


def test_without_the_drawing_package_it_says_so(profile, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(FqtError, match="FQT509") as caught:
        html_report([profile])
    assert "fqt-deploy[report]" in caught.value.render()


def opened(browser, path, width, scheme="light"):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-drawn=yes]", timeout=30_000)
    assert said == []
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_opens_whole(browser, full, tmp_path, width, scheme):
    other = dataclasses.replace(full, name="other")
    (tmp_path / "r.html").write_text(html_report([full, other]))
    page = opened(browser, tmp_path / "r.html", width, scheme)
    text = page.inner_text("main")
    for layer in full.layers:
        assert layer.path in text
        assert layer.reason in text
    pictures = page.query_selector_all(".picture")
    assert len(pictures) == 1 + 2 * 7
    assert page.evaluate(_WORDS_OUTSIDE) == []
    for picture in pictures:
        marks = picture.query_selector_all("svg [role='graphics-symbol'], svg .mark-area path, svg .mark-line path")
        assert any(mark.bounding_box() and mark.bounding_box()["width"] > 1 for mark in marks)
        box = picture.query_selector("svg").bounding_box()
        assert 0.8 * (width - 32) <= max(box["width"], 1120 if width > 1200 else 0) <= width
        assert box["height"] > 50
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_it_is_readable_by_a_screen_reader(browser, full, tmp_path):
    (tmp_path / "r.html").write_text(html_report([full]))
    page = opened(browser, tmp_path / "r.html", 1280)
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate(
        "[...document.querySelectorAll('table')].every(t => t.caption && t.querySelector('th[scope]'))"
    )
    assert page.evaluate("[...document.querySelectorAll('figure')].every(f => f.querySelector('figcaption').innerText)")
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    page.close()
