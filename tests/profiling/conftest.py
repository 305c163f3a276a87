import shutil

import pytest

from fqt_deploy.profiling.profile_artifact import profile_artifact

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def profile(digits_artifact):
    """The profile of the digits step, on noise."""
    return profile_artifact(digits_artifact, steps=3)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()
