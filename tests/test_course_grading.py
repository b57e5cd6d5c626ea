"""Submissions of every sort, graded in one go in a real sandbox: each gets what it deserves and harms nothing else."""

import csv
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

from shrinkbook.course import sandbox
from shrinkbook.course.sandbox import Limits
from shrinkbook.evidence import store

pytest.importorskip("nbgrader", reason="grading needs requirements-course.lock: run make assignments")
NO_BOX = sandbox.missing()
boxed = pytest.mark.skipif(bool(NO_BOX), reason=NO_BOX)

ROOT = store.root()
TINY = ROOT / "tests" / "assignment" / "tiny" / "index_bits.ipynb"
SMALL = Limits(cell=10, notebook=45, memory=700, processes=40, files=8, printed=1)
RIGHT = "def index_bits(k, transforms=1):\n    return (k - 1).bit_length() + (transforms - 1).bit_length()\n"
TOKEN = "the-token-of-the-grader"

THIEF = """
import os
for path in {paths!r}:
    try:
        print("read", path, os.listdir(path) if os.path.isdir(path) else open(path, "rb").read())
    except OSError as error:
        print("refused", path)
for path in {paths!r} + ["/usr/x", "/library/x", {home!r} + "/x"]:
    try:
        open(path, "wb").write(b"gone")
        print("wrote", path)
    except OSError as error:
        print("kept", path)
print(dict(os.environ), "home:", [name for name in os.listdir(os.path.expanduser("~")) if name[0] != "."])
"""

CALLER = """
import socket
for address in [("127.0.0.1", {port}), ("1.1.1.1", 53)]:
    try:
        socket.create_connection(address, timeout=1)
        print("called", address)
    except OSError as error:
        print("alone", address)
print([name for _, name in socket.if_nameindex()])
"""

ASKER = """
try:
    block = bytearray(2_000_000_000)
except MemoryError:
    print("one process: MemoryError")
"""

EATER = """
import os, time
for _ in range(20):
    if os.fork() == 0:
        block = bytearray(200_000_000)
        time.sleep(60)
        os._exit(0)
time.sleep(3)
"""

BREEDER = """
import os, time
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        count += 1
except OSError:
    print("stopped at", count)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""

LIAR = "get_ipython().input_transformers_cleanup.append(lambda lines: ['pass'])\n"

SHOWER = """
from IPython.display import HTML, Javascript, SVG, display
display(HTML("<script>alert(1)</script>"), Javascript("alert(2)"), SVG("<svg onload='alert(3)'></svg>"))
get_ipython().display_formatter.format = lambda *args, **more: ({"text/plain": "<script>alert(4)</script>"}, {})
display({"image/png": 'AAAA" onerror="alert(5)'}, raw=True)
print("<script>alert(6)</script>")
display({"text/plain": "<b>seven</b>"}, raw=True, metadata={"text/plain": {"x": '"><script>alert(7)</script>'}})
import base64
display({"image/png": base64.b64encode(b"picture").decode()}, raw=True)
"""

SOCKETS = "import os, time, ipykernel\nos.chdir(os.path.dirname(ipykernel.get_connection_file()))\n"

MARKDOWN = (
    "<script>alert(8)</script> <img src=x onerror=alert(9)> <a href='javascript:alert(10)'>a</a> "
    "\n\n[b](javascript:alert(11)) $x<y$ **bold** ![far](https://example.org/a.png) "
    "![near](data:image/svg+xml;base64,AAAA) <a href='data:text/html,x'>c</a> <p style='position:fixed'>d</p>\n\n"
    r"$\href{javascript:alert(12)}{z}$"
)


def solved(release, code, *extra):
    """A release with an answer, a derivation and cells at the end of the student's part."""
    notebook = nbformat.from_dict(release)
    for index, cell in reversed(list(enumerate(notebook.cells))):
        grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
        if grade_id == "answer-index_bits":
            cell.source = code
            notebook.cells[index + 1 : index + 1] = extra
        if grade_id == "derivation":
            cell.source = "Each centroid needs its own number."
    return notebook


def tampered(release):
    """No answer, but checks that cannot fail, in every way one may think of."""
    notebook = nbformat.from_dict(release)
    by_id = {cell.metadata.get("nbgrader", {}).get("grade_id"): cell for cell in notebook.cells}
    power, other = by_id["check-power"], by_id["check-any"]
    power.source, power.metadata.nbgrader.points = "pass", 100
    power.metadata.tags = ["skip-execution", "raises-exception"]
    twin = new_code_cell("pass", metadata={"nbgrader": dict(power.metadata.nbgrader)})
    other.metadata.nbgrader.update(grade_id="check-mine", points=50)
    other.source = "50.0"
    by_id["derivation"].metadata.nbgrader.update(solution=False, locked=True, points=30)
    new = new_code_cell("7", metadata={"nbgrader": {**other.metadata.nbgrader, "grade_id": "bonus"}})
    notebook.cells.insert(0, twin)
    notebook.cells.append(new)
    notebook.metadata.kernelspec.name = "bash"
    notebook.metadata.shrinkbook = {"blocked": []}
    return notebook


