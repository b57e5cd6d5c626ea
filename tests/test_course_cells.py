"""The cells of every assignment run here, without nbgrader: points, hidden parts, time, those to look at too."""

import re
import time

import matplotlib
import nbformat
import pytest
from matplotlib import pyplot

from shrinkbook.course import sources

SOURCES = sources.paths()
HIDDEN = "### BEGIN HIDDEN TESTS"
MARKED = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.MULTILINE | re.DOTALL)


@pytest.fixture(params=SOURCES, ids=[path.stem for path in SOURCES])
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def kind(cell) -> str:
    """What a cell is by its metadata."""
    grader = cell.metadata.get("nbgrader", {})
    flags = grader.get("grade", False), grader.get("solution", False), grader.get("locked", False)
    return {
        (False, True, False): "answer",
        (True, False, True): "check",
        (False, False, True): "given",
        (True, True, False): "derivation",
    }.get(flags, "free")


def cells_of(notebook, *kinds):
    return [cell for cell in notebook.cells if kind(cell) in kinds]


def executed(notebook, kinds=("answer", "check", "given", "free")):
    """Run code cells in one namespace; grade_id or id -> the error, or None, and seconds of the processor."""
    matplotlib.use("agg")
    namespace, ends = {"__name__": "__main__"}, {}
    for cell in cells_of(notebook, *kinds):
        if cell.cell_type == "code":
            name, started, error = cell.metadata.get("nbgrader", {}).get("grade_id", cell.id), time.process_time(), None
            try:
                exec(compile(cell.source, name, "exec"), namespace)
            except Exception as raised:
                error = raised
            ends[name] = error, time.process_time() - started
    pyplot.close("all")
    return ends


def test_twenty_points_are_checked_with_a_visible_and_a_hidden_part_and_five_are_read(notebook):
    checks = cells_of(notebook, "check")
    for cell in checks:
        assert HIDDEN in cell.source and not cell.source.startswith(HIDDEN)
    assert sum(cell.metadata.nbgrader.points for cell in checks) == 20
    assert [cell.metadata.nbgrader.points for cell in cells_of(notebook, "derivation")] == [5]


def test_the_librarys_answers_solve_it_in_time(notebook):
    for name, (error, seconds) in executed(notebook).items():
        assert error is None, f"{name}: {error!r}"
        assert seconds < 10, f"{name} takes {seconds:.1f} s"


def test_without_answers_no_check_passes(notebook):
    for cell in cells_of(notebook, "answer"):
        cell.source = MARKED.sub(r"\1raise NotImplementedError()", cell.source)
    ends = executed(notebook, ("answer", "check", "given"))
    for name, (error, _) in ends.items():
        assert (error is not None) == name.startswith("check-"), f"{name}: {error!r}"
