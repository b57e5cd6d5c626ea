"""A run: what its identity depends on, computed once, resumed, collapsed, the same bit for bit."""

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from shrinkbook.evidence import claims, store, verdicts
from shrinkbook.experiments import catalogue, head_to_head, phone, profiles, provenance, run
from shrinkbook.experiments.experiment import Context, Experiment, Unit
from shrinkbook.experiments.li2017.scan import projection_scan
from shrinkbook.experiments.run import ensure, unit
from shrinkbook.experiments.steps import baseline
from shrinkbook.results import runs_of
from shrinkbook.story import Story
from shrinkbook.training import checkpoint

SHORT = {"epochs": 2, "batch": 32, "lr": 0.1, "milestones": [0.5]}
DIGITS = {"data": "digits", "net": "digits ResNet with projections", "schedule": "two epochs"}
SMALL = {
    "toy2020.base": Experiment("toy2020.base", baseline, {"quick": {**DIGITS, "recipe": SHORT}}),
    "toy2020.scan": Experiment(
        "toy2020.scan", projection_scan, {"quick": {**DIGITS, "ratios": [0.5]}}, parents=("toy2020.base",)
    ),
}


def count(context: Context) -> None:
    """Leaves a line for every time it is computed, and takes its time."""
    with (store.build_dir() / "computed.txt").open("a") as file:
        file.write(f"{context.seed}\n")
    time.sleep(context.config["sleep"])
    context.measurements["seed"] = context.seed


TOY = {"toy2020.count": Experiment("toy2020.count", count, {"quick": {"sleep": 0.0}, "standard": {"sleep": 0.0}})}


def toy(seed: int = 0, **settings: Any) -> Unit:
    return unit(TOY, "toy2020.count", "quick", seed, settings)