def fingerprint(*folders):
    """What is in folders: names, links and contents."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if "__pycache__" not in path.parts and ".ipynb_checkpoints" not in path.parts:
                content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
                digest.update(f"{path} {path.is_symlink()} {len(content)} ".encode() + content)
    return digest.hexdigest()


def rows(folder, name="grades.csv"):
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Classroom:
    """What one call of grade made of all students."""

    def __init__(self, folder, monkeypatch):
        from shrinkbook.course import grading

        self.submissions, self.graded, self.said = folder / "submissions", folder / "build" / "graded", list[str]()
        release = nbformat.read(grading.release([TINY], folder / "release")[0], as_version=4)
        secret = folder / "secret.txt"
        secret.write_text(TOKEN, encoding="utf-8")
        monkeypatch.setenv("GRADER_TOKEN", TOKEN)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.paths = [
            *map(str, (secret, self.submissions, folder, TINY, ROOT / "Makefile", ROOT / "tests", ROOT / ".git")),
            str(ROOT / "lib" / "shrinkbook" / "methods" / "kernel_sizes.py"),
            *(
                "/etc/shadow",
                "/etc/passwd",
                "/proc/1/environ",
                str(Path("/proc/1/root", "etc")),
                str(Path.home() / ".ssh"),
            ),
        ]
        thief = THIEF.format(paths=self.paths, home=str(Path.home()))
        caller = CALLER.format(port=self.server.getsockname()[1])
        students = {
            "anna": solved(release, RIGHT),
            "bare": release,
            "wrong": solved(release, "def index_bits(k, transforms=1):\n    return k.bit_length()"),
            "empty": nbformat.v4.new_notebook(),
            "syntax": solved(release, "def index_bits(k:\n"),
            "tampered": tampered(release),
            "loop": solved(release, "def index_bits(k, transforms=1):\n    while True: pass"),
            "eater": solved(release, RIGHT, new_code_cell(ASKER), new_code_cell(EATER)),
            "breeder": solved(release, RIGHT, new_code_cell(BREEDER)),
            "thief": solved(release, RIGHT, new_code_cell(thief)),
            "caller": solved(release, RIGHT, new_code_cell(caller)),
            "importer": solved(release, "from shrinkbook.methods.kernel_sizes import index_bits"),
            "roundabout": solved(release, "from shrinkbook.methods.clustered_bytes import index_bits"),
            "liar": solved(release, LIAR),
            "leaver": solved(release, "import os\nos._exit(0)"),
            "shower": solved(release, RIGHT, new_markdown_cell(MARKDOWN), new_code_cell(SHOWER)),
            "zoe": solved(release, RIGHT),
        }
        for name, notebook in students.items():
            path = self.submissions / name / ("tiny" if name < "m" else "") / "index_bits.ipynb"
            path.parent.mkdir(parents=True)
            nbformat.write(notebook, path)
        (self.submissions / "scrap").mkdir()
        (self.submissions / "scrap" / "index_bits.ipynb").write_text("{", encoding="utf-8")
        outside = [self.submissions, *(ROOT / name for name in ("lib", "tests", "notebooks", "data/papers"))]
        before = fingerprint(*outside)
        grading.grade(self.submissions, [TINY], self.graded, limits=SMALL, say=self.said.append)
        self.unchanged = before == fingerprint(*outside)
        self.rows = {row["student"]: row for row in rows(self.graded)}
        self.server.close()

    def printed(self, student):
        """All that a student's cells printed, in one text."""
        path = self.graded / "autograded" / student / "tiny" / "index_bits.ipynb"
        outputs = [out for cell in nbformat.read(path, as_version=4).cells for out in cell.get("outputs", [])]
        return "".join(out.get("text", "") + " ".join(out.get("traceback", [])) for out in outputs)


