"""What a student gets back: nbgrader's page, with nothing from a network in it and nothing that runs."""

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from jinja2 import pass_context
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.strings import clean_html
from nbgrader import server_extensions
from nbgrader.converters import GenerateFeedback
from nbgrader.coursedir import CourseDirectory
from traitlets.config import Config

from shrinkbook import notebooks
from shrinkbook.course.engine import run

TEMPLATES = Path(__file__).with_name("templates")
MATHJAX = "book/_static/mathjax/tex-svg.js"


class PlainPage(HTMLExporter):
    """HTML in which a student's Markdown is text and tags that do nothing, whatever was written."""

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """Markdown as HTML, cleaned after it was made; of pictures only those in the text itself are left."""
        page = BeautifulSoup(clean_html(super().markdown2html(context, source)), "html.parser")
        for one in page.find_all(src=True):
            if not str(one["src"]).startswith("data:image/"):
                one.replace_with(f"[picture: {one['src']}]")
        return str(page)

    def _init_resources(self, resources: Any) -> Any:
        """What the template gets; a number used once names the only scripts that may run in the page."""
        made = super()._init_resources(resources)
        made["nonce"] = secrets.token_hex(16)
        return made


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
    first, copy = root / "feedback" / "mathjax.js", root / "feedback" / student / "mathjax.js"
    if not first.exists():
        shutil.copyfile(notebooks.folder() / MATHJAX, first)
    if not copy.exists():
        os.link(first, copy)
