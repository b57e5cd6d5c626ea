"""Where run files lie, and how they are written, read and adopted.

A run is one JSON file, ``<folder>/<experiment>/<run_id>.json``. The committed record is immutable; the build folder
holds what this machine computed. Every file is written under a temporary name, flushed and renamed, so that an
interruption leaves either the old file or the new one.
"""

import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SCHEMA = 1
STATUSES = ("finished", "collapsed", "interrupted")
FIELDS: dict[str, type] = {
    "schema": int,
    "experiment": str,
    "version": int,
    "profile": str,
    "seed": int,
    "run_id": str,
    "config": dict,
    "parents": list,
    "status": str,
    "stages": dict,
    "cells": dict,
    "measurements": dict,
    "history": list,
    "seconds": dict,
    "energy": dict,
    "provenance": dict,
}
OPTIONAL: dict[str, type] = {"per_image": dict, "fixed_network": bool}
EXPERIMENT = re.compile(r"[a-z][a-z0-9_]*\.[a-z0-9_]+")
RUN_ID = re.compile(r"[0-9a-f]{16}")


class StoreError(ValueError):
    """A run file that cannot be written, read or trusted."""


def root() -> Path:
    """The repository's root folder."""
    return Path(__file__).resolve().parents[3]


def papers_dir() -> Path:
    """The folder of the papers' printed numbers, ``data/papers``."""
    return root() / "data" / "papers"


def record_dir() -> Path:
    """The folder of the committed run files, ``results/record``."""
    return root() / "results" / "record"


def results_dir(profile: str) -> Path:
    """The folder of the generated results of a profile; ``SHRINKBOOK_RESULTS`` moves its parent."""
    return Path(os.environ.get("SHRINKBOOK_RESULTS") or root() / "results") / profile


def results(profile: str) -> dict[str, Any] | None:
    """What results/<profile>/verdicts.json holds; None if there is none."""
    path = results_dir(profile) / "verdicts.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it and run `make reproduce PROFILE={profile}`"
        ) from error
    return found


def build_dir() -> Path:
    """The folder of what this machine computed; ``SHRINKBOOK_BUILD`` moves it."""
    return Path(os.environ.get("SHRINKBOOK_BUILD") or root() / "build")


def runs_dir() -> Path:
    """The folder of this machine's run files, ``build/runs``: the counterpart of `record_dir`."""
    return build_dir() / "runs"


def dig(mapping: Any, path: str) -> Any:
    """The value at a dotted path (``"order.smallest"``) of nested mappings, or None where the path ends early."""
    for key in path.split("."):
        if not isinstance(mapping, Mapping) or key not in mapping:
            return None
        mapping = mapping[key]
    return mapping


def check(run: Any, place: str) -> None:
    """Raise a StoreError that names ``place`` unless ``run`` has the fields of schema 1."""
    if not isinstance(run, dict):
        raise StoreError(f"{place}: a run is a JSON object, not {type(run).__name__}")
    for key, kind in (FIELDS | OPTIONAL).items():
        if key not in run:
            if key in OPTIONAL:
                continue
            raise StoreError(f"{place}: the key '{key}' is missing; every run of schema {SCHEMA} has it")
        if not isinstance(run[key], kind) or (kind is int and isinstance(run[key], bool)):
            raise StoreError(f"{place}: '{key}' must be {kind.__name__}, not {type(run[key]).__name__}")
    if run["schema"] != SCHEMA:
        raise StoreError(f"{place}: schema {run['schema']} is unknown; this version reads schema {SCHEMA}")
    if run["status"] not in STATUSES:
        raise StoreError(f"{place}: status '{run['status']}' is unknown; use one of {', '.join(STATUSES)}")
    if not EXPERIMENT.fullmatch(run["experiment"]):
        raise StoreError(f"{place}: experiment '{run['experiment']}' must look like 'li2017.cost'")
    for run_id in (run["run_id"], *run["parents"]):
        if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
            raise StoreError(f"{place}: run id {run_id!r} must be 16 hexadecimal digits")


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` to ``path`` atomically, creating its folder; a failure leaves no partial file.

    Raises:
        StoreError: the folder cannot be made or the file not written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StoreError(f"{path}: cannot be written ({reason}); choose a folder that can be") from error
    return path


def write(run: dict[str, Any], folder: Path) -> Path:
    """Validate a run and write it to ``folder/<experiment>/<run_id>.json``.

    Raises:
        StoreError: the run breaks the schema, holds NaN or something JSON has no word for, or the disk refuses.
    """
    place = f"run {run.get('run_id')} of {run.get('experiment')}" if isinstance(run, dict) else "run"
    check(run, place)
    try:
        text = json.dumps(run, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise StoreError(f"{place}: not plain JSON ({error}); use finite Python numbers or null") from error
    return write_text(Path(folder) / run["experiment"] / f"{run['run_id']}.json", text)


def read(path: Path) -> dict[str, Any]:
    """Read and validate one run file.

    Raises:
        StoreError: the file is missing, truncated, breaks the schema or lies under another run's name.
    """
    path = Path(path)
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); run the experiment again") from error
    except ValueError as error:
        why = str(error).splitlines()[0]
        raise StoreError(f"{path}: truncated or not JSON ({why}); delete it and run the experiment again") from error
    check(run, str(path))
    if (path.parent.name, path.stem) != (run["experiment"], run["run_id"]):
        raise StoreError(f"{path}: holds run {run['run_id']} of {run['experiment']}; rename it")
    return run


def runs(folder: Path, experiment: str | None = None, profile: str | None = None) -> list[dict[str, Any]]:
    """All runs in a folder, of one experiment and one profile if named, by experiment, seed and run id."""
    found = [read(path) for path in Path(folder).glob(f"{experiment or '*'}/*.json")]
    chosen = [run for run in found if profile in (None, run["profile"])]
    return sorted(chosen, key=lambda run: (run["experiment"], run["seed"], run["run_id"]))


def find(folder: Path, experiment: str, run_id: str) -> dict[str, Any] | None:
    """The run with this identity, or None if the folder does not hold it."""
    path = Path(folder) / experiment / f"{run_id}.json"
    return read(path) if path.exists() else None


def adopt(done: Iterable[Mapping[str, Any]], record: Path) -> list[Path]:
    """Write the finished and collapsed ones of these runs to a record that lacks them; never overwrites.

    Args:
        done: the runs that today's code plans; what earlier settings left behind is not among them.
        record: folder to write to, usually `record_dir()`.

    Returns:
        The paths newly written, in order.
    """
    adopted = []
    for run in done:
        target = Path(record) / run["experiment"] / f"{run['run_id']}.json"
        if run["status"] != "interrupted" and not target.exists():
            adopted.append(write(dict(run), record))
    return adopted
