"""Run files: written whole or not at all, read only when they can be trusted, adopted without overwriting."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shrinkbook.evidence import store
from shrinkbook.evidence.store import StoreError


def run_file(**changes: Any) -> dict[str, Any]:
    """A small valid run."""
    run: dict[str, Any] = {
        "schema": 1,
        "experiment": "toy2020.scan",
        "version": 1,
        "profile": "quick",
        "seed": 0,
        "run_id": "0123456789abcdef",
        "config": {"threads": 1, "schedule": "short"},
        "parents": ["00000000000000aa"],
        "status": "finished",
        "stages": {"original": {"accuracy": {"last": 91.2, "best_by_val": None}, "mac": 10, "weights": 5, "bytes": 20}},
        "cells": {"table1": {"base": {"error": 8.8}}},
        "measurements": {"order": {"smallest": 80.1, "largest": 40.0}, "ratios": [0.1, 0.5]},
        "history": [{"loss": 0.5}],
        "seconds": {"train": 3.2},
        "energy": {"joule": None, "reason": "no meter"},
        "provenance": {"cpu": "Überprozessor"},
    }
    return run | changes


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_survives_the_round_trip(tmp_path: Path) -> None:
    run = run_file(fixed_network=True, per_image={"order": {"smallest": "eJw="}})
    path = store.write(run, tmp_path)
    assert files(tmp_path) == ["toy2020.scan/0123456789abcdef.json"]
    assert store.read(path) == run
    assert store.find(tmp_path, "toy2020.scan", "0123456789abcdef") == run
    assert store.find(tmp_path, "toy2020.scan", "f" * 16) is None
    store.write(run | {"status": "collapsed"}, tmp_path)
    assert store.read(path)["status"] == "collapsed"


def test_runs_are_sorted_and_chosen(tmp_path: Path) -> None:
    assert store.runs(tmp_path / "nothing") == []
    for experiment, seed, digit, profile in [
        ("toy2020.scan", 1, "a", "quick"),
        ("toy2020.scan", 0, "c", "quick"),
        ("toy2020.scan", 0, "b", "standard"),
        ("toy2020.cost", 5, "d", "quick"),
    ]:
        store.write(run_file(experiment=experiment, seed=seed, run_id=digit * 16, profile=profile), tmp_path)
    assert [run["run_id"][0] for run in store.runs(tmp_path)] == ["d", "b", "c", "a"]
    assert [run["run_id"][0] for run in store.runs(tmp_path, "toy2020.scan", "quick")] == ["c", "a"]
    assert [run["run_id"][0] for run in store.runs(tmp_path, profile="standard")] == ["b"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "schema 2"),
        ({"status": "done"}, "status 'done'.*finished"),
        ({"experiment": "../scan"}, "experiment '../scan'"),
        ({"run_id": "123"}, "'123'.*16"),
        ({"parents": ["parent"]}, "'parent'"),
        ({"seed": True}, "'seed' must be int"),
        ({"stages": []}, "'stages' must be dict"),
        ({"fixed_network": 1}, "'fixed_network' must be bool"),
        ({"measurements": {"x": float("nan")}}, "toy2020.scan.*null"),
        ({"measurements": {"x": {1, 2}}}, "toy2020.scan.*JSON"),
    ],
)
def test_a_run_that_breaks_the_schema_is_not_written(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(StoreError, match=words) as error:
        store.write(run_file(**changes), tmp_path)
    assert "\n" not in str(error.value)
    assert files(tmp_path) == []


@pytest.mark.parametrize("key", store.FIELDS)
def test_every_field_is_required(tmp_path: Path, key: str) -> None:
    run = run_file()
    del run[key]
    with pytest.raises(StoreError, match=f"'{key}' is missing"):
        store.write(run, tmp_path)


def test_a_broken_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    path = store.write(run_file(), tmp_path)
    whole = path.read_text()
    for text in (whole[: len(whole) // 2], "", "\ufffe\x00"):
        path.write_text(text)
        with pytest.raises(StoreError, match="0123456789abcdef.json: truncated.*delete it and run") as error:
            store.runs(tmp_path)
        assert "\n" not in str(error.value)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(StoreError, match="truncated or not JSON"):
        store.read(path)
    path.write_text("[]")
    with pytest.raises(StoreError, match="JSON object, not list"):
        store.read(path)
    path.write_text(json.dumps(run_file(seed="0")))
    with pytest.raises(StoreError, match="0123456789abcdef.json: 'seed' must be int"):
        store.read(path)
    with pytest.raises(StoreError, match="cannot be read"):
        store.read(tmp_path / "toy2020.scan" / "none.json")


def test_a_file_under_another_name_is_not_trusted(tmp_path: Path) -> None:
    path = store.write(run_file(), tmp_path)
    with pytest.raises(StoreError, match="holds run 0123456789abcdef of toy2020.scan"):
        store.read(path.rename(path.with_name("f" * 16 + ".json")))


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")  # a folder that even root cannot make
    with pytest.raises(StoreError, match="cannot be written") as error:
        store.write(run_file(), tmp_path / "file")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "file") in str(error.value)
    assert files(tmp_path) == ["file"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "table.md"
    target.mkdir()  # the text can be written beside it, but not renamed over it
    with pytest.raises(StoreError, match="table.md: cannot be written"):
        store.write_text(target, "text")
    with pytest.raises(UnicodeEncodeError):
        store.write_text(tmp_path / "other.md", "half \udc80")
    assert list(tmp_path.iterdir()) == [target]
    path = store.write_text(tmp_path / "deep" / "er" / "table.md", "old\n")
    store.write_text(path, "new\n")
    assert path.read_bytes() == b"new\n"
    assert files(tmp_path) == ["deep/er/table.md"]


def test_adopt_copies_what_is_done_and_never_overwrites(tmp_path: Path) -> None:
    build, record = tmp_path / "build", tmp_path / "record"
    for digit, status in (("a", "finished"), ("b", "collapsed"), ("c", "interrupted"), ("d", "finished")):
        store.write(run_file(run_id=digit * 16, status=status, seed=1), build)
    kept = store.write(run_file(run_id="d" * 16, seed=7), record)
    before = kept.read_bytes()
    adopted = store.adopt(store.runs(build), record)
    assert [path.stem[0] for path in adopted] == ["a", "b"]
    assert files(record) == [f"toy2020.scan/{digit * 16}.json" for digit in "abd"]
    assert kept.read_bytes() == before
    for path in adopted:
        assert path.read_bytes() == (build / "toy2020.scan" / path.name).read_bytes()
    assert store.adopt(store.runs(build), record) == []


def test_dig_follows_paths() -> None:
    run = run_file()
    assert store.dig(run["measurements"], "order.smallest") == 80.1
    assert store.dig(run["measurements"], "ratios") == [0.1, 0.5]
    for path in ("order.none", "order.smallest.more", "ratios.0", ""):
        assert store.dig(run["measurements"], path) is None
    assert store.dig(None, "order") is None


def test_folders_can_be_moved_but_not_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHRINKBOOK_BUILD", raising=False)
    monkeypatch.delenv("SHRINKBOOK_RESULTS", raising=False)
    root = Path(__file__).resolve().parents[1]
    assert store.root() == root
    assert store.papers_dir() == root / "data" / "papers"
    assert store.runs_dir() == root / "build" / "runs"
    assert store.results_dir("quick") == root / "results" / "quick"
    monkeypatch.setenv("SHRINKBOOK_BUILD", str(tmp_path / "b"))
    monkeypatch.setenv("SHRINKBOOK_RESULTS", str(tmp_path / "r"))
    assert store.build_dir() == tmp_path / "b"
    assert store.runs_dir() == tmp_path / "b" / "runs"
    assert store.results_dir("quick") == tmp_path / "r" / "quick"
    assert store.record_dir() == root / "results" / "record"


def test_the_evidence_needs_no_torch() -> None:
    code = "import sys; from shrinkbook.evidence import claims, store; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": str(store.root() / "lib")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