@pytest.fixture(scope="module")
def classroom(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Classroom(tmp_path_factory.mktemp("classroom"), monkeypatch)


@boxed
@pytest.mark.parametrize(
    ("student", "points", "note"),
    [
        ("anna", "check-power 2/2; check-any 3/3; derivation ?/1", ""),
        ("bare", "check-power 0/2; check-any 0/3; derivation 0/1", ""),
        ("wrong", "check-power 0/2; check-any 0/3; derivation ?/1", ""),
        ("empty", "check-power 0/2; check-any 0/3; derivation 0/1", "put back: setup, given, answer-index_bits, "),
        ("syntax", "check-power 0/2; check-any 0/3; derivation ?/1", ""),
        (
            "tampered",
            "check-power 0/2; check-any 0/3; derivation 0/1",
            "put back: check-any; twice, the first counts: ",
        ),
        ("loop", "check-power 0/2; check-any 0/3; derivation ?/1", "timed out"),
        ("eater", "check-power 0/2; check-any 0/3; derivation ?/1", "memory"),
        ("breeder", "check-power 0/2; check-any 0/3; derivation ?/1", "timed out"),
        ("thief", "check-power 2/2; check-any 3/3; derivation ?/1", ""),
        ("caller", "check-power 2/2; check-any 3/3; derivation ?/1", ""),
        ("importer", "check-power 0/2; check-any 0/3; derivation ?/1", ""),
        ("roundabout", "check-power 0/2; check-any 0/3; derivation ?/1", ""),
        ("liar", "check-power 0/2; check-any 0/3; derivation ?/1", "a check that must fail passed"),
        ("leaver", "check-power 0/2; check-any 0/3; derivation ?/1", "kernel died"),
        ("shower", "check-power 2/2; check-any 3/3; derivation ?/1", ""),
        ("scrap", "check-power 0/2; check-any 0/3; derivation 0/1", "does not parse"),
        ("zoe", "check-power 2/2; check-any 3/3; derivation ?/1", ""),
    ],
)
def test_each_gets_what_it_deserves(classroom, student, points, note):
    row = classroom.rows[student]
    assert row["points"] == points
    assert row["note"].startswith(note) and bool(row["note"]) == bool(note)
    given = [float(number) for number in re.findall(r" ([\d.]+)/", points)]
    assert float(row["score"]) == sum(given) and row["max"] == "6"
    assert row["pending"] == ("1" if "?" in points else "0")


@boxed
def test_nothing_outside_a_submission_changes_and_nothing_stays(classroom):
    assert classroom.unchanged
    assert not [one for one in psutil.Process().children(recursive=True) if "bwrap" in one.name()]
    assert not list(classroom.graded.parent.glob(".grading-*"))
    assert (classroom.graded.parent.parent / "secret.txt").read_text(encoding="utf-8") == TOKEN
    assert len([line for line in classroom.said if line.startswith("[")]) == len(classroom.rows)


@boxed
def test_the_thief_saw_and_changed_nothing(classroom):
    told = classroom.printed("thief")
    assert "read" not in re.findall(r"^\w+", told, re.M) and "wrote" not in told
    assert told.count("refused ") == len(classroom.paths) and told.count("kept ") == len(classroom.paths) + 3
    assert TOKEN not in told and told.rstrip().endswith("home: []")


@boxed
def test_the_caller_is_alone(classroom):
    told = classroom.printed("caller")
    assert told.count("alone") == 2 and "called" not in told and "['lo']" in told


@boxed
def test_processes_and_memory_are_limited(classroom):
    stopped = re.search(r"stopped at (\d+)", classroom.printed("breeder"))
    assert stopped and 5 < int(stopped[1]) < SMALL.processes
    assert "one process: MemoryError" in classroom.printed("eater")


@boxed
@pytest.mark.parametrize("student", ["importer", "roundabout"])
def test_the_answers_cannot_be_imported(classroom, student):
    assert "this assignment asks you to write what it holds yourself" in classroom.printed(student)


@boxed
def test_feedback_takes_nothing_from_a_network_and_runs_nothing(classroom):
    pages = sorted((classroom.graded / "feedback").rglob("*.html"))
    assert len(pages) == len(classroom.rows) - 1  # all but the one that does not parse
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"""(?:src|srcset|action)\s*=\s*["']?\s*(?:https?:|//)""", text)
        assert not re.findall(r"<(?:link|iframe|object|embed|form|base)\b", text, re.I)
        assert "<h1>Bits of an index" in text or "empty" in page.parts  # whose text cells are gone
        assert not re.findall(r"""(?:url\(|@import)\s*["']?\s*(?:https?:|//)""", text)
        nonce = re.search(r"script-src 'nonce-(\w{32})'", text)
        assert nonce and re.findall(r"<script[^>]*nonce=\"(\w+)\"", text) == [nonce[1]] * 2
        assert len(re.findall(r"<script", text, re.I)) == 2
        assert "Score: " in text
    theirs = (classroom.graded / "feedback" / "shower" / "tiny" / "index_bits.html").read_text(encoding="utf-8")
    assert not re.findall(r"<[^>]*\bon(error|load)\s*=", theirs) and "<svg" not in theirs
    assert not re.findall(r"""href\s*=\s*["']?\s*(?:javascript|data)""", theirs) and '="position' not in theirs
    assert "<strong>bold</strong>" in theirs  # Markdown is still read
    assert "data:image/png;base64,cGljdHVyZQ==" in theirs  # and pictures are shown
    assert (classroom.graded / "feedback" / "shower" / "mathjax.js").stat().st_size > 1_000_000


