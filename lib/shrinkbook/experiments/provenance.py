"""Where a run comes from: code, data, libraries, machine. Stored and shown, never compared; no host or user names."""

import hashlib
import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from shrinkbook.evidence import store
from shrinkbook.training.data import DataSet

LIBRARIES = ("torch", "numpy", "scikit-learn")


def provenance(data: DataSet | None, device: str, pinned: bool) -> dict[str, Any]:
    """The record of one run's circumstances.

    Args:
        data: the data set the run used, if any.
        device: device the run used.
        pinned: whether the profile's environment was in force.
    """
    commit, dirty = _git()
    return {
        "commit": commit,
        "dirty": dirty,
        "source": source_hash(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "pinned": pinned,
        "data": {"name": data.name, "fingerprint": data.fingerprint, "note": data.note} if data else None,
    }


def remember_source() -> None:
    """Fix commit and source hash before a run starts: during a long one somebody may edit the files."""
    _git()
    source_hash()


@cache
def source_hash() -> str:
    """SHA-256 over the library's source files, so that a dirty checkout can be told from its commit."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _git() -> tuple[str | None, bool | None]:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=store.root(), capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "lib", "data/papers"))
    except (OSError, subprocess.CalledProcessError):
        return None, None  # an unpacked archive has no history


@cache
def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
