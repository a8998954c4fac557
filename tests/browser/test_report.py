"""The report as a reader opens it, from a file: nothing sticks out at the right, nothing is asked of a server."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.browser
WIDER = """() => [...document.querySelectorAll('body *')]
    .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1 && e.offsetParent)
    .map(e => e.tagName + ' ' + e.className + ' ' + Math.round(e.getBoundingClientRect().right)).slice(0, 5)"""


@pytest.fixture(scope="module")
def report(project):
    """The report of the committed registry, made by the project's own command."""
    command = [sys.executable, "-m", "bidir.cli", "report", "results/scenes", "--out", "results/made.html"]
    subprocess.run(command, cwd=project, env={**os.environ, "PYTHONPATH": str(project)}, check=True)
    return project / "results" / "made.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_fits_its_window_and_asks_for_nothing(chromium, report, width):
    page = chromium.new_page(viewport={"width": width, "height": 844})
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(report.as_uri())
    page.wait_for_timeout(1000)
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [report.as_uri()]
    assert said == []
    wide, shown = page.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    if folder := os.environ.get("BROWSER_SHOTS"):
        page.screenshot(path=f"{folder}/report_{width}.png", full_page=True)
    assert wide <= shown, page.evaluate(WIDER)
    page.close()
