"""The site is built without a warning, every link inside leads somewhere, and a broken one is noticed."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

DOCS = ROOT / "docs"


def built(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` does, from any folder of pages."""
    options = ["--fail-on-warning", "--keep-going", "-q", "-b", "html", "-c", DOCS, "-d", folder / "doctrees"]
    command = [sys.executable, "-m", "sphinx", *options, source, folder / "site"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


class _Page(HTMLParser):
    """Names that can be linked to, and links, of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.names.add(value)
            elif (tag, name) in (("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")) and value:
                self.links.append(value)


def broken_links(site: Path) -> list[str]:
    """Links of all pages of a folder to files or names that are not there; those to other sites are not followed."""
    pages = {}
    for path in site.rglob("*.html"):
        pages[path] = page = _Page()
        page.feed(path.read_text())
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = target.exists()
            if there and parts.fragment and target in pages:
                there = unquote(parts.fragment) in pages[target].names
            if not there:
                found.append(f"{path.relative_to(site)}: {link}")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site").resolve()
    done = built(DOCS, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    return folder / "site"


def test_every_page_is_there_and_every_link_leads_somewhere(site: Path) -> None:
    written = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert written <= {path.relative_to(site) for path in site.rglob("*.html")}
    assert not broken_links(site)


def test_the_reference_has_signatures_arguments_and_links(site: Path) -> None:
    text = (site / "reference" / "operator.html").read_text()
    assert 'id="mamba2_ops.mamba_chunk_scan_combined"' in text
    # an argument with its shape, and an error that leads to what it says
    assert "<strong>dt</strong>: [batch, seqlen, nheads]" in text
    assert 'href="errors.html#mamba2_ops.ShapeError"' in text
    commands = (site / "reference" / "commands.html").read_text()
    # every sub-command, its options with two dashes
    assert all(f'id="ssdgen-{name}"' in commands for name in ("tune", "pack-build", "show-roofline", "doctor"))
    assert "--budget" in commands


def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "index.md").write_text("# A page\n\nTo [nowhere](missing.md) and to [no heading](#not-there).\n")
    done = built(pages, tmp_path)
    assert done.returncode != 0
    assert "missing" in done.stderr and "not-there" in done.stderr


def test_a_broken_link_in_a_page_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<p id="here"><a href="b.html#there">b</a><a href="#here">here</a></p>')
    (tmp_path / "b.html").write_text('<a href="a.html#gone">a</a><img src="c.png"><a href="https://example.org">o</a>')
    assert sorted(broken_links(tmp_path.resolve())) == ["a.html: b.html#there", "b.html: a.html#gone", "b.html: c.png"]
