"""Assignments are filled from the library, it is laid out without answers, submissions are read with suspicion."""

import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from shrinkbook.course import collect, layout, sandbox, sources
from shrinkbook.evidence import store
from shrinkbook.experiments import catalogue

TINY = store.root() / "tests" / "assignment" / "tiny" / "index_bits.ipynb"
SIZES = "shrinkbook.methods.kernel_sizes"
NOTEBOOKS = {"index_bits": "tiny", "filter_pruning": "li2017"}


def test_the_tiny_assignment_is_as_the_library_says():
    notebook = nbformat.read(TINY, as_version=4)
    assert sources.refresh(notebook) == notebook


def test_refresh_brings_back_what_was_edited(tmp_path):
    notebook = nbformat.read(TINY, as_version=4)
    stale = next(cell for cell in notebook.cells if "answer" in cell.metadata.get("shrinkbook", {}))
    stale.source = stale.source.replace("bit_length", "bit_count")
    path = tmp_path / "tiny" / TINY.name
    path.parent.mkdir()
    nbformat.write(notebook, path)
    assert sources.refresh_file(path) and not sources.refresh_file(path)
    assert path.read_text(encoding="utf-8") == TINY.read_text(encoding="utf-8")


def test_an_answer_is_the_library_with_marks_around_the_body():
    import inspect

    from shrinkbook.methods import filter_criteria, lccl

    text = sources.answer(["shrinkbook.methods.filter_criteria:filter_l1"])
    body = text[text.index(sources.BEGIN) + len(sources.BEGIN) : text.index(sources.END)]
    assert body.strip() == "return weight.abs().sum(dim=(1, 2, 3))"
    marks = (f"    {sources.BEGIN}\n", f"    {sources.END}")
    assert text.replace(marks[0], "").replace(marks[1], "") == inspect.getsource(filter_criteria.filter_l1)
    two = sources.answer(["shrinkbook.methods.lccl:LCCL.__init__", "shrinkbook.methods.lccl:LCCL.forward"])
    assert two.count("class LCCL") == 1 and two.count(sources.BEGIN) == two.count(sources.END) == 2
    lines = [line for line in two.splitlines() if line.strip() not in (sources.BEGIN, sources.END)]
    assert "\n".join(lines) + "\n" == inspect.getsource(lccl.LCCL)
    assert "amax" in two[two.rindex(sources.END) :]  # the method that is not asked for is given
    whole = sources.answer(["shrinkbook.methods.lccl:LCCL"])
    assert whole.count(sources.BEGIN) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shrinkbook.methods.no_such:f", "no module"),
        (f"{SIZES}:no_such", "has no no_such"),
        (f"{SIZES}:Layer.no_such", "has no method"),
        (f"{SIZES}:WEIGHT_BITS", "neither a function nor a class"),
        (SIZES, "not of the form"),
    ],
)
def test_what_the_library_does_not_have_is_named_with_its_cell(name, words):
    notebook = nbformat.read(TINY, as_version=4)
    cell = next(cell for cell in notebook.cells if "answer" in cell.metadata.get("shrinkbook", {}))
    cell.metadata.shrinkbook.answer = [name]
    with pytest.raises(ValueError, match=f"answer-index_bits: .*{words}"):
        sources.refresh(notebook)


def test_blocked_is_every_module_that_leads_to_the_answer():
    sentences = layout.blocked([SIZES])
    assert sentences[SIZES] == f"{SIZES}: this assignment asks you to write what it holds yourself"
    assert "shrinkbook.methods.clustered_bytes" in sentences  # imports it
    assert "shrinkbook.experiments.catalogue" in sentences  # at several steps
    assert not {"shrinkbook", "shrinkbook.methods", "shrinkbook.nets", "shrinkbook.methods.vbmf"} & set(sentences)
    with pytest.raises(ValueError, match="no_such"):
        layout.blocked(["shrinkbook.methods.no_such"])


