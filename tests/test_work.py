"""Many runs on several processes: kill -9 and go on, failures that stay where they happen."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shrinkbook.evidence import store
from shrinkbook.experiments import catalogue, work
from shrinkbook.experiments.experiment import Experiment, Unit
from shrinkbook.experiments.run import ensure, unit

# Two trainings and a scan, whose parent is the first of them: the paper's experiments on digits at two epochs.
REAL = [*(("toy2020.base", seed) for seed in range(2)), ("toy2020.scan", 0)]
COMPUTE = """
import json, sys
from shrinkbook.experiments import catalogue, run, work
units = [run.unit(catalogue.EXPERIMENTS, name, "quick", seed) for name, seed in json.loads(sys.argv[1])]
sys.exit(bool(work.compute(units, int(sys.argv[2]), "cpu", lambda line: print(line, flush=True))))
"""

# Experiments that the workers find in their catalogue because Python imports this file when it starts.
TOYS = """
import os, signal, time
from shrinkbook.experiments.experiment import Experiment
from shrinkbook.experiments.li2017.scan import projection_scan
from shrinkbook.experiments.steps import baseline

def good(context): context.measurements["value"] = 1.0
def slow(context): time.sleep(60)
def raises(context): raise RuntimeError("a bug")
def refuses(context): raise ValueError("a file is missing: fetch it")
def dies(context): os._exit(3)
def killed(context): os.kill(os.getpid(), signal.SIGKILL)
def alone(context):
    started = time.time(); time.sleep(0.4); context.measurements["span"] = [started, time.time()]
def prints(context): print("not JSON"); os.system("echo nor this")

def one(name, function, parents=()):
    parents = tuple(f"toy2020.{parent}" for parent in parents)
    return Experiment(f"toy2020.{name}", function, {"quick": {}}, parents=parents, alone=function is alone)

ALL = [one(f.__name__, f) for f in (good, slow, raises, refuses, dies, killed, prints, alone)]
ALL += [one("alike", alone), Experiment("toy2020.busy", alone, {"quick": {}})]
DIGITS = {"data": "digits", "net": "digits ResNet with projections", "schedule": "two epochs"}
RECIPE = {"epochs": 2, "batch": 32, "lr": 0.1, "milestones": [0.5]}
ALL += [Experiment("toy2020.base", baseline, {"quick": {**DIGITS, "recipe": RECIPE}})]
scan = {"quick": {**DIGITS, "ratios": [0.5]}}
ALL += [Experiment("toy2020.scan", projection_scan, scan, parents=("toy2020.base",))]
ALL += [one("child", good, ["dies"]), one("grandchild", good, ["child"]), one("other", good, ["good"])]
EXPERIMENTS = {experiment.name: experiment for experiment in ALL}
"""
SITE = """
from shrinkbook.experiments import catalogue
import toys
catalogue.EXPERIMENTS |= toys.EXPERIMENTS
"""


@pytest.fixture
def toys(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Experiment]:
    """The experiments above, also in the catalogue of every worker this test starts."""
    folder = scratch / "site"
    folder.mkdir()
    (folder / "toys.py").write_text(TOYS)
    (folder / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
    spec = importlib.util.spec_from_file_location("toys", folder / "toys.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    return module.EXPERIMENTS


def units(toys: Mapping[str, Experiment], *names: str) -> list[Unit]:
    return [unit(toys, f"toy2020.{name}", "quick", 0) for name in names]


def results(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run says, without how long it took and where."""
    kept = {key: run[key] for key in ("run_id", "status", "config", "parents", "cells", "measurements", "stages")}
    return {**kept, "history": [{**row, "seconds": None} for row in run["history"]]}


def stored_files() -> list[Path]:
    return sorted(store.runs_dir().glob("*/*.json"))


