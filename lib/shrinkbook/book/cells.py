"""A notebook as a chapter: what is folded, captioned and linked follows from what a cell does, never from marks in it.

* Code that only imports, shows the library's source, or tabulates and draws results is folded; the knobs and the
  examples of the method stay open.
* A picture becomes a numbered figure: its caption is the one shown with it, else the heading or sentence above it.
* Below an output made of runs stands a line that leads to the run files; a claim in a table leads to its verdicts.
"""

import ast
import base64
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from shrinkbook.book.terms import with_terms
from shrinkbook.evidence.paper import Paper

OPEN = ("The method, equation by equation", "Check without training")
SHOWS = ("show", "table", "structural", "verdicts", "reasons", "stable", "claims", "budget", "deviations")
JUDGED = {"verdicts", "reasons", "stable", "claims"}
CLAIM = re.compile(r"<(t[hd])>([a-z]+\d{4})\.(\d+[a-z]?)</\1>")
LONG = re.compile(r"<td>(?=[^<]{40})")
WORD = re.compile(r"<td>([a-z]+\d{4}\.\d+[a-z]?)</td>\s*<td>([a-z ]+)</td>")
STYLE = re.compile(r"<style.*?</style>\s*", re.S)
REASON = re.compile(r"\A# nbval[^\n]*\n")
CAPTION = re.compile(r"\*\*(\w+)\.\*\* The paper: ")
MENTION = re.compile(r"\b[Ff]igure \d+[a-z]?\b|\b[Tt]able \d+\b")
HEADER = re.compile(r"<thead>\s*<tr[^>]*>(.*?)</tr>\s*<tr[^>]*>(.*?)</tr>\s*</thead>", re.S)


