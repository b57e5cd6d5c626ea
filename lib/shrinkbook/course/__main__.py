"""The course from a shell: ``python -m shrinkbook.course refresh``."""

import argparse
import sys
from pathlib import Path

from shrinkbook.course import sources


def main() -> int:
    """Entry point: one line a thing done, or one that says what is wrong."""
    parser = argparse.ArgumentParser(prog="shrinkbook.course", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    refresh = commands.add_parser("refresh", help="fill the answer and given cells of the sources from the library")
    refresh.add_argument("paths", nargs="*", type=Path, help="notebooks; all sources if none is named")
    options = parser.parse_args()
    try:
        for path in options.paths or sources.paths():
            print(
                f"{path.parent.name}/{path.name}: {'changed' if sources.refresh_file(path) else 'as the library says'}"
            )
    except ValueError as error:
        print(f"shrinkbook.course: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
