"""The built book in a browser without a network: every page whole, readable, and as wide as the screen.

The book is built once; ``SHRINKBOOK_BOOK`` names one that is built already.
"""

import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from browser import PROGRAM, Browser

from shrinkbook import notebooks
from shrinkbook.book import __main__ as book
from shrinkbook.evidence import store

pytestmark = pytest.mark.skipif(bool(book.missing()), reason=f"{', '.join(book.missing())} not installed; see make book")
PHONE, DESK = 390, 1280
READABLE = 4.5  # contrast of text by WCAG 2, level AA

# Leftmost and rightmost edge of what is on the page and not inside a box that scrolls; text that is no equation yet
EDGES = """(() => {
  const scrolls = e => e && e !== document.body && (/(auto|scroll)/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const boxes = [...document.querySelectorAll('.bd-article *, .bd-header-article *')].filter(e => e.getClientRects().length
    && getComputedStyle(e).visibility !== 'hidden' && !e.closest('svg, mjx-container, .visually-hidden, .headerlink')
    && !scrolls(e.parentElement)).map(e => e.getBoundingClientRect()).filter(b => b.width > 1);
  return [Math.min(...boxes.map(b => b.left)), Math.max(...boxes.map(b => b.right)), document.documentElement.scrollWidth];
})()"""
CONTRASTS = """(() => {
  const parse = c => { const n = c.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = ([r, g, b]) => { const l = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * l(r) + 0.7152 * l(g) + 0.0722 * l(b); };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
  const ground = e => { if (!e) return [255, 255, 255]; const c = parse(getComputedStyle(e).backgroundColor);
    return c[3] === 1 ? c.slice(0, 3) : over(c, ground(e.parentElement)); };
  const texts = 'p, li, td, th, dt, dd, h1, h2, h3, figcaption span, pre, pre span, code, summary, a, .word, .trace, .about';
  const seen = [...document.querySelectorAll('.bd-article')].flatMap(a => [...a.querySelectorAll(texts)]).filter(e =>
    e.getClientRects().length && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && !e.matches('.headerlink'));
  return seen.map(e => { const b = ground(e), c = over(parse(getComputedStyle(e).color), b), [x, y] = [light(b), light(c)];
    return [(Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05), e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 40)]; })
    .sort((a, b) => a[0] - b[0])[0];
})()"""
RAW_TEX = """[...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container svg')).length +
  document.querySelectorAll('[data-mml-node="merror"]').length"""


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if ready := os.environ.get("SHRINKBOOK_BOOK"):
        return Path(ready)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SHRINKBOOK_RESULTS")  # the committed results
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
        asked = [e["params"]["request"]["url"] for e in events if e.get("method") == "Network.requestWillBeSent"]
        failed = [e["params"]["errorText"] for e in events if e.get("method") == "Network.loadingFailed"]
        broken = [e["params"]["exceptionDetails"]["text"] for e in events if e.get("method") == "Runtime.exceptionThrown"]
        away = [url for url in asked if not url.startswith(("file:", "data:"))]
        equations += browser.run("document.querySelectorAll('.math mjx-container svg').length")
        raw = browser.run(RAW_TEX)
        for what, found in (("asks for", away), ("failed", failed), ("error", broken), ("equations not set", raw)):
            if found:
                problems.append(f"{page.name}: {what} {found}")
        for scheme in ("light", "dark"):
            browser.look(DESK, scheme)
            lowest = browser.run(CONTRASTS)
            if lowest and lowest[0] < READABLE:
                problems.append(f"{page.name}, {scheme}: contrast {lowest[0]:.2f} of {lowest[1]}")
        for width in (DESK, PHONE):
            browser.look(width, "light")
            left, right, scroll = browser.run(EDGES)
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
            if not target.exists():
                lost.append(f"{page.name}: {link}")
            elif address.fragment and target in known and unquote(address.fragment) not in known[target].ids:
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
    """A chapter's claims lead to its evidence, whose downloads are the run files as they are kept."""
    kept = {path.name: path for path in store.record_dir().glob("*/*.json")}
    for path in sorted(html.glob("evidence/*.html")):
        links = [html / "evidence" / link for link in Links(path).links if link.endswith(".json")]
        assert links, f"{path.name} leads to no run file"
        for link in links:
            if link.name in kept:
                assert link.resolve().read_bytes() == kept[link.name].read_bytes()


def test_a_stripped_notebook_is_refused(tmp_path, monkeypatch) -> None:
    (tmp_path / "book").mkdir()
    for path in notebooks.folder().glob("0*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.execution_count = None
        nbformat.write(notebook, tmp_path / path.name)
    monkeypatch.setattr(notebooks, "folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="was not executed in order"):
        book.assemble(tmp_path / "out")