@dataclass
class Trace:
    """Which run files and printed tables the names of a notebook stand for, read off its code from top to bottom.

    Args:
        experiments: those that the stored notebook can have run, in any order.
        paper: of the notebook; None where it tells of several.
    """

    experiments: Sequence[str]
    paper: Paper | None
    names: dict[str, set[str]] = field(default_factory=dict)

    def of(self, code: str) -> str:
        """The line below a cell's output, empty if no run is behind it."""
        tree = ast.parse(code)
        places = self._places(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                stored = [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
                self.names.update(dict.fromkeys(stored, self._places(node.value)))
            elif isinstance(node, ast.FunctionDef):
                self.names[node.name] = self._places(node)
        links = [f"{{ref}}`{_title_of(place)} <{place}>`" for place in sorted(places)]
        return f"{{.trace}}\nRun files: {', '.join(links)}" if links else ""

    def _places(self, tree: ast.AST) -> set[str]:
        """Labels of the pages of evidence that tell where the values come from."""
        found: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found |= self.names.get(node.id, set())
            if isinstance(node, ast.Call):
                for pattern in map(_pattern, node.args):
                    if matches := [name for name in self.experiments if fnmatchcase(name, pattern)]:
                        found.update(f"runs:{name}" for name in matches)
                        break  # the first that the profile has is the one that ran
        called = {_called(node) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if self.paper:
            if called & {"table", "structural"}:
                found |= {f"cells:{self.paper.key}.{text}" for text in _texts(tree) if text in self.paper.tables}
            if called & JUDGED:
                found.add(f"verdicts:{self.paper.key}")
            if called & {"everything", "budget"}:
                found.add(f"runs:{self.paper.key}")
        return found

    def figures(self, notebook: NotebookNode) -> list[str]:
        """The paper's figures that the notebook shows, in its order."""
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        pairs = zip(outputs, outputs[1:], strict=False)
        named = [CAPTION.match(_text(after)) for before, after in pairs if "image/png" in before.get("data", {})]
        return [found[1] for found in named if found and self.paper]

    def linked(self, text: str, shown: Sequence[str]) -> str:
        """Markdown in which the first mention of each figure and table of the paper in a line leads to it."""
        if self.paper is None:
            return text
        targets = {words(name): f"{self.paper.key}.{name}" for name in shown}
        targets |= {words(name): f"cells:{self.paper.key}.{name}" for name in self.paper.tables}

        def link(found: re.Match[str]) -> str:
            place = targets.get(found[0].lower())
            return f"{{ref}}`{found[0]} <{place}>`" if place else found[0]

        lines = [line if line.startswith("#") else MENTION.sub(link, line) for line in text.split("\n")]
        return "\n".join(lines)


def chapter(notebook: NotebookNode, name: str, trace: Trace, folder: Path, terms: Collection[str] = ()) -> NotebookNode:
    """The notebook as the book shows it; its pictures are written to ``folder/figures``.

    Args:
        notebook: executed; it is not changed.
        name: of its file, for the files of its pictures.
        trace: fresh, of this notebook.
        folder: of the book's source.
        terms: of the glossary; the first mention of each becomes a link.
    """
    notebook = deepcopy(notebook)
    made = new_notebook(metadata=notebook.metadata)
    section, above = "", ""
    shown, terms = trace.figures(notebook), set(terms)
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            made.cells.append(new_markdown_cell(with_terms(trace.linked(cell.source, shown), terms)))
            section, above = _section(cell.source, section), cell.source
            continue
        for part in _code(cell, f"{name}-{number:02d}", section, above, trace, folder):
            if part.cell_type == "markdown" and part.source.startswith("````{figure}"):
                others = [one for one in shown if f".{one}\n" not in part.source]
                part.source = trace.linked(part.source, others)
            made.cells.append(part)
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number:03d}"
    return made


def _code(
    cell: NotebookNode, name: str, section: str, above: str, trace: Trace, folder: Path
) -> Iterator[NotebookNode]:
    """A code cell, cut where a picture becomes a figure or library code becomes a listing."""
    line = trace.of(cell.source)
    tags = list(cell.metadata.get("tags", []))
    if "parameters" not in tags and folded(cell.source, section):
        tags.append("hide-input")
    if _only_lists(cell.source):  # the listing below is the code
        tags.append("remove-input")
    first = new_code_cell(REASON.sub("", cell.source), metadata={"tags": tags}, execution_count=cell.execution_count)
    yield first
    current: NotebookNode | None = first
    pictures, outputs = 0, list(cell.outputs)
    while outputs:
        output = outputs.pop(0)
        data = output.get("data", {})
        if "image/png" in data:
            pictures += 1
            caption = _text(outputs.pop(0)) if outputs and _text(outputs[0]).startswith("**") else _heading(above)
            yield new_markdown_cell(_figure(data["image/png"], caption, f"{name}-{pictures}", trace.paper, folder))
            current = None
        elif listing := _listing(data):
            yield new_markdown_cell(f"```python\n{listing}\n```")
            current = None
        elif html := STYLE.sub("", data.get("text/html", "<p>")).strip():
            if "text/html" in data:
                data["text/html"] = CLAIM.sub(_link, LONG.sub('<td class="long">', HEADER.sub(_one_header, html)))
            if current is None:
                current = new_code_cell("", metadata={"tags": ["remove-input"]})
                yield current
            current.outputs.append(output)
    if line and cell.outputs:
        yield new_markdown_cell(line)


def words_shown(notebook: NotebookNode) -> dict[str, str]:
    """The verdict on each claim as the notebook prints it beside its reason."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return dict(found for output in outputs for found in WORD.findall(output.get("data", {}).get("text/html", "")))


def folded(code: str, section: str) -> bool:
    """Whether a reader who wants the story does not need to see this code at once."""
    body = ast.parse(code).body
    calls = {_called(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)}
    if any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body):
        return True
    return section not in OPEN or bool(calls & {"source", *SHOWS})


def _only_lists(code: str) -> bool:
    """Whether a cell does nothing but show the library's own source."""
    body = ast.parse(code).body
    call = body[0].value if len(body) == 1 and isinstance(body[0], ast.Expr) else None
    return isinstance(call, ast.Call) and _called(call) == "source"


def _section(markdown: str, before: str) -> str:
    headings = re.findall(r"^## (.+)$", markdown, re.M)
    return headings[-1] if headings else before


def _listing(data: Mapping[str, Any]) -> str:
    """The code that an output shows, empty if it shows something else."""
    return data["text/plain"].rstrip() if 'class="highlight"' in data.get("text/html", "") else ""


def _heading(above: str) -> str:
    """A caption for a picture that has none: the last heading above it, else the first sentence there."""
    headings = re.findall(r"^#+ (.+)$", above, re.M)
    return (
        headings[-1].rstrip(".?!:") + "."
        if headings
        else re.split(r"(?<=[.:])\s", " ".join(above.split()), maxsplit=1)[0]
    )


def _figure(png: str, caption: str, name: str, paper: Paper | None, folder: Path) -> str:
    """A figure directive; named after the paper's figure where it is one of them."""
    path = folder / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(png))
    of = CAPTION.match(caption)
    label = f"{paper.key}.{of[1]}" if paper and of else name
    if of:
        head = f"{title(of[1])} of the paper" if title(of[1])[0] == "F" else "In the paper"
        caption = f"**{head}.** {caption[of.end() :]}"
    alt = re.sub(r"[*`$]", "", caption.split("\n")[0])
    return f"````{{figure}} /figures/{path.name}\n:name: {label}\n:alt: {alt}\n\n{caption}\n````"


def _link(found: re.Match[str]) -> str:
    cell, key, number = found.groups()
    return f'<{cell}><a href="evidence/{key}.html#{key}-{number}">{key}.{number}</a></{cell}>'


def _one_header(found: re.Match[str]) -> str:
    """pandas writes the names of an index in a row of their own; they go where that row's fellow is empty."""
    above, below = (re.findall(r"<th[^>]*>(.*?)</th>", row, re.S) for row in found.groups())
    if len(above) != len(below) or any(a.strip() and b.strip() for a, b in zip(above, below, strict=True)):
        return found[0]
    cells = "".join(f"<th>{a.strip() or b.strip()}</th>" for a, b in zip(above, below, strict=True))
    return f"<thead><tr>{cells}</tr></thead>"


def _text(output: NotebookNode) -> str:
    return str(output.get("data", {}).get("text/markdown", ""))


def _title_of(place: str) -> str:
    """A link's text for a label of the pages of evidence."""
    kind, _, name = place.partition(":")
    if kind == "runs":
        return name if "." in name else "of all experiments"
    return "by verdict" if kind == "verdicts" else f"{words(name.partition('.')[2])}, cell by cell"


def words(identifier: str) -> str:
    """``figure2a`` as ``figure 2a``, ``figure_unit`` as ``figure unit``, ``cifar10`` as it is."""
    return re.sub(r"^(figure|table)(?=\d)", r"\1 ", identifier.replace("_", " "))


def title(identifier: str) -> str:
    """``table1`` as ``Table 1``, for a heading; a name of other words stays as it is."""
    return words(identifier).capitalize() if re.match(r"(figure|table)\d", identifier) else words(identifier)


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _texts(tree: ast.AST) -> list[str]:
    """The string constants, each once, in their order."""
    return list(
        dict.fromkeys(n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    )


def _pattern(node: ast.AST) -> str:
    """A string argument as a file-name pattern: what an f-string fills in may be anything."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
    return ""