@boxed
def test_an_interrupted_run_leaves_the_grades_and_marks_are_entered(classroom, tmp_path):
    from shrinkbook.course import grading

    folder, graded = tmp_path / "in", tmp_path / "build" / "graded"
    shutil.copytree(classroom.graded, graded)
    for name in ("anna", "zoe"):
        shutil.copytree(classroom.submissions / name, folder / name)
    before = fingerprint(graded)

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grading.grade(folder, [TINY], graded, limits=SMALL, say=stop)
    assert fingerprint(graded) == before and [path.name for path in graded.parent.iterdir()] == ["graded"]
    shutil.rmtree(folder / "zoe")
    shutil.copytree(classroom.submissions / "scrap", folder / "scrap")
    marks = [
        "student,assignment,cell,points,comment",
        "anna,tiny,derivation,0.5,<b>half</b> of it",
        "anna,tiny,derivation,2,too many",
        "anna,tiny,nothing,1,",
        "zoe,tiny,derivation,1,",
        "anna,tiny,check-power,,",
        "scrap,tiny,check-power,2,",
    ]
    (folder / "marks.csv").write_text("\n".join(marks), encoding="utf-8")
    said = []
    grading.grade(folder, [TINY], graded, limits=SMALL, say=said.append)
    row, scrap = rows(graded)
    assert scrap["score"] == "0"
    assert row["points"] == "check-power 2/2; check-any 3/3; derivation 0.5/1"
    assert (row["score"], row["pending"]) == ("5.5", "0") and rows(graded, "to_mark.csv") == []
    page = (graded / "feedback" / "anna" / "tiny" / "index_bits.html").read_text(encoding="utf-8")
    assert "Score: 5.5 / 6.0" in page and "<b>half</b> of it" in page
    assert [line.partition(":")[0] for line in said[2:]] == [f"marks.csv, line {number}" for number in (3, 4, 5, 7)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"student;assignment;cell;points;comment\nanna;tiny;derivation;1;\n", "no column student, .* with commas"),
        ("student,assignment,cell,points,comment\nanna,tiny,derivation,1,gr\xfcn".encode("latin-1"), "in UTF-8"),
    ],
)
def test_marks_that_cannot_be_read_are_refused_before_anything_is_graded(tmp_path, content, words):
    from shrinkbook.course import grading

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "marks.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        grading.grade(tmp_path / "in", [TINY], tmp_path / "graded", safe=False)
    assert not (tmp_path / "graded").exists()


def test_what_a_sandbox_would_show_is_refused(tmp_path):
    from shrinkbook.course import grading

    for place in (Path(sys.prefix) / "graded", Path("/usr/src/graded")):
        with pytest.raises(ValueError, match="that every sandbox shows"):
            grading.grade(tmp_path, [TINY], place)
    assert not sandbox.shown(tmp_path) and not sandbox.shown(TINY)


@boxed
def test_a_page_that_is_never_done_holds_up_nobody(tmp_path, monkeypatch):
    from shrinkbook.course import feedback, grading

    monkeypatch.setattr(feedback, "SECONDS", 15)
    slow = new_markdown_cell(r"\begin{a}" * 100_000)
    for name, extra in {"mathjax.js": (), "slow": (slow,), "zoe": ()}.items():
        path = tmp_path / "in" / name / "index_bits.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(solved(nbformat.read(TINY, as_version=4), RIGHT, *extra), path)
    grading.grade(tmp_path / "in", [TINY], tmp_path / "graded", limits=SMALL, say=lambda line: None)
    notes = {row["student"]: (row["score"], row["note"]) for row in rows(tmp_path / "graded")}
    assert notes.pop("slow") == ("5", "no feedback: the page is not done after 15 seconds")
    assert notes == {"mathjax.js": ("5", ""), "zoe": ("5", "")}
    for name in notes:  # whose names are as good as any
        assert (tmp_path / "graded" / "feedback" / name / "tiny" / "index_bits.html").exists()
        assert (tmp_path / "graded" / "feedback" / name / "mathjax.js").is_file()


