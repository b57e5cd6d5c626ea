"""nbgrader as the engine: its course in a folder, one submission released, run in the sandbox, graded and marked."""

import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from logging import ERROR, Logger
from logging.handlers import BufferingHandler
from pathlib import Path

import nbformat
from nbgrader.api import Gradebook
from nbgrader.converters import Autograde, BaseConverter, GenerateAssignment
from nbgrader.converters.base import NbGraderException
from nbgrader.coursedir import CourseDirectory
from sqlalchemy.exc import SAWarning
from traitlets.config import Config

from shrinkbook.course import collect
from shrinkbook.course.collect import Submission
from shrinkbook.course.kernel import BoxedExecute
from shrinkbook.course.layout import lay_out
from shrinkbook.course.sandbox import Limits

ALL_LINES = 1 << 20


@dataclass
class Graded:
    """A submission's result: points of each graded cell (None: a person has to read it), and what happened."""

    submission: Submission
    points: dict[str, float | None]
    most: dict[str, float]
    notes: list[str] = field(default_factory=list)


class Course:
    """nbgrader's course in a folder: sources, releases and the gradebook.

    Args:
        root: folder of the course; it is made.
        sources: notebooks with solutions, ``<assignment>/<notebook>.ipynb`` each.

    Raises:
        ValueError: there is none, or nbgrader refuses one.
    """

    def __init__(self, root: Path, sources: Sequence[Path]) -> None:
        if not sources:
            raise ValueError("there is no assignment in notebooks/assignments/source")
        self.root = root.resolve()
        self.papers = {path.stem: path.parent.name for path in sources}
        own = str(Path(sys.executable).parent)
        if own not in os.environ["PATH"].split(os.pathsep):  # nbgrader calls alembic by its name
            os.environ["PATH"] = os.pathsep.join([own, os.environ["PATH"]])
        self.config = Config()
        self.config.CourseDirectory.root = str(self.root)
        for path in sources:
            target = self.root / "source" / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        for paper in sorted(set(self.papers.values())):
            course = CourseDirectory(config=self.config, assignment_id=paper)
            run(GenerateAssignment(coursedir=course, config=self.config))

    def release(self, notebook: str) -> Path:
        """The notebook that students get."""
        return self.root / "release" / self.papers[notebook] / f"{notebook}.ipynb"

    def gradebook(self) -> Gradebook:
        """nbgrader's gradebook, to be used in ``with``."""
        return Gradebook(f"sqlite:///{self.root / 'gradebook.db'}")

    def grade(self, submission: Submission, libraries: Path, limits: Limits, safe: bool) -> Graded:
        """Run and grade one submission, and write its feedback.

        Args:
            libraries: folder of laid-out libraries, one an assignment; made as they are needed.
        """
        release = nbformat.read(self.release(submission.notebook), as_version=4)
        cells = [cell.metadata.nbgrader for cell in release.cells if cell.metadata.get("nbgrader", {}).get("grade")]
        most = {cell.grade_id: float(cell.points) for cell in cells}
        if submission.problem:
            return Graded(submission, dict.fromkeys(most, 0.0), most, [submission.problem])
        notebook, remark = collect.rebuilt(submission.cells, release)
        student, paper = submission.student, submission.paper
        target = self.root / "submitted" / student / paper / f"{submission.notebook}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)
        library = libraries / submission.notebook
        if not library.exists():
            lay_out(library, release.metadata.get("shrinkbook", {}).get("blocked", []))
        config = Config(self.config)
        config.BoxedExecute.timeout = limits.cell
        config.BoxedKernel.library, config.BoxedKernel.safe = str(library), safe
        config.BoxedKernel.limits = limits
        course = CourseDirectory(config=config, student_id=student, assignment_id=paper)
        autograde = Autograde(coursedir=course, config=config, autograde_preprocessors=_boxed())
        try:
            run(autograde)
        except ValueError as error:  # this one cannot be graded; the next one may be
            return Graded(submission, dict.fromkeys(most, 0.0), most, [str(error)])
        executed = next(one for one in autograde.exporter._preprocessors if isinstance(one, BoxedExecute))
        graded = Graded(submission, {}, most, [note for note in (executed.note, remark) if note])
        with self.gradebook() as book:
            theirs = book.find_submission_notebook(submission.notebook, paper, student)
            scores = {one.cell.name: None if one.needs_manual_grade else float(one.score) for one in theirs.grades}
            graded.points = {name: scores[name] for name in most}
        return graded

    def mark(self, graded: Graded, cell: str, points: float, comment: str) -> None:
        """Enter what a person gave for a cell.

        Raises:
            ValueError: there is no such cell, it gives no such number of points, or the submission could not be run.
        """
        submission = graded.submission
        if cell not in graded.points:
            raise ValueError(f"no graded cell '{cell}'; there are {', '.join(graded.points)}")
        if not 0 <= points <= graded.most[cell]:
            raise ValueError(f"{short(points)} points for {cell}, which gives 0 to {short(graded.most[cell])}")
        with self.gradebook() as book:
            names = (cell, submission.notebook, submission.paper, submission.student)
            grade = book.find_grade(*names)  # a ValueError, too, if it is missing
            grade.manual_score, grade.needs_manual_grade = points, False
            if comment and grade.cell.cell_type == "markdown":
                book.find_comment(*names).manual_comment = comment
            book.db.commit()
        graded.points[cell] = points


def run(converter: BaseConverter) -> None:
    """One of nbgrader's steps; of what it logs only an error is kept, for the one line that says what is wrong."""
    errors = BufferingHandler(ALL_LINES)
    errors.setLevel(ERROR)
    converter.log = Logger("nbgrader")  # of its own, so that nothing is printed
    converter.log.addHandler(errors)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SAWarning)
            converter.start()
    except NbGraderException as error:
        lines = [line for record in errors.buffer for line in record.getMessage().strip().splitlines()]
        told = [line for line in lines if not line.startswith((" ", "Please see", "There was an error processing"))]
        raise ValueError(f"nbgrader: {(told or [str(error)])[-1]}") from error


def _boxed() -> list[type]:
    """nbgrader's steps of autograding with the execution in the sandbox."""
    steps = list(Autograde.autograde_preprocessors.default_args[0])
    return [BoxedExecute if step.__name__ == "Execute" else step for step in steps]


def short(value: float) -> str:
    """Points as one writes them."""
    return f"{value:g}"
