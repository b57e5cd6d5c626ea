"""Release the assignments and grade what comes back, by nbgrader, into one folder that is swapped in at the end."""

import csv
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shrinkbook.course import collect, feedback, sandbox
from shrinkbook.course.engine import Course, Graded, short
from shrinkbook.course.sandbox import Limits

COLUMNS = ("student", "assignment", "notebook", "score", "max", "pending", "points", "note")
MARKS = ("student", "assignment", "cell", "points", "comment")


def _row(one: Graded) -> dict[str, object]:
    """The line of a submission in ``grades.csv``."""
    given = [value for value in one.points.values() if value is not None]
    cells = [
        f"{name} {'?' if value is None else short(value)}/{short(one.most[name])}" for name, value in one.points.items()
    ]
    texts = (one.submission.student, one.submission.paper, one.submission.notebook)
    pending = sum(one.most[name] for name, value in one.points.items() if value is None)
    numbers = (short(sum(given)), short(sum(one.most.values())), short(pending))
    return dict(zip(COLUMNS, (*texts, *numbers, "; ".join(cells), "; ".join(one.notes)), strict=True))


def release(sources: Sequence[Path], target: Path) -> list[Path]:
    """Write what students get, ``<assignment>/<notebook>.ipynb`` each; ``target`` is replaced at the end.

    Raises:
        ValueError: there is no assignment, or nbgrader refuses one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".release-", dir=target.parent) as scratch:
        _swap(Course(Path(scratch), sources).root / "release", target)
    return sorted(target.glob("*/*.ipynb"))


def grade(
    submissions: Path,
    sources: Sequence[Path],
    target: Path,
    safe: bool = True,
    limits: Limits | None = None,
    say: Callable[[str], None] = print,
) -> list[Graded]:
    """Grade a folder of submissions; ``target`` is replaced at the end, so that an interrupted run leaves it as it was.

    Args:
        submissions: as in :func:`collect.find`; a file ``marks.csv`` in it has the points that persons gave.
        sources: of the assignments.
        target: gets ``grades.csv``, ``feedback``, ``autograded``, ``gradebook.db``, ``to_mark.csv``.
        safe: False runs submissions without a sandbox.
        say: gets one line for each submission, and for each thing that is wrong.

    Raises:
        ValueError: there is no folder of submissions, or no assignment; a sandbox would show what it has to hide; the
            file of marks cannot be read.
    """
    for place in (submissions, target, *sources) if safe else ():
        if sandbox.shown(place):
            raise ValueError(
                f"{place} lies among the programs that every sandbox shows; move it elsewhere, or grade with UNSAFE=1"
            )
    marks = _marks(submissions / "marks.csv")
    found, complaints = collect.find(submissions, {path.stem: path.parent.name for path in sources})
    for line in complaints:
        say(line)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".grading-", dir=target.parent) as scratch:
        course = Course(Path(scratch) / "graded", sources)
        results = []
        for number, submission in enumerate(found, start=1):
            result = course.grade(submission, Path(scratch) / "libraries", limits or Limits(), safe)
            results.append(result)
            row = _row(result)
            say(
                f"[{number}/{len(found)}] {submission.student} {submission.notebook}: {row['score']} of {row['max']}"
                + (f", {row['pending']} to be read" if row["pending"] != "0" else "")
                + (f" ({row['note']})" if row["note"] else "")
            )
        for line in _marked(course, results, marks):
            say(line)
        for result in results:
            one = result.submission
            if not one.problem and (why := feedback.attempt(course.root, course.config, one.student, one.paper)):
                result.notes.append(why)
                say(f"{one.student} {one.notebook}: {why}")
        _tables(course.root, results)
        _swap(course.root, target)
    return results


def _marks(path: Path) -> list[dict[str, str]]:
    """Rows of the file of marks, none if there is no file; read before anything is graded, which takes long."""
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error):
        raise ValueError(f"{path} cannot be read; save it as CSV in UTF-8") from None
    if lacking := [name for name in MARKS[:-1] if name not in (reader.fieldnames or ())]:
        raise ValueError(f"{path} has no column {', '.join(lacking)}; its first line is {','.join(MARKS)}, with commas")
    return rows


def _marked(course: Course, results: Sequence[Graded], marks: Sequence[Mapping[str, str]]) -> list[str]:
    """Enter marks; one line for each row that cannot be."""
    there = {(one.submission.student, one.submission.paper): one for one in results}
    complaints = []
    for number, row in enumerate(marks, start=2):
        if not (row["points"] or "").strip():
            continue
        try:
            one = there[row["student"], row["assignment"]]
            course.mark(one, row["cell"], float(row["points"]), row.get("comment") or "")
        except KeyError:
            complaints.append(f"marks.csv, line {number}: no such submission")
        except ValueError as error:
            complaints.append(f"marks.csv, line {number}: {error}")
    return complaints


def _tables(root: Path, results: Sequence[Graded]) -> None:
    """``grades.csv``, and ``to_mark.csv`` with a line for each cell that a person has to read."""
    _write(root / "grades.csv", COLUMNS, [_row(one) for one in results])
    open_cells = [
        {
            "student": one.submission.student,
            "assignment": one.submission.paper,
            "cell": name,
            "points": "",
            "comment": "",
        }
        for one in results
        for name, value in one.points.items()
        if value is None
    ]
    _write(root / "to_mark.csv", MARKS, open_cells)


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _swap(new: Path, target: Path) -> None:
    """Put a finished folder in the place of an older one."""
    old = target.with_name(f".{target.name}-before")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