def test_the_library_laid_out_imports_all_but_the_answers(tmp_path):
    layout.lay_out(tmp_path, [SIZES])
    assert "bit_length" not in "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("kernel_*.py"))
    code = f"""
import importlib, shrinkbook, sys
assert shrinkbook.__file__.startswith({str(tmp_path)!r})
import shrinkbook.methods.kernel_transforms, shrinkbook.nets, shrinkbook.course.checks
for name in {[SIZES, "shrinkbook.methods.kernel_clustering"]!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == f"{SIZES}: this assignment asks you to write what it holds yourself"
    assert second.startswith(f"shrinkbook.methods.kernel_clustering imports {SIZES}: ")


def test_the_page_for_teachers_states_the_limits():
    page = (sources.folder().parent / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    limits = sandbox.Limits()
    for words in (
        f"interrupted after {limits.cell} seconds",
        f"ended after {limits.notebook // 60} minutes",
        f"at {limits.memory // 1024} GiB of memory",
        f"at most {limits.processes} processes and threads",
        f"files have at most {limits.files} MiB",
        f"{limits.printed} MiB of output",
        f"larger than {collect.LARGEST // sandbox.MIB} MiB",
        "this assignment asks you to write what it holds yourself",
    ):
        assert words in page
    table = {key: name for name, key in re.findall(r"\| `(\w+)` \| (\w+): ", page)}
    assert table == {key: name.partition("_")[2] for key, name in catalogue.NOTEBOOKS.items()}


def hand_in(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_both_layouts_are_found_and_each_fault_gets_one_line(tmp_path):
    good = TINY.read_text(encoding="utf-8")
    secret = hand_in(tmp_path, "secret.ipynb", good)
    folder = tmp_path / "in"
    hand_in(folder, "ann/tiny/index_bits.ipynb", good)
    hand_in(folder, "bob/index_bits.ipynb", good)
    hand_in(folder, "bob/index_bits-Copy1.ipynb", good)
    hand_in(folder, "bob/notes.txt", "mine")
    hand_in(folder, "bob/.ipynb_checkpoints/index_bits.ipynb", good)
    hand_in(folder, "cid/li2017/index_bits.ipynb", good)
    hand_in(folder, "dan/tiny/index_bits.ipynb", "{")
    hand_in(folder, "eve/index_bits.ipynb", good)
    hand_in(folder, "eve/tiny/index_bits.ipynb", good)
    hand_in(folder, "fay/index_bits.ipynb", json.dumps({"nbformat": 4, "cells": [1]}))
    hand_in(folder, "gus/index_bits.ipynb", "[" * 100_000)
    hand_in(folder, "hal/index_bits.ipynb", "x" * (collect.LARGEST + 1))
    (folder / "ian").mkdir()
    (folder / "ian" / "index_bits.ipynb").symlink_to(secret)
    (folder / "joe").symlink_to(folder / "ann")
    (folder / "kim").mkdir()
    os.mkfifo(folder / "kim" / "index_bits.ipynb")
    hand_in(folder, "=cmd()/index_bits.ipynb", good)
    hand_in(folder, "bob/\x1b[2J.ipynb", good)
    hand_in(folder, "index_bits.ipynb", good)
    hand_in(folder, "marks.csv", "")
    found, complaints = collect.find(folder, NOTEBOOKS)
    problems = {one.student: one.problem for one in found}
    assert problems == {
        "ann": "",
        "bob": "",
        "dan": "does not parse: not JSON in line 1",
        "eve": "handed in twice, as index_bits.ipynb and tiny/index_bits.ipynb",
        "fay": "does not parse: cell 1 is not a cell of a notebook",
        "gus": "does not parse: nested too deeply",
        "hal": "is larger than 10 MiB; hand it in without outputs",
        "ian": "is a link, not a file",
        "kim": "is not a regular file",
    }
    assert {(one.paper, one.notebook) for one in found} == {("tiny", "index_bits")}
    assert all(bool(one.cells) != bool(one.problem) for one in found)
    assert sorted(line.partition(":")[0] for line in complaints) == [
        "'bob/\\x1b[2J.ipynb'",
        "=cmd()",
        "bob/index_bits-Copy1.ipynb",
        "bob/notes.txt",
        "cid",
        "cid/li2017/index_bits.ipynb",
        "index_bits.ipynb",
        "joe",
    ]
    with pytest.raises(ValueError, match="is no folder"):
        collect.find(tmp_path / "none", NOTEBOOKS)


def test_of_a_submission_only_words_are_taken():
    release = nbformat.read(
        TINY, as_version=4
    )  # with its solutions: what is restored can be told from what was written
    code, words = "def index_bits(k, transforms=1): ...", "because"
    cells = [
        collect.Cell("markdown", "my notes", ""),
        collect.Cell("code", "helper = 1", "mine"),
        collect.Cell("code", code, "answer-index_bits"),
        collect.Cell("code", "again = 2", "answer-index_bits"),
        collect.Cell("markdown", "a check turned into text", "check-power"),
        collect.Cell("code", "pass", "check-any"),
        collect.Cell("markdown", words, "derivation"),
        collect.Cell("raw", "raw", ""),
        collect.Cell("code", "last = 3", ""),
    ]
    notebook, remark = collect.rebuilt(cells, release)
    ours = {cell.metadata.nbgrader.grade_id: cell for cell in release.cells if "nbgrader" in cell.metadata}
    theirs = {cell.metadata.nbgrader.grade_id: cell for cell in notebook.cells if "nbgrader" in cell.metadata}
    assert list(theirs) == list(ours)
    assert all(theirs[name].metadata == ours[name].metadata for name in ours)
    assert theirs["answer-index_bits"].source == code and theirs["derivation"].source == words
    for name in ("setup", "given", "check-power", "check-any"):
        assert theirs[name].source == ours[name].source
    order = [cell.source for cell in notebook.cells]
    assert order[:2] == ["my notes", "helper = 1"] and order[-1] == "last = 3" and "raw" not in order
    assert order.index("again = 2") == order.index(code) + 1
    assert remark == "put back: setup, given, check-power; twice, the first counts: answer-index_bits"
    nbformat.validate(notebook)
