"""What a student gets back: nbgrader's page, with nothing from a network in it and nothing that runs."""

import os
import secrets
import shutil
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import bleach
from jinja2 import pass_context
from nbconvert.exporters import HTMLExporter
from nbgrader import server_extensions
from nbgrader.converters import GenerateFeedback
from nbgrader.coursedir import CourseDirectory
from traitlets.config import Config

from shrinkbook import notebooks
from shrinkbook.course.engine import run

TEMPLATES = Path(__file__).with_name("templates")
HEADS = {f"h{level}" for level in range(1, 7)}
CELLS = {"table", "thead", "tbody", "tr", "th", "td"}
TAGS = (
    bleach.ALLOWED_TAGS
    | HEADS
    | CELLS
    | {"p", "pre", "span", "div", "br", "hr", "img", "sub", "sup", "del", "details", "summary"}
)
PROTOCOLS = {"https", "http", "mailto", "data"}
MATHJAX = "book/_static/mathjax/tex-svg.js"
SECONDS = 120  # for a page; an honest one takes two or three


class PlainPage(HTMLExporter):
    """HTML in which a student's Markdown is text and tags that do nothing, whatever was written."""

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """Markdown as HTML, cleaned after it was made; a tag that is not allowed is shown as it was written."""
        made = super().markdown2html(context, source)
        return str(bleach.clean(made, tags=TAGS, attributes=_harmless, protocols=PROTOCOLS))

    def _init_resources(self, resources: Any) -> Any:
        """What the template gets; a number used once names the only scripts that may run in the page."""
        made = super()._init_resources(resources)
        made["nonce"] = secrets.token_hex(16)
        return made


def _harmless(tag: str, name: str, value: str) -> bool:
    """Attributes that may stay: links somewhere, pictures that are in the text, classes of highlighted code."""
    if tag == "a":
        return name == "title" or name == "href" and not value.strip().lower().startswith("data:")
    if tag == "img":
        return name == "alt" or name == "src" and value.startswith("data:image/png;base64,")
    return name == "class" and tag in ("span", "div", "pre")


def attempt(root: Path, config: Config, student: str, paper: str) -> str:
    """Why there is no feedback, empty if :func:`write` made it; it runs in a process of its own, which is ended.

    Some lines of Markdown keep a reader busy for days, and no student's may hold up the grades of the others.
    """
    context = get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(writer, root, config, student, paper), daemon=True)
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return f"no feedback: the page is not done after {SECONDS} seconds"
    if process.exitcode:
        return f"no feedback: making the page ended with {process.exitcode}"
    reason = reader.recv()
    return reason and f"no feedback: {reason if reason.isprintable() else ascii(reason)}"


def _report(writer: Connection, root: Path, config: Config, student: str, paper: str) -> None:
    """Write, and send what went wrong, or nothing."""
    try:
        write(root, config, student, paper)
        writer.send("")
    except Exception as error:
        writer.send(str(error)[:200])


def write(root: Path, config: Config, student: str, paper: str) -> None:
    """Write the feedback on a graded assignment to ``feedback/<student>/<assignment>/<notebook>.html``.

    Args:
        root: nbgrader's course folder.
        config: that names it.
    """
    nbgrader = Path(server_extensions.__file__).parent / "formgrader" / "templates"
    ours = Config(config)
    ours.PlainPage.template_name = "course"
    ours.PlainPage.extra_template_basedirs = [str(TEMPLATES)]
    course = CourseDirectory(config=ours, student_id=student, assignment_id=paper)
    page = GenerateFeedback(coursedir=course, config=ours, exporter_class=PlainPage)
    page.config.HTMLExporter.extra_template_paths += [str(nbgrader)]  # ours extends nbgrader's
    run(page)
    first, copy = root / "feedback" / ".mathjax.js", root / "feedback" / student / "mathjax.js"
    if not first.exists():
        shutil.copyfile(notebooks.folder() / MATHJAX, first)
    if not copy.exists():
        os.link(first, copy)
