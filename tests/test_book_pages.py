"""The built book in a browser without a network: every page whole, readable, and as wide as the screen.

The book is built once; ``SHRINKBOOK_BOOK`` names one that is built already.
"""

import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from browser import PROGRAM, Browser

from shrinkbook import notebooks
from shrinkbook.book import __main__ as book
from shrinkbook.evidence import claims, store

ABSENT = ", ".join(book.missing())
pytestmark = pytest.mark.skipif(bool(ABSENT), reason=f"{ABSENT} not installed; `make book` does it")
PHONE, DESK = 390, 1280
READABLE = 4.5  # contrast of text by WCAG 2, level AA

CHECKS = Path(__file__).with_name("page_checks.js").read_text(encoding="utf-8")


def ask(browser: Browser, question: str) -> Any:
    """The answer of one function of page_checks.js on the page that is shown."""
    return browser.run(f"{{{CHECKS}; {question}()}}")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if ready := os.environ.get("SHRINKBOOK_BOOK"):
        return Path(ready)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SHRINKBOOK_RESULTS", "SHRINKBOOK_BUILD"):  # the results that are here, and their runs
            patch.delenv(name)
        target = tmp_path_factory.mktemp("book") / "html"
        book.build(target)
    return target


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("no Chromium here; Debian has it as `chromium`")
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()


def pages(html: Path) -> list[Path]:
    return [path for path in sorted(html.rglob("*.html")) if "_static" not in path.parts]


class Links(HTMLParser):
    """Where a page leads, and what can be led to on it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.ids = set[str](), set[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links |= {found[name] for name in ("href", "src") if found.get(name)}


def test_every_page_is_whole_without_a_network(html: Path, browser: Browser) -> None:
    problems, equations = [], 0
    for page in pages(html):
        browser.look(DESK, "light")
        events = browser.open(page)

        def seen(method: str, events: list[dict[str, Any]] = events) -> list[dict[str, Any]]:
            return [event["params"] for event in events if event.get("method") == method]

        asked = [event["request"]["url"] for event in seen("Network.requestWillBeSent")]
        done, raw = ask(browser, "equations")
        equations += done
        for what, found in {
            "asks for": [url for url in asked if not url.startswith(("file:", "data:"))],
            "did not get": [event["errorText"] for event in seen("Network.loadingFailed")],
            "has an error": [event["exceptionDetails"]["text"] for event in seen("Runtime.exceptionThrown")],
            "leaves TeX": raw,
        }.items():
            if found:
                problems.append(f"{page.name} {what} {found}")
        for scheme in ("light", "dark"):
            browser.look(DESK, scheme)
            ratio, text = ask(browser, "contrast")
            if ratio < READABLE:
                problems.append(f"{page.name}, {scheme}: contrast {ratio:.2f} of {text}")
        for width in (DESK, PHONE):
            browser.look(width, "light")
            left, right, scroll = ask(browser, "edges")
            if left < 0 or right > width or scroll > width:
                problems.append(f"{page.name} at {width} pixels: from {left} to {right}, scrolls to {scroll}")
    assert not problems, "\n".join(problems)
    assert equations > 50


def test_the_page_changes_with_the_scheme(html: Path, browser: Browser) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        browser.look(DESK, scheme)
        browser.open(html / "index.html")
        grounds.append(browser.run("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]


def test_every_link_inside_the_book_leads_somewhere(html: Path) -> None:
    known = {path: Links(path) for path in pages(html)}
    lost = []
    for page, found in known.items():
        for link in found.links:
            address = urlsplit(link)
            if address.scheme or link.startswith("//"):
                continue
            target = (page.parent / unquote(address.path)).resolve() if address.path else page
            fragment = unquote(address.fragment)
            if not target.exists() or (fragment and target in known and fragment not in known[target].ids):
                lost.append(f"{page.name}: {link}")
    assert not lost, "\n".join(sorted(lost)[:20])


def test_every_notebook_is_a_chapter_with_a_download_of_itself(html: Path) -> None:
    front = (html / "index.html").read_text(encoding="utf-8")
    for name, path in book.sources().items():
        page = (html / f"{name}.html").read_text(encoding="utf-8")
        assert f'href="{name}.html"' in front
        button = re.search(r'<a href="(_sources/[^"]+[.]ipynb)"[^>]*btn-download', page)
        assert button, f"{name} has no download button"
        assert (html / button[1]).read_bytes() == path.read_bytes()


def test_every_picture_has_a_number_and_a_caption(html: Path) -> None:
    for name, path in book.sources().items():
        outputs = [o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", [])]
        drawn = sum("image/png" in output.get("data", {}) for output in outputs)
        page = (html / f"{name}.html").read_text(encoding="utf-8")
        captions = re.findall(r'<span class="caption-number">Fig\. [\d.]+ </span><span class="caption-text">(.)', page)
        assert len(captions) == drawn


def test_numbers_lead_to_run_files(html: Path) -> None:
    """The downloads of the pages of evidence are the run files as they are kept."""
    kept: dict[str, list[bytes]] = {}
    for folder in (store.record_dir(), store.root() / "build" / "runs"):
        for path in folder.glob("*/*.json"):
            kept.setdefault(path.name, []).append(path.read_bytes())
    for path in sorted(html.glob("evidence/*.html")):
        links = [html / "evidence" / link for link in Links(path).links if link.endswith(".json")]
        assert links or path.stem not in claims.papers(), f"{path.name} leads to no run file"
        for link in links:
            assert link.resolve().read_bytes() in kept[link.name]


def test_a_stripped_notebook_is_refused(tmp_path, monkeypatch) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "glossary.md").touch()
    (tmp_path / "assignments").mkdir()
    (tmp_path / "assignments" / "README.md").touch()
    for path in notebooks.folder().glob("0*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.execution_count = None
        nbformat.write(notebook, tmp_path / path.name)
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="was not executed in order"):
        book.assemble(tmp_path / "out")
