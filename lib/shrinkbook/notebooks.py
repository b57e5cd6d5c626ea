"""Execute a notebook headless with papermill, and tell whether it really ran to its end."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import yaml

from shrinkbook.evidence import store
from shrinkbook.experiments import profiles

TIMEOUT = 3600  # seconds a cell may take; a dead kernel is noticed at once
NOISE = ("papermill", "execution")


def folder() -> Path:
    """Where the source notebooks are."""
    return store.root() / "notebooks"


def paths(keys: Mapping[str, str]) -> dict[str, Path]:
    """Notebook by paper key; ``start`` opens the suite, ``head_to_head`` compares all, ``phone`` is about latency."""
    return {
        "start": folder() / "00_start_here.ipynb",
        **{key: folder() / f"{name}.ipynb" for key, name in keys.items()},
        "head_to_head": folder() / "08_head_to_head.ipynb",
        "phone": folder() / "09_mobile_latency.ipynb",
    }


def kernel_environment(profile: str) -> dict[str, str]:
    """What a kernel of this profile is started with; nothing of the user's own Jupyter set-up leaks in."""
    ours = {
        **profiles.environment(profile),
        "IPYTHONDIR": str(store.root() / ".ipython"),
        "JUPYTER_NO_CONFIG": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    return {**{key: value for key, value in os.environ.items() if key != "JUPYTER_PATH"}, **ours}


def from_the_record(folder: Path) -> dict[str, str]:
    """What a kernel is started with that shows what the record has, in a copy of it, and computes nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(store.record_dir(), folder / "runs")
    return {"SHRINKBOOK_BUILD": str(folder), "SHRINKBOOK_STORED": "1"}


def execute(
    source: Path,
    target: Path,
    profile: str,
    parameters: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
) -> str | None:
    """Run a notebook from top to bottom into ``target``, its kernel started with more of an environment if given.

    On failure the notebook with its error is kept as ``<name>.failed.ipynb`` beside the target, and an earlier target
    stays as it was.

    Returns:
        None, or one line that says what went wrong and where to look.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part, failed = target.with_suffix(".part.ipynb"), target.with_suffix(".failed.ipynb")
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(source),
        str(part),
        "-k",
        "python3",
        "-l",
        "python",
        "--cwd",
        str(folder()),
    ]
    command += [
        "--no-progress-bar",
        "--execution-timeout",
        str(TIMEOUT),
        "-y",
        yaml.safe_dump({**parameters, "profile": profile}),
    ]
    done = subprocess.run(
        command, env={**kernel_environment(profile), **(environment or {})}, capture_output=True, text=True
    )
    problem = complaint(part) if done.returncode == 0 else _last_line(done.stderr)
    if problem is None:
        part.replace(target)
        failed.unlink(missing_ok=True)
        return None
    if part.exists():
        part.replace(failed)
        return f"{source.name}: {problem}; see {failed}"
    return f"{source.name}: {problem}"


def complaint(path: Path) -> str | None:
    """Why a notebook does not count as executed: cells not run in order, or an error among the outputs."""
    cells = [
        cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" and cell.source.strip()
    ]
    if not cells:
        return "it has no code cell"
    for number, cell in enumerate(cells, start=1):
        if any(output.output_type == "error" for output in cell.outputs):
            return f"code cell {number} ended with an error"
        if cell.execution_count != number:
            return f"code cell {number} of {len(cells)} was not executed in order; run the notebook from top to bottom"
    return None


def normalise(path: Path) -> None:
    """Take out of an executed notebook what differs between two executions that gave the same results."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        for key in NOISE:
            cell.metadata.pop(key, None)
    count = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            count += bool(cell.source.strip())
            cell.execution_count = count if cell.source.strip() else None
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    store.write_text(path, nbformat.writes(notebook) + "\n")


def _last_line(text: str) -> str:
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "papermill ended without a word")
