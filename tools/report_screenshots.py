"""Pictures of a report for the documentation, taken in headless Chromium.

Example: ``python -m tools.report_screenshots vgg16.json docs/profiling``, of what ``fqt-profile --save`` wrote. It
needs the extra ``report``, the package ``playwright`` and a Chromium on the path.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from fqt_deploy.profiling.html_report import html_report
from fqt_deploy.profiling.step_profile import read_profile

SHOTS = {
    "summary": (1000, 1250, "light", "h2"),
    "roofline": (1000, 1000, "light", "h3:text('Roofline')"),
    "narrow": (400, 800, "dark", "h3:text('Time by class')"),
}
"""Width and height in pixels, light or dark, and the heading at the top of each picture, by its name."""


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    take(html_report([read_profile(arguments.profile)]), arguments.folder)


def take(report: str, folder: Path) -> None:
    """Write a ``.png`` for each of ``SHOTS`` into ``folder``."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as there, sync_playwright() as driver:
        file = Path(there) / "report.html"
        file.write_text(report)
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (width, height, scheme, heading) in SHOTS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(file.as_uri())
            page.wait_for_selector("body[data-drawn=yes]")
            page.locator(heading).first.evaluate("element => element.scrollIntoView()")
            page.screenshot(path=folder / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
