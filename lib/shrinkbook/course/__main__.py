"""The course from a shell: ``python -m shrinkbook.course refresh | assignments | grade FOLDER``."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from shrinkbook.course import sandbox, sources
from shrinkbook.evidence import store

UNSAFE = """\
!! UNSAFE: submissions run as you, without a sandbox. What a student wrote can read and delete your files, read the
!! hidden tests, the gradebook and the other submissions, use the network, and change its own grade. Limits on time and
!! memory still hold. Grade like this only what you have read, or on a machine that has nothing to lose.
"""


def refresh(paths: list[Path]) -> None:
    """Fill answer and given cells from the library; a line for each notebook."""
    for path in paths or sources.paths():
        done = "changed" if sources.refresh_file(path) else "as the library says"
        print(f"{path.parent.name}/{path.name}: {done}")


def assignments() -> None:
    """Write what students get to build/course/release; a line for each notebook."""
    from shrinkbook.course.grading import release

    for path in release(sources.paths(), target() / "release"):
        print(path)


def grade(submissions: Path, unsafe: bool) -> None:
    """Grade a folder of submissions into build/course/graded."""
    if unsafe:
        print(UNSAFE, file=sys.stderr)
    elif problem := sandbox.missing():
        raise ValueError(problem)
    from shrinkbook.course import grading

    graded = target() / "graded"
    grading.grade(submissions, sources.paths(), graded, safe=not unsafe)
    print(f"grades: {graded / 'grades.csv'}\nfeedback: {graded / 'feedback'}\nto be read: {graded / 'to_mark.csv'}")


def target() -> Path:
    """Folder of all that the course writes."""
    return store.build_dir() / "course"


def main() -> int:
    """Entry point: one line a thing done, or one that says what is wrong."""
    parser = argparse.ArgumentParser(prog="shrinkbook.course", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    filling = commands.add_parser("refresh", help="fill answer and given cells of the sources from the library")
    filling.add_argument("paths", nargs="*", type=Path, help="notebooks; all sources if none is named")
    commands.add_parser("assignments", help="write what students get")
    grading = commands.add_parser("grade", help="grade what they handed in")
    grading.add_argument("submissions", type=Path, help="folder with one folder a student")
    grading.add_argument("--unsafe", action="store_true", help="run submissions without a sandbox")
    options = parser.parse_args()
    try:
        if options.command == "refresh":
            refresh(options.paths)
        elif find_spec("nbgrader") is None:
            raise ValueError(
                "nbgrader is not installed; run `make assignments`, which installs requirements-course.lock"
            )
        elif options.command == "assignments":
            assignments()
        else:
            grade(options.submissions, options.unsafe)
    except ValueError as error:
        print(f"shrinkbook.course: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was there before is as it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
