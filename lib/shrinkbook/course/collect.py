"""What students handed in: found, read with suspicion, and laid into the release's own cells.

Of a submission only the words of its cells are taken. Which cell is a check, what it is worth and what it does stand
in the release, so that a removed, renamed, repeated or rewritten check earns nothing.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

STUDENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
LARGEST = 10 << 20  # bytes of a notebook
MOST = 500  # cells


class Cell(NamedTuple):
    """What is taken of a student's cell."""

    kind: str
    source: str
    grade_id: str


@dataclass(frozen=True)
class Submission:
    """One notebook of one student; ``problem`` says why it cannot be read, and then it has no cells."""

    student: str
    paper: str
    notebook: str
    cells: Sequence[Cell] = ()
    problem: str = ""


def find(folder: Path, notebooks: Mapping[str, str]) -> tuple[list[Submission], list[str]]:
    """All submissions, and one line for each thing in the folder that is none.

    Args:
        folder: has a folder a student with ``<assignment>/<notebook>.ipynb`` in it, nbgrader's way, or just
            ``<notebook>.ipynb``. Hidden files are passed over.
        notebooks: name of each notebook -> its assignment.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; make grade SUBMISSIONS=folder with one folder a student")
    found: dict[tuple[str, str], list[Path]] = {}
    complaints = list[str]()

    def complain(path: Path, words: str) -> None:
        name = str(path.relative_to(folder))
        complaints.append(
            f"{name if name.isprintable() else ascii(name)}: {words}"
        )  # names can hold what moves a cursor

    for student in _entries(folder):
        if student.name == "marks.csv":
            continue
        if student.is_symlink() or not student.is_dir():
            complain(student, "not the folder of a student; passed over")
            continue
        if not STUDENT.fullmatch(student.name):
            complain(student, "a student's folder is named in letters, digits and . _ @ -; passed over")
            continue
        for path in _notebooks(student, set(notebooks.values())):
            paper = notebooks.get(path.stem)
            inside = path.parent.name if path.parent != student else paper
            if path.suffix == ".ipynb" and paper and inside == paper:
                found.setdefault((student.name, path.stem), []).append(path)
            else:
                complain(path, "not the name of a notebook of an assignment; passed over")
        if not any(name == student.name for name, _ in found):
            complain(student, "no notebook of an assignment")
    made = []
    for (name, notebook), paths in found.items():
        if len(paths) == 1:
            cells, problem = _read(paths[0])
            made.append(Submission(name, notebooks[notebook], notebook, cells, problem))
        else:
            places = " and ".join(str(path.relative_to(folder / name)) for path in paths)
            made.append(Submission(name, notebooks[notebook], notebook, problem=f"handed in twice, as {places}"))
    return made, complaints


def rebuilt(cells: Sequence[Cell], release: NotebookNode) -> tuple[NotebookNode, str]:
    """The release with a student's answers in it, and with the student's other cells where they stood.

    Args:
        cells: as handed in.
        release: the notebook as released.

    Returns:
        the notebook, and a remark on cells that had to be put back or stood there twice.
    """
    known = {cell.metadata.nbgrader.grade_id: cell for cell in release.cells if "nbgrader" in cell.metadata}
    theirs: dict[str, str] = {}
    others: dict[str, list[NotebookNode]] = {"": []}
    place, twice = "", []
    for cell in cells:
        ours = known.get(cell.grade_id)
        if ours is not None and cell.grade_id not in theirs and cell.kind == ours.cell_type:
            theirs[cell.grade_id], place = cell.source, cell.grade_id
            continue
        if cell.grade_id in theirs:
            twice.append(cell.grade_id)
        if cell.kind in ("code", "markdown"):
            made = new_code_cell(cell.source) if cell.kind == "code" else new_markdown_cell(cell.source)
            others.setdefault(place, []).append(made)
    notebook = new_notebook(metadata=release.metadata, cells=list(others[""]))
    for grade_id, ours in known.items():
        made = NotebookNode(ours)
        if ours.metadata.nbgrader.solution and grade_id in theirs:
            made.source = theirs[grade_id]
        notebook.cells += [made, *others.get(grade_id, [])]
    for number, one in enumerate(notebook.cells):
        one.id = f"cell-{number:03d}"
    gone = [name for name in known if name not in theirs]
    remarks = [f"put back: {', '.join(gone)}"] if gone else []
    remarks += [f"twice, the first counts: {', '.join(dict.fromkeys(twice))}"] if twice else []
    return notebook, "; ".join(remarks)


def _entries(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]


def _notebooks(student: Path, papers: set[str]) -> Iterator[Path]:
    """Files of a student, also those in folders named as an assignment; no link is followed."""
    for path in _entries(student):
        if path.name in papers and path.is_dir() and not path.is_symlink():
            yield from _entries(path)
        else:
            yield path


def _read(path: Path) -> tuple[Sequence[Cell], str]:
    """Cells of a notebook, or why they cannot be read."""
    try:
        return _cells(_text(path)), ""
    except OSError as error:
        return (), f"cannot be read ({error.strerror})"
    except RecursionError:
        return (), "does not parse: nested too deeply"
    except UnicodeDecodeError:
        return (), "does not parse: not UTF-8"
    except json.JSONDecodeError as error:
        return (), f"does not parse: not JSON in line {error.lineno}"
    except ValueError as error:
        return (), str(error)


def _text(path: Path) -> str:
    """A regular file's text; no link, no pipe, nothing large."""
    if path.is_symlink():
        raise ValueError("is a link, not a file")
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("is not a regular file")
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"is larger than {LARGEST >> 20} MiB; hand it in without outputs")
    return content.decode("utf-8")


def _cells(text: str) -> list[Cell]:
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("nbformat") != 4 or not isinstance(content.get("cells"), list):
        raise ValueError("does not parse: not a notebook of format 4")
    if len(content["cells"]) > MOST:
        raise ValueError(f"has more than {MOST} cells")
    made = []
    for number, cell in enumerate(content["cells"], start=1):
        source = cell.get("source") if isinstance(cell, dict) else None
        if isinstance(source, list) and all(isinstance(line, str) for line in source):
            source = "".join(source)
        if not isinstance(source, str) or not isinstance(cell.get("cell_type"), str):
            raise ValueError(f"does not parse: cell {number} is not a cell of a notebook")
        marks = cell.get("metadata")
        marks = marks.get("nbgrader") if isinstance(marks, dict) else None
        grade_id = marks.get("grade_id") if isinstance(marks, dict) else None
        source = source.encode("utf-8", "replace").decode()  # lone surrogates cannot be written again
        made.append(Cell(cell["cell_type"], source, grade_id if isinstance(grade_id, str) else ""))
    return made
