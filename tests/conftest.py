"""Every test, and every kernel that nbval starts, runs as profile `quick` demands and on an empty store of its own."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from shrinkbook import notebooks  # imports no torch: the pins below must stand before that

assert "torch" not in sys.modules, "torch was imported before the environment of profile quick was set"
os.environ.pop("JUPYTER_PATH", None)
os.environ.update(notebooks.kernel_environment("quick"))
SESSION = Path(tempfile.mkdtemp(prefix="shrinkbook-tests-"))  # one a process, so that pytest-xdist's workers share none
os.environ["SHRINKBOOK_BUILD"] = str(SESSION / "build")
os.environ["SHRINKBOOK_RESULTS"] = str(SESSION / "results")


def pytest_unconfigure() -> None:
    shutil.rmtree(SESSION, ignore_errors=True)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build and a results folder for this test alone; returns the folder that holds both."""
    monkeypatch.setenv("SHRINKBOOK_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("SHRINKBOOK_RESULTS", str(tmp_path / "results"))
    return tmp_path
