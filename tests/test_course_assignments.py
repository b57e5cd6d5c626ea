"""Every assignment: its solutions get all points, its release none, and nothing of the answers is in the release."""

import re
import shutil
from fractions import Fraction

import nbformat
import pytest

from shrinkbook.course import collect, layout, sandbox, sources
from shrinkbook.experiments import catalogue

PATHS = sources.paths()
SOLUTION = re.compile(rf"( *){sources.BEGIN}\n.*?{sources.END}", re.S)
HIDDEN = re.compile(r"### BEGIN HIDDEN TESTS\n(.*?)### END HIDDEN TESTS", re.S)
assignments = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def marked(notebook):
    """Cells by their grade_id."""
    cells = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
    found = {cell.metadata.nbgrader.grade_id: cell for cell in cells}
    assert len(found) == len(cells)
    return found


@assignments
def test_answers_are_what_the_library_says(path):
    assert not sources.refresh_file(path), f"{path} was stale and is refreshed; commit it"


@assignments
def test_it_keeps_the_rules_of_the_course(path):
    notebook = nbformat.read(path, as_version=4)
    paper = path.parent.name
    assert notebook.metadata.kernelspec.name == "python3" and notebook.metadata.shrinkbook.paper == paper
    assert catalogue.NOTEBOOKS[paper].partition("_")[2] == path.stem
    blocked = layout.blocked(notebook.metadata.shrinkbook.blocked)
    cells = marked(notebook)
    for name, cell in cells.items():
        rules, ours = cell.metadata.nbgrader, cell.metadata.get("shrinkbook", {})
        assert rules.cell_type == cell.cell_type and rules.schema_version == 3 and not rules.task
        assert rules.locked != rules.solution
        for answer in ours.get("answer", []):
            assert answer.partition(":")[0] in blocked
        if name.startswith("check-"):
            assert rules.grade and not rules.solution and rules.points > 0
        elif name.startswith("answer-"):
            assert "answer" in ours and rules.solution and not rules.grade
        elif name == "derivation":
            assert rules.grade and rules.solution and SOLUTION.search(cell.source)
        else:
            assert rules.locked and not rules.grade
    assert "derivation" in cells and any(HIDDEN.search(cell.source) for cell in cells.values())
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.parametrize(
    ("stem", "module"),
    [
        ("lccl", "lccl_kernels"),  # gather, of all positions, is im2col
        ("kernel_clustering", "clustered_layers"),  # Codebook(...).effective() is variants
    ],
)
def test_what_gives_an_answer_by_another_name_is_blocked_too(stem, module):
    (path,) = [path for path in PATHS if path.stem == stem]
    blocked = layout.blocked(nbformat.read(path, as_version=4).metadata.shrinkbook.blocked)
    assert f"shrinkbook.methods.{module}" in blocked
    assert "shrinkbook.evidence.figures" not in blocked  # both assignments draw with it


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    pytest.importorskip("nbgrader", reason="releases need requirements-course.lock: run make assignments")
    from shrinkbook.course.engine import Course

    return Course(tmp_path_factory.mktemp("course"), PATHS)


@assignments
def test_the_release_has_no_answer_and_no_hidden_test(course, path):
    source, release = nbformat.read(path, as_version=4), nbformat.read(course.release(path.stem), as_version=4)
    text = nbformat.writes(release)
    for mark in ("BEGIN SOLUTION", "END SOLUTION", "HIDDEN TESTS"):
        assert mark not in text
    before, after = marked(source), marked(release)
    assert list(before) == list(after)
    for name, cell in before.items():
        stub = "YOUR ANSWER HERE" if name == "derivation" else r"\1# YOUR CODE HERE\n\1raise NotImplementedError()"
        expected = SOLUTION.sub(stub, HIDDEN.sub("", cell.source))
        assert after[name].source.strip() == expected.strip()
        for hidden in HIDDEN.findall(cell.source):
            assert hidden.strip() and hidden not in text


@assignments
def test_solutions_get_all_points_and_the_release_none(course, path, tmp_path):
    for student, given in {"solved": path, "bare": course.release(path.stem)}.items():
        (tmp_path / "in" / student).mkdir(parents=True)
        shutil.copyfile(given, tmp_path / "in" / student / path.name)
    found, complaints = collect.find(tmp_path / "in", course.papers)
    assert not complaints
    graded = {
        one.student: course.grade(one, tmp_path / "libraries", sandbox.Limits(), safe=False) for one in found
    }  # without walls: it is our own code, and the library is laid out as for students
    for one in graded.values():
        assert one.notes == []
    checks = {name: most for name, most in graded["solved"].most.items() if name != "derivation"}
    assert {name: graded["solved"].points[name] for name in checks} == checks
    assert graded["solved"].points["derivation"] is None  # a person reads it
    assert sum(Fraction(points) for points in graded["bare"].points.values()) == 0
