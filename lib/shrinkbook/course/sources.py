"""Assignments as committed: answers and given code in them come from the library, so that none can go stale.

A cell whose metadata has ``shrinkbook.answer`` holds functions and classes of the library with their bodies between
nbgrader's solution marks; one with ``shrinkbook.given`` holds them whole. :func:`refresh` writes both anew.
"""

import ast
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent

import nbformat
from nbformat import NotebookNode

from shrinkbook import notebooks
from shrinkbook.evidence import store

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def folder() -> Path:
    """Where the assignments' sources are, ``<paper>/<notebook>.ipynb`` each."""
    return notebooks.folder() / "assignments" / "source"


def paths() -> list[Path]:
    """The sources of all assignments."""
    return sorted(folder().glob("*/*.ipynb"))


def refresh(notebook: NotebookNode) -> NotebookNode:
    """A copy of an assignment's source whose answer and given cells are what the library says now.

    Raises:
        ValueError: a cell names something that the library does not have.
    """
    notebook = deepcopy(notebook)
    for cell in notebook.cells:
        ours = cell.metadata.get("shrinkbook", {})
        try:
            if "answer" in ours:
                cell.source = answer(ours["answer"])
            elif "given" in ours:
                cell.source = given(ours["given"])
        except ValueError as error:
            grade_id = cell.metadata.get("nbgrader", {}).get("grade_id", "without grade_id")
            raise ValueError(f"cell {grade_id}: {error}") from None
    return notebook


def refresh_file(path: Path) -> bool:
    """Refresh a source in place; whether that changed it. Errors as in :func:`refresh`, with the file's name."""
    before = nbformat.read(path, as_version=4)
    try:
        after = refresh(before)
    except ValueError as error:
        raise ValueError(f"{path.parent.name}/{path.name}: {error}") from None
    if after != before:
        store.write_text(path, nbformat.writes(after) + "\n")
    return bool(after != before)


def answer(names: Sequence[str]) -> str:
    """The code of an answer cell.

    Args:
        names: ``module:function``, ``module:Class`` (each of its methods is an answer) or ``module:Class.method`` (the
            rest of the class is given); methods of one class go into one class.

    Raises:
        ValueError: the library has no such function or class, or its body stands in the line of its ``def``.
    """
    wanted: dict[str, set[str]] = {}
    for name in names:
        module, inside = _split(name)
        top, _, method = inside.partition(".")
        wanted.setdefault(f"{module}:{top}", set()).update([method] if method else [])
    return "\n\n\n".join(_with_marks(owner, methods) for owner, methods in wanted.items())


def given(names: Sequence[str]) -> str:
    """The code of a given cell: functions, classes and constants, ``module:name`` each. Errors as in :func:`answer`."""
    text, after_constant = "", False
    for module, inside in map(_split, names):
        node = _find(module, inside)
        constant = not isinstance(node, Function | ast.ClassDef)
        gap = "" if not text else "\n" if constant and after_constant else "\n\n\n"
        text += gap + "\n".join(_lines(module)[_first(node) - 1 : _last(node)])
        after_constant = constant
    return text


def _with_marks(name: str, methods: set[str]) -> str:
    """One function or class with marks around the bodies that are asked for."""
    module, inside = _split(name)
    node = _find(module, inside)
    if isinstance(node, ast.ClassDef):
        there = {part.name: part for part in node.body if isinstance(part, Function)}
        if unknown := methods - set(there):
            raise ValueError(f"{name} has no method {', '.join(sorted(unknown))}")
        asked = [there[method] for method in there if method in methods or not methods]
    elif isinstance(node, Function):
        asked = [node]
    else:
        raise ValueError(f"{name} is neither a function nor a class")
    lines = _lines(module)
    text = {number: lines[number - 1] for number in range(_first(node), _last(node) + 1)}
    for function in asked:
        start, stop = _body(function, lines)
        margin = " " * function.body[0].col_offset
        text[start] = indent(BEGIN, margin) + "\n" + text[start]
        text[stop] = text[stop] + "\n" + indent(END, margin)
    return "\n".join(text.values())


def _body(function: Function, lines: Sequence[str]) -> tuple[int, int]:
    """First and last line of what a function does: all after its signature and docstring, comments included."""
    statements = function.body
    if ast.get_docstring(function, clean=False) is not None:
        if len(statements) == 1:
            raise ValueError(f"{function.name} has a docstring and nothing to write")
        return (statements[0].end_lineno or 0) + 1, _last(function)
    start = statements[0].lineno
    if start == function.lineno:
        raise ValueError(f"the body of {function.name} stands in the line of its def; give it a line of its own")
    while lines[start - 2].lstrip().startswith("#"):
        start -= 1
    return start, _last(function)


def _split(name: str) -> tuple[str, str]:
    module, colon, inside = name.partition(":")
    if not (colon and inside and module.startswith("shrinkbook.")):
        raise ValueError(f"'{name}' is not of the form shrinkbook.methods.module:function")
    return module, inside


def _find(module: str, inside: str) -> ast.stmt:
    """The definition of a function, class or constant at the top of a module."""
    for node in _tree(module).body:
        if inside in _defines(node):
            return node
    raise ValueError(f"{module} has no {inside}")


def _defines(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, Function | ast.ClassDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    yield from (target.id for target in targets if isinstance(target, ast.Name))


def _first(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, Function | ast.ClassDef) else []
    return min([node.lineno, *(one.lineno for one in decorators)])


def _last(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


@cache
def _file(module: str) -> str:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ValueError(f"the library has no module {module}")
    return Path(spec.origin).read_text(encoding="utf-8")


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module))


def _lines(module: str) -> list[str]:
    return _file(module).splitlines()
