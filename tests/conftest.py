"""Every test, and every kernel that nbval starts, runs as profile `quick` demands and on a store of its own.

A test's store is empty. A notebook's kernel finds the runs that this machine computed from exactly this source
(`make reproduce` before `make test`), and computes the others; the committed record is never among them.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from shrinkbook import notebooks  # imports no torch: the pins below must stand before that
from shrinkbook.evidence import store
from shrinkbook.evidence.paper import Claim

assert "torch" not in sys.modules, "torch was imported before the environment of profile quick was set"
os.environ.pop("JUPYTER_PATH", None)
os.environ.update(notebooks.kernel_environment("quick"))
LONGEST = ["test_work", "test_course_grading", "test_li2017", "test_liu2019", "test_book_pages", "test_book"]
collect_ignore = ["assignment"]  # the course's, which is graded, not compared with its outputs
SESSION = Path(tempfile.mkdtemp(prefix="shrinkbook-tests-"))  # one a process, so that pytest-xdist's workers share none
COMPUTED = store.root() / "build"
os.environ["SHRINKBOOK_BUILD"] = str(SESSION / "build")
os.environ["SHRINKBOOK_RESULTS"] = str(SESSION / "results")


class Kernels:
    """nbval's kernels have a build folder of their own. As a plugin, since hooks of a conftest end at its folder."""

    @pytest.hookimpl(tryfirst=True)  # before nbval starts the kernel
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        kernel = item.path.suffix == ".ipynb"
        os.environ["SHRINKBOOK_BUILD"] = str(computed_by_this_source() if kernel else SESSION / "build")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Kernels())


@cache
def computed_by_this_source() -> Path:
    """A copy of this machine's build folder with only the runs, and their weights, of the source as it stands."""
    from shrinkbook.experiments.provenance import source_hash

    target = SESSION / "notebooks"
    for path in (COMPUTED / "runs").glob("*/*.json"):
        if json.loads(path.read_text())["provenance"]["source"] != source_hash():
            continue
        files = [path, *(COMPUTED / "checkpoints").glob(f"{path.parent.name}-{path.stem}.*")]
        for file in files:
            copy = target / file.relative_to(COMPUTED)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    return target


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: pytest-xdist gives a file to one process, and the last one would run beside nothing."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_unconfigure() -> None:
    shutil.rmtree(SESSION, ignore_errors=True)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build and a results folder for this test alone; returns the folder that holds both."""
    monkeypatch.setenv("SHRINKBOOK_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("SHRINKBOOK_RESULTS", str(tmp_path / "results"))
    return tmp_path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Trainings of this test are the same whatever ran before: an experiment leaves its number of threads behind."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def paths_of(claim: Claim) -> list[str]:
    """The measurements that a claim reads."""
    trend = [claim.trend["x"], claim.trend["y"]] if claim.trend else []
    return [*claim.order, *([claim.gap] if claim.gap else []), *trend]


SmallCifar = Callable[..., dict[str, Any]]


@pytest.fixture
def small_cifar(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> SmallCifar:
    """Runs an experiment of profile standard on 12 images of noise, with random networks as the public ones."""
    import numpy as np
    import torch

    from shrinkbook.experiments import catalogue, run
    from shrinkbook.experiments.networks import NETS
    from shrinkbook.training import weights

    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), np.arange(12) % 10
    monkeypatch.setenv("SHRINKBOOK_DATA", str(scratch))
    np.savez(scratch / "cifar10.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    for depth in (20, 56):
        path = scratch / "weights.th"
        torch.manual_seed(0)
        state = {f"module.{name}": value for name, value in NETS[f"ResNet-{depth}"]().state_dict().items()}
        torch.save({"state_dict": state}, path)
        start = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        public = weights.Weights(scratch.as_uri(), f"resnet{depth}-{start}.th")
        public.path.parent.mkdir(exist_ok=True)
        path.rename(public.path)
        monkeypatch.setitem(weights.PUBLIC, f"resnet{depth}-public", public)

    def compute(name: str, changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
        small = {}
        for key, one in catalogue.EXPERIMENTS.items():
            if "standard" in one.configs:
                config = {**one.configs["standard"], "threads": 1, "dtype": "float32", **changes.get(key, {})}
                small[key] = replace(one, configs={"standard": config})
        return run.ensure(run.unit(small, name, "standard", 0), "cpu")

    return compute


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An adb server of this test process alone, on a port of its own, with keys in a folder of its own."""
    import socket

    from shrinkbook.measure.adb import Adb

    home = tmp_path_factory.mktemp("adb")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ours = {"ANDROID_ADB_SERVER_PORT": str(port), "HOME": str(home), "ANDROID_SDK_HOME": str(home)}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    yield
    Adb()("kill-server")
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value
