"""The library as a student's code may see it: the modules that hold the answers are gone, and all that import them."""

import ast
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import shrinkbook

ROOT = Path(shrinkbook.__file__).parent


def blocked(answers: Collection[str]) -> dict[str, str]:
    """What cannot be imported while an assignment is graded, and the sentence that an attempt gets.

    Args:
        answers: modules that hold the answers.

    Returns:
        module -> sentence: the modules named, and every module of the library that imports one, directly or not.

    Raises:
        ValueError: the library has no such module.
    """
    imports = _imports()
    if unknown := sorted(set(answers) - set(imports)):
        raise ValueError(f"blocked modules that the library does not have: {', '.join(unknown)}")
    reasons = {name: f"{name}: this assignment asks you to write what it holds yourself" for name in answers}
    while True:
        more = {name: used & set(reasons) for name, used in imports.items() if name not in reasons}
        if not any(more.values()):
            return reasons
        for name, used in more.items():
            if used:
                first = min(used)
                root = reasons[first].split(":")[0].split(" imports ")[-1]
                reasons[name] = f"{name} imports {root}: this assignment asks you to write what it holds yourself"


def lay_out(folder: Path, answers: Collection[str]) -> Path:
    """Write the library without what is :func:`blocked`, for ``PYTHONPATH``; in its place stand modules that raise.

    Args:
        folder: made anew; may hold nothing else.
        answers: modules that hold the answers.

    Raises:
        ValueError: as in :func:`blocked`.
    """
    sentences = blocked(answers)
    for name, path in _files().items():
        target = folder / path.relative_to(ROOT.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in sentences:
            target.write_text(f"raise ImportError({sentences[name]!r})\n", encoding="utf-8")
        else:
            target.write_bytes(path.read_bytes())
    return folder


@cache
def _files() -> dict[str, Path]:
    """Source file of each module of the library."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def _imports() -> dict[str, set[str]]:
    """Module -> modules of the library that importing it can import, its own packages included."""
    files = _files()
    return {name: {used for used in _names(name, path) if used in files} - {name} for name, path in files.items()}


def _names(name: str, path: Path) -> Iterator[str]:
    yield from _up(name)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for one in node.names:
                yield from _up(one.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from _up(node.module)
            yield from (f"{node.module}.{one.name}" for one in node.names)


def _up(name: str) -> Iterator[str]:
    """A module and the packages it lies in: importing it imports them."""
    parts = name.split(".")
    yield from (".".join(parts[: stop + 1]) for stop in range(len(parts)))
