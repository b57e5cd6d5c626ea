"""The book's parts: what becomes of a cell, what the pages of evidence say, and that the worked page works."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from shrinkbook import notebooks
from shrinkbook.book import evidence
from shrinkbook.book.cells import Trace, chapter, folded, words_shown
from shrinkbook.book.terms import field_terms, with_terms
from shrinkbook.evidence import claims, store
from shrinkbook.experiments import catalogue

ROOT = store.root()
BOOK = notebooks.folder() / "book"
METHOD = "The method, equation by equation"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


def entries() -> dict[str, dict[str, str]]:
    """The .bib file, braces taken out of the values."""
    text = (BOOK / "references.bib").read_text(encoding="utf-8")
    return {
        key: {name: re.sub(r"[{}]", "", value) for name, value in re.findall(r"^  (\w+) = \{(.*)\},$", body, re.M)}
        for key, body in re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", text, re.M | re.S)
    }


def trace(key: str = "li2017") -> Trace:
    names = [name for name, one in catalogue.EXPERIMENTS.items() if "quick" in one.configs]
    return Trace(names, claims.load(key))


@pytest.mark.parametrize("key", claims.papers())
def test_bibliography_agrees_with_the_paper_data(key):
    paper, entry = claims.load(key), entries()[key]
    assert entry["title"] == paper.title
    assert entry["author"].split(" and ") == paper.authors.split(", ")
    assert entry["year"] == str(paper.year)
    assert paper.venue in entry["booktitle"]
    assert entry.get("eprint", entry.get("doi")) in paper.arxiv


@pytest.mark.parametrize(
    ("code", "section", "hidden"),
    [
        ("import torch\nx = 1", METHOD, True),
        ("criteria.filter_l1(weight)", METHOD, False),
        ("source(criteria.filter_l1)", METHOD, True),
        ("story.structural('table1')", "Check without training", True),
        ("torch.testing.assert_close(a, b)", "Check without training", False),
        ("table.round(2)", "Paper and ours, side by side", True),
    ],
)
def test_what_is_folded_follows_from_what_a_cell_does(code, section, hidden):
    assert folded(code, section) is hidden


def test_names_lead_to_the_run_files_behind_them():
    found = trace()
    assert found.of("x = 1") == ""
    assert found.of('scans = story.runs("li2017.vgg16_scan", "li2017.digits_vgg_scan")') != ""
    assert "<runs:li2017.digits_vgg_scan>" in found.of("mean(scans)")
    assert "vgg16_scan>" not in found.of("mean(scans)").replace("digits_vgg_scan>", "")  # not in quick: it did not run
    found.of("def draw():\n    return scans[0]")
    assert "<runs:li2017.digits_vgg_scan>" in found.of("draw()")
    assert "<cells:li2017.table2>" in found.of('cells = story.structural("table2")')
    assert "<cells:li2017.table2>" in found.of('cells["word"]')
    assert "<verdicts:li2017>" in found.of("story.reasons()")
    first = found.of('story.runs("li2017.digits_vgg", "li2017.digits_vgg_scan")')  # both are in quick: the first ran
    assert "<runs:li2017.digits_vgg>" in first and "_scan" not in first
    assert found.of("cells = 1") == "" and found.of("cells") == ""


def test_a_chapter_has_figures_listings_and_links(tmp_path):
    frame = '<table class="dataframe"><thead><tr><th></th><th>x</th></tr><tr><th>claim</th><th></th></tr></thead>'
    frame += "<tbody><tr><th>li2017.1a</th><td>1</td></tr></tbody></table>"
    caption = "**figure2a.** The paper: As figure 2a says.\n\n*Ours: digits.*"
    cells = [
        new_markdown_cell("## Run\n\nSee figure 2a and table 1."),
        new_code_cell("# nbval ignores this output: because\nscans = story.runs('li2017.digits_vgg_scan')\nscans"),
        new_code_cell("source(f)"),
    ]
    cells[1].outputs = [
        new_output("display_data", {"text/html": frame, "text/plain": ""}),
        new_output("display_data", {"image/png": PIXEL}),
        new_output("display_data", {"text/markdown": caption}),
        new_output("stream", text="after"),
    ]
    listing = {"text/html": '<div class="highlight">', "text/plain": "def f(): ..."}
    cells[2].outputs = [new_output("display_data", listing)]
    notebook = new_notebook(cells=cells)
    made = chapter(notebook, "01_x", trace(), tmp_path).cells
    assert "<th>li2017.1a</th>" in notebook.cells[1].outputs[0].data["text/html"]
    assert [cell.cell_type for cell in made] == ["markdown", "code", "markdown", "code", "markdown", "code", "markdown"]
    assert "{ref}`figure 2a <li2017.figure2a>`" in made[0].source and "<cells:li2017.table1>" in made[0].source
    assert made[1].source.startswith("scans") and "hide-input" in made[1].metadata.tags
    table = made[1].outputs[0].data["text/html"]
    assert '<a href="evidence/li2017.html#li2017-1a">li2017.1a</a>' in table and table.count("<tr>") == 2
    assert "<th>claim</th><th>x</th>" in table
    assert ":name: li2017.figure2a\n" in made[2].source and "*Ours: digits.*" in made[2].source
    assert (tmp_path / "figures" / "01_x-01-1.png").read_bytes().startswith(b"\x89PNG")
    assert made[3].outputs[0].text == "after" and made[3].metadata.tags == ["remove-input"]
    assert "<runs:li2017.digits_vgg_scan>" in made[4].source
    assert made[5].metadata.tags[-1] == "remove-input" and made[6].source == "```python\ndef f(): ...\n```"


def test_a_notebook_whose_words_are_not_those_of_the_results_says_so():
    table = "<tr><th>0</th><td>li2017.1a</td>\n<td>close</td><td>why</td></tr><td>li2017.1b</td><td>not attempted</td>"
    cell = new_code_cell("story.reasons()", outputs=[new_output("display_data", {"text/html": table})])
    printed = words_shown(new_notebook(cells=[cell]))
    assert printed == {"li2017.1a": "close", "li2017.1b": "not attempted"}


def test_the_first_mention_of_a_term_leads_to_the_glossary():
    glossary = "```{glossary}\nFLOP\n  One. And kernels.\n\nbatch norm\n  Two.\n```\n\n"
    glossary += "```{glossary}\nrun\n  Ours.\n```\n"
    terms = field_terms(glossary)
    assert terms == {"FLOP", "batch norm"}
    text = "# FLOP\n\n`FLOP`, $FLOP$, *More FLOP* and [a FLOP](x); Batch norms of FLOPs, a batch norm. A run."
    linked = "{term}`Batch norms <batch norm>` of {term}`FLOPs <FLOP>`, a batch norm"
    assert with_terms(text, terms) == text.replace("Batch norms of FLOPs, a batch norm", linked)
    assert terms == set()


def test_a_verdict_names_its_reason_and_the_files_that_decided_it(tmp_path, monkeypatch):
    for name in ("SHRINKBOOK_RESULTS", "SHRINKBOOK_BUILD"):  # the results that are here, and their runs
        monkeypatch.delenv(name)
    found = evidence.Evidence(tmp_path)
    text = evidence.page(found, "li2017")
    for results in found.of("li2017").values():
        for verdict in results:
            assert evidence.plain(verdict["reason"]) in text
            for run_id in verdict["runs"]:
                assert f"`{run_id[:8]}`" in text
                assert list(tmp_path.glob(f"runs/*/{run_id}.json"))
    assert "54c839ef" not in evidence.Evidence(tmp_path / "other").link("0" * 16)


def snippets() -> dict[str, str]:
    """The worked page's files by their captions."""
    text = (BOOK / "add_a_paper.md").read_text(encoding="utf-8")
    return dict(re.findall(r"```\{code-block\} \w+\n:caption: (.+?)\n\n(.*?)```", text, re.S))


