"""Build the book: ``python -m shrinkbook.book`` writes it to build/book/html."""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import nbformat

from shrinkbook import notebooks
from shrinkbook.book.cells import Trace, chapter, words_shown
from shrinkbook.book.evidence import Evidence, groups, overview, page, papers, scoreboard
from shrinkbook.book.terms import field_terms
from shrinkbook.evidence import claims, store, verdicts
from shrinkbook.experiments import catalogue

NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme", "pybtex", "sphinx_copybutton")
PROFILE = "quick"  # at which the stored notebooks were executed


def sources() -> dict[str, Path]:
    """The notebooks of the book by name, in order: every numbered one in the folder.

    Raises:
        ValueError: a notebook that the catalogue names is missing.
    """
    found = {path.stem: path for path in sorted(notebooks.folder().glob("[0-9][0-9]_*.ipynb"))}
    for key, name in catalogue.NOTEBOOKS.items():
        if name not in found:
            raise ValueError(f"notebooks/{name}.ipynb of {key} is missing; the catalogue names it")
    return found


def assemble(folder: Path) -> Path:
    """Write the source tree of the book afresh: written pages, chapters from notebooks, evidence from results/.

    Raises:
        ValueError: a notebook is missing, or was not executed from top to bottom.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(notebooks.folder() / "book", folder)
    shutil.copyfile(notebooks.folder() / "assignments" / "README.md", folder / "course.md")
    keys = {name: key for key, name in catalogue.NOTEBOOKS.items()}
    ran = [name for name, one in catalogue.EXPERIMENTS.items() if PROFILE in one.configs]
    terms = field_terms((folder / "glossary.md").read_text(encoding="utf-8"))
    evidence, shown = Evidence(folder), dict[str, list[str]]()
    for name, path in sources().items():
        if problem := notebooks.complaint(path):
            raise ValueError(f"{path.name}: {problem}; run `make notebooks`")
        paper = claims.load(keys[name]) if keys.get(name) in papers() else None
        notebook, trace = nbformat.read(path, as_version=4), Trace(ran, paper)
        made = chapter(notebook, name, trace, folder, terms)
        if paper:
            shown[paper.key] = trace.figures(notebook)
            made.cells.insert(1, nbformat.v4.new_markdown_cell(_box(evidence, paper.key, words_shown(notebook))))
        nbformat.write(made, folder / path.name)
    readme = (store.root() / "README.md").read_text(encoding="utf-8")
    generated = {
        "scoreboard.md": scoreboard(evidence) + "\n" + toctree([f"evidence/{name}" for name in groups()]),
        "counts.md": overview(evidence),
        "words.md": words(readme),
        "chapters.md": toctree(list(sources())[1:], "numbered: 1", "caption: Chapters"),
        "citation.md": citation((store.root() / "CITATION.cff").read_text(encoding="utf-8")),
        **{f"evidence/{name}.md": page(evidence, name, shown.get(name, ())) for name in groups()},
    }
    for name, text in generated.items():
        store.write_text(folder / name, text)
    return folder


def build(target: Path) -> None:
    """Assemble the book and build it; a warning of Sphinx is an error.

    Args:
        target: folder of the HTML files; made anew.

    Raises:
        ValueError: the extra is not installed, or Sphinx found fault.
    """
    if absent := missing():
        raise ValueError(f"{', '.join(absent)} not installed; run `make book`, which installs requirements-book.lock")
    source = assemble(store.build_dir() / "book" / "source")
    shutil.rmtree(target, ignore_errors=True)
    options = ["-W", "-n", "--keep-going", "-q", "-b", "html", "-d", str(source.parent / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"Sphinx refuses the book:\n{done.stderr.strip()}")
    for path in sources().values():  # the download is the notebook itself, not the chapter made of it
        shutil.copyfile(path, target / "_sources" / path.name)


def missing() -> list[str]:
    """Packages of the extra ``book`` that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def words(readme: str) -> str:
    """The README's table of what each verdict's word means."""
    table = re.search(r"^\| word \|.*?(?=\n\n)", readme, re.M | re.S)
    if not table:
        raise ValueError("README.md has no table that begins with '| word |'; the book shows it")
    return table[0] + "\n"


def toctree(names: Sequence[str], *options: str) -> str:
    """A hidden table of contents of these pages."""
    return "\n".join(["```{toctree}", ":hidden:", *(f":{option}" for option in options), "", *names, "```"]) + "\n"


def citation(cff: str) -> str:
    """The suite's own BibTeX entry, from CITATION.cff."""
    entry = {key: value.strip('"') for key, value in re.findall(r"^(\w[\w-]*): (.+)$", cff, re.M)}
    author = re.findall(r'- name: "(.+)"', cff)
    return (
        "```bibtex\n@software{shrinkbook,\n"
        f"  title = {{{entry['title']}}},\n  author = {{{{{author[0]}}}}},\n  version = {{{entry['version']}}},\n"
        f"  note = {{License {entry['license']}}}\n}}\n```\n"
    )


def _box(evidence: Evidence, key: str, printed: Mapping[str, str]) -> str:
    """What stands below a chapter's title: the paper's entry, where the evidence is, how often each word occurs, and
    where the executed notebook has another word than results/."""
    lines, other = [], []
    for profile, results in evidence.of(key).items():
        counts = ", ".join(f"{count} {word}" for word, count in verdicts.words(results).items() if count)
        lines.append(f"* profile {profile}: {counts}")
    for verdict in evidence.of(key).get(PROFILE, ()):
        here, there = printed.get(verdict["claim"], verdict["verdict"]), verdict["verdict"]
        if here != there:
            other.append(f"{{ref}}`{verdict['claim']} <{verdict['claim']}>` ({here} here, {there} there)")
    head = (
        f"{{cite:t}}`{key}`. This page shows the notebook as executed at profile {PROFILE}. Below a table or figure "
        f"stands what it was made from; {{ref}}`the evidence <evidence:{key}>` has every verdict with its reason, "
        "every printed cell and every run file. What has no such line was computed in its own cell. The notebook made "
        "its own runs of the same names, so that accuracies and times here can differ from the files by what a "
        "processor changes" + (f", and with them the word of {', '.join(other)}." if other else ".")
    )
    return "\n".join([":::{admonition} Where the numbers come from", ":class: note", head, "", *lines, ":::"])


def main() -> int:
    """Entry point: one line where the book is, or one that says what is wrong."""
    target = store.build_dir() / "book" / "html"
    try:
        build(target)
    except ValueError as error:
        print(f"shrinkbook.book: {error}", file=sys.stderr)
        return 2
    print(f"the book: {target / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