def results(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a run says, without how long it took and where."""
    kept = {key: found.get(key) for key in ("run_id", "status", "config", "parents", "cells", "measurements", "stages")}
    history = [{key: value for key, value in row.items() if key != "seconds"} for row in found["history"]]
    return {**kept, "history": history}


def computed() -> list[str]:
    return (store.build_dir() / "computed.txt").read_text().split()


# identity


def test_identity_changes_with_experiment_version_settings_seed_and_parents() -> None:
    base = toy()
    child = replace(base, parents=(base,))
    others = [
        replace(base, experiment=replace(base.experiment, name="toy2020.other")),
        replace(base, experiment=replace(base.experiment, version=2)),
        toy(sleep=0.5),
        toy(dtype="bfloat16"),
        toy(threads=2),
        toy(seed=1),
        child,
        replace(base, parents=(toy(seed=1),)),
        replace(base, parents=(child,)),  # a grandparent counts too
    ]
    assert len({one.run_id for one in [base, *others]}) == len(others) + 1


def test_identity_changes_with_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    base = toy()
    known = "99c2ba7cd99bc3e0"  # of every machine and every checkout
    assert base.run_id == known
    assert replace(base, config=dict(reversed(base.config.items()))).run_id == known
    assert replace(base, profile="standard").run_id == known  # the settings say what the profile changed
    other = replace(base.experiment, seconds={"quick": 9.0}, gpu=True, seeds={"quick": 9}, function=baseline)
    assert replace(base, experiment=other).run_id == known
    monkeypatch.setattr(provenance, "source_hash", lambda: "another source")
    monkeypatch.setattr(provenance, "_cpu", lambda: "another processor")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not torch.cuda.is_available())
    assert toy().run_id == known


def test_profiles_that_run_the_same_share_the_run(scratch: Any) -> None:
    store.build_dir().mkdir()
    quick, standard = (unit(TOY, "toy2020.count", name, 0, {"threads": 1}) for name in ("quick", "standard"))
    assert quick.run_id == standard.run_id
    assert ensure(quick)["profile"] == "quick"
    assert ensure(standard)["profile"] == "standard"  # else no verdict of that profile would see it
    assert computed() == ["0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("toy2020.nothing", "quick", 0), "unknown experiment 'toy2020.nothing'; there are toy2020.count"),
        (("toy2020.count", "fast", 0), "unknown profile 'fast'; there are quick, standard, paper"),
        (("toy2020.count", "paper", 0), "toy2020.count has no budget in profile paper; it runs in quick, standard"),
        (("toy2020.count", "quick", -1), "seed -1 is negative"),
        (("toy2020.count", "quick", 0, {"slep": 1}), "toy2020.count has no setting 'slep'; it has threads, dtype"),
    ],
)
def test_what_does_not_exist_is_one_line(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        unit(TOY, *arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="DEVICE=cuda, but PyTorch sees no GPU here; use DEVICE=cpu"):
        run.resolve_device("quick", "cuda")
    assert run.resolve_device("standard", None) == "cpu"


# stored or computed


def test_a_run_is_computed_once(scratch: Any) -> None:
    store.build_dir().mkdir()
    first = ensure(toy())
    path = store.runs_dir() / "toy2020.count" / f"{toy().run_id}.json"
    written = path.stat().st_mtime_ns
    assert ensure(toy()) == first
    assert path.stat().st_mtime_ns == written
    assert computed() == ["0"]
    ensure(toy(seed=1))
    assert computed() == ["0", "1"]


def test_two_processes_compute_a_run_once(scratch: Any) -> None:
    store.build_dir().mkdir()
    processes = multiprocessing.get_context("fork")
    started = [processes.Process(target=ensure, args=(toy(sleep=1.0),)) for _ in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(30)
    assert [process.exitcode for process in started] == [0, 0]
    assert computed() == ["0"]


def test_a_damaged_run_file_is_named(scratch: Any) -> None:
    store.build_dir().mkdir()
    ensure(toy())
    path = store.runs_dir() / "toy2020.count" / f"{toy().run_id}.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(store.StoreError, match=f"{path.name}: truncated or not JSON .*; delete it and run"):
        ensure(toy())


def test_an_unwritable_build_folder_is_one_line(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("kept")
    monkeypatch.setenv("SHRINKBOOK_BUILD", str(tmp_path / "file" / "build"))
    with pytest.raises(store.StoreError, match=r"file/build/locks/.* cannot be written \(Not a directory\)"):
        ensure(toy())
    assert (tmp_path / "file").read_text() == "kept"


def test_a_parent_without_its_weights_is_trained_again_and_its_run_file_stays(scratch: Any) -> None:
    child = unit(SMALL, "toy2020.scan", "quick", 0)
    (parent,) = child.parents
    first = ensure(child)
    path = store.runs_dir() / "toy2020.base" / f"{parent.run_id}.json"
    before, written = path.read_bytes(), path.stat().st_mtime_ns
    (store.runs_dir() / "toy2020.scan" / f"{child.run_id}.json").unlink()
    parent.checkpoint.unlink()
    said: list[str] = []
    again = ensure(child, progress=said.append)
    assert parent.checkpoint.exists()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, written)
    assert results(again) == results(first)  # the same weights as before
    assert any("training them again" in line for line in said)


def test_a_parent_left_in_the_middle_of_its_training_is_trained_to_the_end(scratch: Any) -> None:
    child = unit(SMALL, "toy2020.scan", "quick", 0)
    first = ensure(child)
    (parent,) = child.parents
    (store.runs_dir() / "toy2020.scan" / f"{child.run_id}.json").unlink()
    state, metadata = checkpoint.load(parent.checkpoint)
    halfway = {name: tensor + 0.5 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    checkpoint.save(halfway, parent.checkpoint, {**metadata, "history": metadata["history"][:1]})
    assert not checkpoint.complete(parent.checkpoint)
    said: list[str] = []
    again = ensure(child, progress=said.append)  # resumed from what was there: only that it ended is asked
    assert any("training them again" in line for line in said) and checkpoint.complete(parent.checkpoint)
    assert again["run_id"] == first["run_id"]


def test_the_same_seed_and_threads_give_the_same_numbers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for number, name in enumerate(("one", "two")):
        monkeypatch.setenv("SHRINKBOOK_BUILD", str(tmp_path / name))
        torch.manual_seed(number)  # what a process did before must not matter
        found.append(ensure(unit(SMALL, "toy2020.scan", "quick", 0)))
        weights = unit(SMALL, "toy2020.base", "quick", 0).checkpoint.read_bytes()
        found[-1]["weights"] = weights[len(weights) // 2 :]  # tensors; the header in front tells seconds
    one, two = found
    assert results(one) == results(two)
    assert one["weights"] == two["weights"]
    other = ensure(unit(SMALL, "toy2020.scan", "quick", 1))
    assert other["measurements"]["scan"] != one["measurements"]["scan"]


def test_where_a_run_comes_from_is_stored_without_names_of_people_or_hosts(scratch: Any) -> None:
    store.build_dir().mkdir()
    where = ensure(toy())["provenance"]
    assert where["pinned"] is True and where["isa"] == torch.backends.cpu.get_cpu_capability()
    assert {"commit", "dirty", "source", "libraries", "cpu", "gpu", "data", "python", "platform"} <= where.keys()
    assert os.uname().nodename not in json.dumps(where)
    assert str(store.root()) not in json.dumps(where)


def test_pins_stand_in_this_process() -> None:
    assert profiles.pinned("quick")
    assert torch.get_num_threads() == 1
    assert "AVX512" not in torch.backends.cpu.get_cpu_capability()  # they stood before torch was imported


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library reads other variables, or none")
def test_memory_that_was_left_is_taken_again() -> None:
    code = """if True:
        import resource
        faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = lambda: bytearray(b"x") * 2**27  # as large as a layer's maps of a large batch
        block()
        before = faults()
        block()
        block()
        print(faults() - before)
    """
    pages = 2**27 // os.sysconf("SC_PAGE_SIZE")
    ours = {**os.environ, **profiles.environment("standard")}
    plain = {name: value for name, value in ours.items() if name not in profiles.MEMORY}
    fresh, kept = (
        int(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout)
        for env in (plain, ours)
    )
    assert kept < pages / 10 < pages < fresh


# overrides and collapse


def test_changed_settings_are_another_run_that_no_verdict_uses(scratch: Any) -> None:
    store.build_dir().mkdir()
    plain = unit(catalogue.EXPERIMENTS, "li2017.wall_clock", "quick", 0)
    mine = unit(catalogue.EXPERIMENTS, "li2017.wall_clock", "quick", 0, {"rounds": 2})
    assert (mine.config["rounds"], plain.config["rounds"]) == (2, 3)
    assert mine.run_id != plain.run_id
    run_file = {**ensure(toy()), "experiment": "li2017.wall_clock"}
    store.write({**run_file, "run_id": mine.run_id}, store.runs_dir())
    assert runs_of(["li2017"], "quick", None, "build") == []
    store.write({**run_file, "run_id": plain.run_id}, store.runs_dir())
    assert [found["run_id"] for found in runs_of(["li2017"], "quick", None, "build")] == [plain.run_id]


def test_a_collapsed_training_is_an_outcome_and_stays_in_n(scratch: Any) -> None:
    wild = {"recipe": {**SHORT, "lr": 1e6}}
    found = ensure(unit(catalogue.EXPERIMENTS, "li2017.digits_vgg", "quick", 0, wild))
    assert found["status"] == "collapsed"
    assert found["history"][-1]["loss"] is None
    assert found["stages"]["original"]["accuracy"]["last"] < 20
    (stored,) = store.runs(store.runs_dir())
    assert stored == found
    paper = claims.load("li2017")
    claim = paper.claim("li2017.17a")
    good = {"experiment": "li2017.digits_vgg_retrain", "status": "finished"}
    retrained = {"retrain": {"tuned": 90.0, "slimmed": 50.0}}
    runs = [{**found, **good, "seed": seed, "measurements": retrained} for seed in range(1, 5)]
    judged = verdicts.judge(claim, paper, [{**found, "experiment": good["experiment"]}, *runs], "quick")
    assert (judged["n"], judged["verdict"]) == (5, "inconclusive")
    assert "collapsed without a value: seed 0" in judged["reason"]
    fine = [*runs, {**runs[0], "seed": 5}]
    assert verdicts.judge(claim, paper, fine, "quick")["verdict"] == "reproduced"


def test_a_child_of_a_diverged_network_is_collapsed_and_stays_in_n(scratch: Any) -> None:
    wild = {**SHORT, "lr": 1e20}
    diverging = {**SMALL, "toy2020.base": Experiment("toy2020.base", baseline, {"quick": {**DIGITS, "recipe": wild}})}
    said: list[str] = []
    found = ensure(unit(diverging, "toy2020.scan", "quick", 0), progress=said.append)
    assert found["status"] == "collapsed" and "original" in found["stages"] and found["measurements"] == {}
    assert any("toy2020.scan seed 0: its parent's network diverged" in line for line in said)


def test_a_process_without_the_pins_has_the_run_computed_by_one_that_has_them(scratch: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("MKL_CBWR")
    assert not profiles.pinned("quick")
    (found,) = Story("peng2019", "quick", [0]).runs("peng2019.digits_teacher")
    assert found["provenance"]["pinned"] is True


def test_where_nothing_may_be_computed_only_stored_runs_are_offered(scratch, monkeypatch) -> None:
    monkeypatch.setenv("SHRINKBOOK_STORED", "1")
    story = Story("dong2017", "quick", seeds=[0, 1])
    assert story.runs("dong2017.skip") == story.everything() == head_to_head.runs("head_to_head.digits", "quick") == []
    assert not any(phone.runs("quick"))
    kept = ensure(unit(catalogue.EXPERIMENTS, "dong2017.cost", "quick", 0))
    assert [found["run_id"] for found in story.everything()] == [kept["run_id"]]
    assert run.obstacle(catalogue.EXPERIMENTS["dong2017.resnet20"], "cpu") == ""  # stored, it is shown without a GPU
    monkeypatch.delenv("SHRINKBOOK_STORED")
    assert run.obstacle(catalogue.EXPERIMENTS["dong2017.resnet20"], "cpu") == "needs a GPU"
    assert len(catalogue.units(["dong2017"], "quick")) > 10