def test_the_worked_page_adds_a_paper(tmp_path):
    """Its files, put into a copy of the repository, give a paper whose notebook runs and whose tests pass."""
    for name in ("lib", "data/papers", ".ipython", "tests/conftest.py", "pyproject.toml"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    found = snippets()
    table = tmp_path / "lib/shrinkbook/experiments/catalogue.py"
    text = table.read_text(encoding="utf-8")
    text = text.replace("\nPAPERS", "\nfrom shrinkbook.experiments import iandola2016\nPAPERS", 1)
    for name in ("PAPERS", "NOTEBOOKS"):
        line = found.pop(f"lib/shrinkbook/experiments/catalogue.py, {name}")
        text, times = re.subn(rf"^({name}\b.*?\{{\n)", lambda head, line=line: head[1] + line, text, flags=re.M)
        assert times == 1, f"the catalogue has no {name}"
    table.write_text(text, encoding="utf-8")
    for name, content in found.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "notebooks").mkdir()

    def run(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
        for name in ("SHRINKBOOK_BUILD", "SHRINKBOOK_RESULTS"):
            environment.pop(name, None)
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    written = [name for name in found if name.endswith(".py")]
    run("-m", "ruff", "check", "--no-cache", *written)
    run("-m", "ruff", "format", "--check", "--no-cache", *written)
    run("make_notebook.py")
    assert "3 passed" in run("-m", "pytest", "-p", "no:cacheprovider", "tests/test_iandola2016.py")
    execute = """from pathlib import Path
from shrinkbook import notebooks
source = notebooks.folder() / "10_squeezenet.ipynb"
print(notebooks.__file__, notebooks.execute(source, Path("out/10.ipynb"), "quick", {"seeds": [0]}))
"""
    assert run("-c", execute).split() == [str(tmp_path / "lib/shrinkbook/notebooks.py"), "None"]
    assert "iandola2016.1a" in (tmp_path / "out/10.ipynb").read_text(encoding="utf-8")
