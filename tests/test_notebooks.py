"""Notebooks: executed from top to bottom, told in the same order, and honest when they fail."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from shrinkbook import notebooks
from shrinkbook.experiments import catalogue

SOURCES = notebooks.paths(catalogue.NOTEBOOKS)
HEADINGS = [
    "Claim",
    "The idea in one picture",
    "The method, equation by equation",
    "Check without training",
    "Run",
    "Paper and ours, side by side",
    "Verdicts and deviations",
    "What other code does differently",
    "Exercises",
]


def cells_of(path: Path, kind: str) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def write(path: Path, *sources: str, executed: bool = False) -> Path:
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    if executed:
        for number, cell in enumerate(notebook.cells, start=1):
            cell.execution_count = number
    nbformat.write(notebook, path)
    return path


@pytest.mark.parametrize("path", SOURCES.values(), ids=SOURCES)
def test_stored_notebook_was_executed_whole(path):
    assert notebooks.complaint(path) is None


@pytest.mark.parametrize("key", list(catalogue.NOTEBOOKS))
def test_nine_headings_in_order(key):
    lines = [line for cell in cells_of(SOURCES[key], "markdown") for line in cell.source.splitlines()]
    assert [line[3:] for line in lines if line.startswith("## ")] == HEADINGS


@pytest.mark.parametrize("path", SOURCES.values(), ids=SOURCES)
def test_cells_compute_nothing_the_library_should(path):
    for cell in cells_of(path, "code"):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 5, f"{node.name} is longer than five lines"
            assert not (isinstance(node, ast.Name) and node.id in ("epoch", "epochs"))


@pytest.mark.parametrize("path", SOURCES.values(), ids=SOURCES)
def test_every_ignored_output_says_why(path):
    for cell in cells_of(path, "code"):
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            assert cell.source.startswith("# nbval ignores this output: ")
        assert "nbval-skip" not in cell.metadata.get("tags", [])


@pytest.mark.parametrize("key", list(catalogue.NOTEBOOKS))
def test_every_figure_of_the_paper_has_its_place(key):
    from shrinkbook.evidence import claims

    text = "".join(cell.source for cell in nbformat.read(SOURCES[key], as_version=4).cells).lower().replace(" ", "")
    figures = claims.load(key).figures
    missing = [name for name in figures if name not in text and name.rstrip("abc") not in text]
    assert not missing
    pictures = [o for c in cells_of(SOURCES[key], "code") for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= len(figures) // 2


@pytest.mark.parametrize("key", list(catalogue.NOTEBOOKS))
def test_parameters_that_reproduce_passes_exist(key):
    known = papermill.inspect_notebook(str(SOURCES[key]))
    assert {"profile", "seeds", "device"} <= set(known)
    assert all(parameter["help"] for parameter in known.values())
    assert "profile" in papermill.inspect_notebook(str(SOURCES["start"]))


def test_parameters_of_the_comparison_exist():
    comparison = papermill.inspect_notebook(str(SOURCES["head_to_head"]))
    assert {"profile", "seeds", "device", "where"} <= set(comparison)
    assert all(parameter["help"] for parameter in comparison.values())


def test_stripped_half_executed_and_failed_notebooks_are_found(tmp_path):
    assert "not executed in order" in (notebooks.complaint(write(tmp_path / "stripped.ipynb", "1", "2")) or "")
    half = nbformat.read(write(tmp_path / "half.ipynb", "1", "2", executed=True), as_version=4)
    half.cells[1].execution_count = None
    nbformat.write(half, tmp_path / "half.ipynb")
    assert "code cell 2 of 2" in (notebooks.complaint(tmp_path / "half.ipynb") or "")
    half.cells[1].execution_count = 2
    half.cells[1].outputs = [new_output("error", ename="E", evalue="", traceback=[])]
    nbformat.write(half, tmp_path / "half.ipynb")
    assert "code cell 2 ended with an error" in (notebooks.complaint(tmp_path / "half.ipynb") or "")
    assert notebooks.complaint(write(tmp_path / "good.ipynb", "1", "2", executed=True)) is None


def test_failing_cell_keeps_the_evidence_and_the_earlier_result(tmp_path):
    target = write(tmp_path / "out" / "x.ipynb", "'earlier'") if (tmp_path / "out").mkdir() is None else None
    before = target.read_bytes()
    problem = notebooks.execute(write(tmp_path / "x.ipynb", "a = 1", "1 / 0", "a"), target, "quick", {})
    assert "ZeroDivisionError" in problem
    assert str(tmp_path / "out" / "x.failed.ipynb") in problem
    assert target.read_bytes() == before
    failed = nbformat.read(tmp_path / "out" / "x.failed.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in failed.cells for output in cell.get("outputs", []))
    assert not list((tmp_path / "out").glob("*.part.ipynb"))
    assert notebooks.execute(write(tmp_path / "x.ipynb", "a = 1"), target, "quick", {}) is None
    assert not (tmp_path / "out" / "x.failed.ipynb").exists()


def test_a_silent_exit_does_not_pass(tmp_path):
    problem = notebooks.execute(
        write(tmp_path / "x.ipynb", "import sys; sys.exit(0)", "1"), tmp_path / "y.ipynb", "quick", {}
    )
    assert problem is not None
    assert not (tmp_path / "y.ipynb").exists()


def test_a_dead_kernel_is_noticed_at_once(tmp_path):
    started = time.monotonic()
    problem = notebooks.execute(
        write(tmp_path / "x.ipynb", "import os; os._exit(1)", "1"), tmp_path / "y.ipynb", "quick", {}
    )
    assert problem is not None
    assert time.monotonic() - started < 60


def test_nbval_gives_up_on_a_dead_kernel_and_sees_a_changed_result(tmp_path):
    def validate(path: Path) -> subprocess.CompletedProcess:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "--rootdir",
            str(tmp_path),
        ]
        command += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout", "5", str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=os.environ)

    dead = write(tmp_path / "dead.ipynb", "import os; os._exit(1)", "1", executed=True)
    assert validate(dead).returncode != 0
    changed = nbformat.read(write(tmp_path / "changed.ipynb", "'reproduced'", executed=True), as_version=4)
    changed.cells[0].outputs = [new_output("execute_result", {"text/plain": "'contradicted'"}, execution_count=1)]
    nbformat.write(changed, tmp_path / "changed.ipynb")
    assert validate(tmp_path / "changed.ipynb").returncode == 1


def test_normalise_leaves_only_what_results_decide(tmp_path):
    source = write(tmp_path / "x.ipynb", "x = 1\nx")
    for name, noise in (("a.ipynb", "one"), ("b.ipynb", "two")):
        assert notebooks.execute(source, tmp_path / name, "quick", {}) is None
        notebook = nbformat.read(tmp_path / name, as_version=4)
        notebook.cells[0].metadata["papermill"] = {"duration": noise}
        nbformat.write(notebook, tmp_path / name)
        notebooks.normalise(tmp_path / name)
    assert (tmp_path / "a.ipynb").read_bytes() == (tmp_path / "b.ipynb").read_bytes()
    assert notebooks.complaint(tmp_path / "a.ipynb") is None


def test_the_users_own_startup_files_stay_out(tmp_path, monkeypatch):
    startup = tmp_path / "home" / ".ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("raise SystemExit('leaked')\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    source = write(
        tmp_path / "x.ipynb", "import os\nprint(os.environ['ONEDNN_MAX_CPU_ISA'], os.environ['OMP_NUM_THREADS'])"
    )
    assert notebooks.execute(source, tmp_path / "y.ipynb", "quick", {}) is None
    outputs = [output for cell in cells_of(tmp_path / "y.ipynb", "code") for output in cell.outputs]
    assert [output.text for output in outputs] == ["AVX2 1\n"]
