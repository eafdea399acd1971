"""The page in a browser: it fits a phone and a desk, its letters can be read, and a dark page is dark."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from tests.report import searches
from tests.report.test_page import rendered

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
DARK = "--blink-settings=preferredColorScheme=0"

# what the page is asked, in the browser
MEASURE = """
<script>
addEventListener("load", () => {
  const shown = (element) => element.getClientRects().length > 0;
  const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = (colour) => {
    const [red, green, blue] = colour.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(red) + 0.7152 * channel(green) + 0.0722 * channel(blue);
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const contrast = (colour) => {
    const [low, high] = [light(colour), paper].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const texts = [...document.querySelectorAll("svg text")].filter(shown);
  const scale = (text) => { const to = text.getScreenCTM(); return Math.hypot(to.a, to.b); };
  const words = [...document.querySelectorAll("h1, h2, h3, p, td, .tag, .name, .gain b")].filter(shown);
  const found = {
    width: innerWidth,
    needed: document.documentElement.scrollWidth,
    paper: paper,
    letters: Math.min(...texts.map((text) => scale(text) * parseFloat(getComputedStyle(text).fontSize))),
    texts: texts.length,
    contrast: Math.min(...words.map((word) => contrast(getComputedStyle(word).color))),
    plots: Math.min(...texts.map((text) => contrast(getComputedStyle(text).fill))),
    cut: words.filter((word) => word.getBoundingClientRect().right > innerWidth + 1).map((word) => word.textContent),
    fetched: performance.getEntriesByType("resource").map((entry) => entry.name),
    rows: getComputedStyle(document.querySelector("table.rows tr")).display,
  };
  parent.document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


# a window has a least width, a frame has not; it is dark if what it is in may be
FRAME = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<output id="found"></output><iframe width="{width}" height="1200" style="border: 0" srcdoc="{page}"></iframe>
"""


def browser() -> str:
    """Its path.  Where `make test` runs for a merge, a browser that is missing is a mistake and no reason to skip."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        message = "no Chromium here; `make browser` installs Debian's"
        assert os.environ.get("SSDGEN_CI") != "1", message
        pytest.skip(message)
    return found


def measured(folder: Path, width: int, *flags: str) -> dict[str, Any]:
    path = folder / "page.html"
    long = searches.history("a/study/whose/name/" + "is_as_long_as_a_path_of_a_file_" * 4)
    page = rendered(histories=[searches.history(), long]).replace("</body>", MEASURE + "</body>")
    path.write_text(FRAME.format(width=width, page=escape(page)))
    command = [browser(), *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1200"]
    done = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=200)
    answer = re.search(r'<output id="found">(.*?)</output>', done.stdout, re.DOTALL)
    assert answer, f"the page said nothing: {done.stderr[-2000:]}"
    return json.loads(unescape(answer[1]))


@pytest.mark.slow
@pytest.mark.parametrize(("width", "row"), [(400, "block"), (1280, "table-row")])
@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read(tmp_path: Path, width: int, row: str, dark: bool) -> None:
    found = measured(tmp_path, width, *([DARK] if dark else []))
    assert found["width"] == width
    # nothing is wider than the window, and a table on a phone is a list of cards
    assert found["needed"] <= width and not found["cut"] and found["rows"] == row
    assert found["letters"] >= 9 and found["texts"] > 20
    assert (found["paper"] < 0.05) == dark
    # the least for text that the web's guidelines for accessibility ask for
    assert found["contrast"] >= 4.5 and found["plots"] >= 4.5
    assert found["fetched"] == []