@boxed
@pytest.mark.parametrize(
    ("code", "note", "shown"),
    [
        ("while True: pass", "time", "This cell was not run to its end."),
        (
            f"{SOCKETS}for number in range(100): open(str(number), 'w').write('x' * 1000)\ntime.sleep(90)",
            "files",
            "This cell was not run to its end.",
        ),
        (  # nested so deep that it is hard to remove, too
            f"{SOCKETS}for _ in range(3000): os.mkdir('a'); os.chdir('a')\nos.chmod('.', 0)\ntime.sleep(90)",
            "files",
            "This cell was not run to its end.",
        ),
        (  # files without a name
            f"{SOCKETS}kept = []\nfor _ in range(110):\n    kept.append(open('x', 'wb'))\n    os.unlink('x')\n"
            "    kept[-1].write(bytes(8 << 20))\ntime.sleep(90)",
            "memory",
            "This cell was not run to its end.",
        ),
        ("print('x' * 1_500_000)\nprint('more')", "", "[the rest of the output was cut off]\n"),
    ],
)
def test_the_keeper_ends_what_goes_on_and_output_is_cut(tmp_path, code, note, shown):
    from traitlets.config import Config

    from shrinkbook.course.kernel import BoxedExecute
    from shrinkbook.course.layout import lay_out

    config = Config()
    config.BoxedExecute.timeout = 60
    config.BoxedKernel.library = str(lay_out(tmp_path / "library", []))
    seconds = 6 if note == "time" else 60  # on a busy machine the other limits take their time
    config.BoxedKernel.limits = Limits(cell=60, notebook=seconds, memory=700, processes=40, files=8, printed=1)
    execute = BoxedExecute(config=config)
    notebook, _ = execute.preprocess(nbformat.v4.new_notebook(cells=[new_code_cell(code)]), {})
    assert execute.note == note and not execute.kernel.folder.exists()
    (output,) = notebook.cells[0].outputs
    assert shown in (output.get("text"), *output.get("traceback", []))


def test_memory_that_a_process_hides_is_counted_too(monkeypatch):
    def refuse(process):
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", refuse)  # root, who may run this, is never refused
    assert sandbox._memory(os.getpid(), "pss") >= psutil.Process().memory_info().rss / 2


def test_unsafe_runs_without_walls_and_still_blocks_the_answers(tmp_path):
    from shrinkbook.course import grading

    for name, code in {"right": RIGHT, "importer": "from shrinkbook.methods.kernel_sizes import index_bits"}.items():
        notebook = solved(nbformat.read(TINY, as_version=4), code)
        path = tmp_path / "in" / name / "index_bits.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(notebook, path)
    grading.grade(tmp_path / "in", [TINY], tmp_path / "graded", safe=False, limits=SMALL, say=lambda line: None)
    assert {row["student"]: row["score"] for row in rows(tmp_path / "graded")} == {"right": "5", "importer": "0"}


def run(*words, **changes):
    command = [sys.executable, "-m", "shrinkbook.course", *words]
    return subprocess.run(command, env={**os.environ, **changes}, capture_output=True, text=True)


def test_without_a_sandbox_it_refuses_and_unsafe_says_what_it_means(tmp_path):
    refused = run("grade", str(tmp_path), PATH=str(tmp_path))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "install the system's package `bubblewrap`" in refused.stderr and "UNSAFE=1" in refused.stderr
    unsafe = run("grade", str(tmp_path / "none"), "--unsafe", PATH=str(tmp_path))
    assert (
        unsafe.returncode == 2 and "run as you, without a sandbox" in unsafe.stderr and "is no folder" in unsafe.stderr
    )


def test_the_lock_names_all_that_grading_imports():
    from importlib.metadata import packages_distributions

    code = """
import sys, shrinkbook.course.grading
loaded = {name: getattr(one, "__file__", None) for name, one in sys.modules.items()}
names = {name.partition(".")[0] for name, path in loaded.items() if path and "_vendor" not in path}
print(*names - {"jaraco"})  # setuptools carries its own
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    locks = [(ROOT / f"requirements{extra}.lock").read_text(encoding="utf-8") for extra in ("", "-course")]
    named = {re.sub(r"[-_.]+", "-", name).lower() for text in locks for name in re.findall(r"^([\w.-]+)==", text, re.M)}
    there = packages_distributions()
    loaded = {re.sub(r"[-_.]+", "-", one).lower() for name in done.stdout.split() for one in there.get(name, [])}
    assert loaded - named == {"shrinkbook"}
    assert "rfc3987-syntax" not in named and "nbgrader" in named
