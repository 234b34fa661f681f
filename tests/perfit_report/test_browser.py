"""The pages in Chromium, in light, dark and on a narrow screen; where there is none, these tests are skipped.

Debian has the browser (``apt-get install chromium``), the extra ``dev`` what drives it. With $PERFIT_SCREENSHOTS, a
directory, the pictures stay there to be looked at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfit_report import RoundTimes

from .test_page import SPACE, by_hand, first_positions, make_spec, page, render_report, summary, trained

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

LONG = [f"hospital-of-the-northern-district-{number:02}" for number in range(4)]
UNDER_THE_POINTER = """() => [...document.querySelectorAll("svg .hover use")].map(mark => {
    mark.scrollIntoView({block: "center"});
    const box = mark.getBoundingClientRect();
    const found = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    return found?.querySelector("title")?.textContent;
})"""
TEXT_COLOURS = """() => [...document.querySelectorAll("h1, p, td, th, summary")].map(e => getComputedStyle(e).color)"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def many_rounds() -> str:
    """A page with long names and tables."""
    rounds = [
        summary(n, *(trained(name, 2, (20, 20 - n / 2 + i, 16 - n / 2 + i)) for i, name in enumerate(LONG)))
        for n in range(1, 13)
    ]
    masks = {name: first_positions(20 - i) for i, name in enumerate(LONG)}
    times = [RoundTimes(1.79e9, 1.79e9 + 4000)] * 12
    return render_report(make_spec(dict.fromkeys(LONG, 2), rounds=12), rounds, SPACE, masks, times)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 360)])
def test_the_report_fits_loads_nothing_and_says_values(browser, tmp_path, scheme, width):
    opened, said = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("request", lambda request: said.append(request.url))
    for name, html in (("few", page(summaries=by_hand())), ("many", many_rounds())):
        file = tmp_path / f"{name}.html"
        file.write_text(html)
        opened.goto(file.as_uri())
        opened.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
        assert opened.evaluate("document.documentElement.scrollWidth") == width
        if shots := os.environ.get("PERFIT_SCREENSHOTS"):
            opened.screenshot(path=Path(shots) / f"{name}-{scheme}-{width}.png", full_page=True)
        background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 20, 25)"}[scheme]
        assert background not in opened.evaluate(TEXT_COLOURS)
        assert said == [file.as_uri()]
        said.clear()
    texts = opened.evaluate(UNDER_THE_POINTER) if width > 1000 else None
    assert texts is None or f"{LONG[0]}\nround 12, after tuning: 10.00" in texts
    assert texts is None or all(texts)
    opened.close()