def alive(group: int) -> bool:
    """Whether a process of the group still runs; one that ended and waits to be collected does not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue  # ended meanwhile
        if int(its_group) == group and state != "Z":
            return True
    return False


def wait_until(true: Any, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what} not within {seconds} s"
        time.sleep(0.02)


# kill -9


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="process groups are read from Linux's /proc")
def test_kill_9_then_the_next_call_continues_to_the_same_results(
    toys: dict[str, Experiment], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", COMPUTE, json.dumps(REAL), "1"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    wait_until(stored_files, 60, "the first run file")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    wait_until(lambda: not alive(first.pid), 60, "the end of the workers")
    kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in stored_files()}
    assert 1 <= len(kept) < len(REAL)
    for path in kept:
        store.read(path)  # whole
    names = [path.name for path in store.build_dir().rglob("*") if path.is_file() and path.parent.name != "locks"]
    assert all(path.endswith((".json", ".safetensors")) and path[0] != "." for path in names), names

    real = [unit(toys, name, "quick", seed) for name, seed in REAL]
    said: list[str] = []
    assert work.compute(real, 2, "cpu", said.append) == {}
    assert said[0].startswith(f"{len(REAL) - len(kept)} runs to compute, {len(kept)} stored; ")
    for path, before in kept.items():
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    interrupted = store.runs(store.runs_dir())
    monkeypatch.setenv("SHRINKBOOK_BUILD", str(scratch / "uninterrupted"))  # and in this process, without workers
    for one in real:
        ensure(one)
    uninterrupted = store.runs(store.runs_dir())
    assert [results(run) for run in interrupted] == [results(run) for run in uninterrupted]
    assert len(uninterrupted) == len(REAL)
    assert work.compute(real, 2, "cpu", said.append) == {}
    assert said[-1:] == [f"all {len(REAL)} runs are already in {store.runs_dir()}"]


# failures


def finished() -> list[str]:
    return [path.parent.name for path in stored_files()]


def test_what_fails_stops_nothing_else(toys: dict[str, Experiment], capfd: pytest.CaptureFixture[str]) -> None:
    names = ("raises", "good", "dies", "refuses", "child", "killed", "grandchild", "prints", "other")
    said: list[str] = []
    failed = work.compute(units(toys, *names), 1, "cpu", said.append)
    assert failed == {
        "toy2020.raises seed 0": "RuntimeError: a bug",
        "toy2020.dies seed 0": "its process ended with status 3",
        "toy2020.refuses seed 0": "a file is missing: fetch it",
        "toy2020.child seed 0": "its parent failed",
        "toy2020.killed seed 0": "its process ended with status -9",
        "toy2020.grandchild seed 0": "its parent failed",
    }
    assert finished() == ["toy2020.good", "toy2020.other", "toy2020.prints"]
    assert [line for line in said if line.startswith("FAILED")] == [f"FAILED {a}: {b}" for a, b in failed.items()]
    errors = capfd.readouterr().err
    assert "in raises" in errors  # a bug comes with its place,
    assert "in refuses" not in errors  # a mistake of the user without
    assert "not JSON" in errors and "nor this" in errors


def test_what_times_something_runs_alone(toys: dict[str, Experiment]) -> None:
    wanted = [("busy", 0), ("alone", 0), ("alike", 0), ("busy", 1), ("busy", 2)]
    units = [unit(toys, f"toy2020.{name}", "quick", seed) for name, seed in wanted]
    assert work.compute(units, 2, "cpu", lambda line: None) == {}
    spans = {(u.experiment.name, u.seed): u.find(store.runs_dir())["measurements"]["span"] for u in units}
    for quiet, (start, end) in spans.items():
        if toys[quiet[0]].alone:
            others = [span for key, span in spans.items() if key != quiet]
            assert all(other[1] <= start or other[0] >= end for other in others), (quiet, spans)


def test_missing_data_fails_those_who_need_it(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHRINKBOOK_DATA", str(scratch / "nothing"))
    names = ("li2017.vgg16", "li2017.vgg16_scan", "li2017.resnet56_public_scan")
    wanted = [unit(catalogue.EXPERIMENTS, name, "standard", 0) for name in names]
    failed = work.compute(wanted, 1, "cpu", lambda line: None)
    data = f"{scratch}/nothing/cifar10.npz is missing: run `make data DATA=cifar10` (or `shrinkbook data cifar10`)"
    assert failed == {
        "li2017.vgg16 seed 0": data,
        "li2017.vgg16_scan seed 0": "its parent failed",
        "li2017.resnet56_public_scan seed 0": data,
    }
    assert stored_files() == []


def test_a_build_folder_that_cannot_be_written_is_one_line(
    toys: dict[str, Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = store.build_dir().with_name("file")
    file.write_text("kept")
    monkeypatch.setenv("SHRINKBOOK_BUILD", str(file / "build"))
    ((unit_name, error),) = work.compute(units(toys, "good"), 1, "cpu", lambda line: None).items()
    assert unit_name == "toy2020.good seed 0"
    assert error.startswith(str(file)) and "cannot be written (Not a directory); choose a folder" in error
    assert "\n" not in error
    assert file.read_text() == "kept"


def test_ctrl_c_ends_at_once(toys: dict[str, Experiment]) -> None:
    command = [sys.executable, "-c", COMPUTE, json.dumps([("toy2020.slow", seed) for seed in range(4)]), "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    locks = store.build_dir() / "locks"
    wait_until(lambda: locks.exists() and len(list(locks.iterdir())) == 2, 60, "the first units")
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=10)
    assert process.returncode != 0
    assert errors.count("Traceback") <= 1  # of this script; the workers add none


def test_durations_for_people() -> None:
    spans = {40: "40 s", 600: "10 min", 3 * 3600: "3.0 h", 5 * 86400: "5.0 days"}
    assert {seconds: work.duration(seconds) for seconds in spans} == spans


def test_no_process_to_be_had_is_a_failure_of_each_unit_and_no_hang(scratch, monkeypatch):
    units = catalogue.units(["peng2019"], "quick", [0], "cpu")[:3]
    monkeypatch.setattr(work.sys, "executable", "/no/such/python")
    failed = work.compute(units, 2, "cpu", lambda text: None)
    assert set(failed) == {work.label(unit) for unit in units}
    assert all("FileNotFoundError" in why or "its parent failed" in why for why in failed.values())
