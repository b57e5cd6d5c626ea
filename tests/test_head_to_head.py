"""All methods on one network: accounting against counts by hand, matched budgets, files, resuming, tables, timing."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SmallCifar
from torch import nn

from shrinkbook.evidence import store
from shrinkbook.experiments import catalogue, head_to_head, run
from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.head_to_head import accounting, forms, train
from shrinkbook.experiments.head_to_head import tables as pages
from shrinkbook.experiments.head_to_head.arms import HALF, QUARTER, arms
from shrinkbook.experiments.networks import NETS
from shrinkbook.experiments.phone.subjects import named
from shrinkbook.measure.cost import cost, state_bytes
from shrinkbook.methods import tucker_layers
from shrinkbook.methods.clustered_bytes import sizes
from shrinkbook.nets import initialize
from shrinkbook.training import checkpoint

SHAPE = (1, 8, 8)
SHORT = {"epochs": 2, "batch": 16, "lr": 0.01, "milestones": [0.5]}
TINY: dict[str, Any] = {
    "steps": 2, "tune": SHORT, "fresh": {**SHORT, "lr": 0.1}, "iterations": 2, "test_images": 100, "width": 4,
    "search": {
        "recipe": SHORT, "hidden": 4, "val_fraction": 0.5, "val_images": 20, "images": 20,
        "evolution": {"population": 3, "mutations": 1, "crossovers": 1, "generations": 1, "parents": 2},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> dict[str, Any]:
    """A comparison on digits at a budget that trains next to nothing."""
    return run.ensure(run.unit(catalogue.EXPERIMENTS, "head_to_head.digits", "quick", 0, TINY), "cpu")


@pytest.fixture
def few(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Leaves only these arms to be computed, in their order, in folders of the test's own; gives their names."""

    def only(*names: str) -> list[str]:
        chosen = [arm for arm in arms([HALF, QUARTER], 64) if arm.name in names]
        monkeypatch.setattr(train, "arms", lambda removed, centroids: chosen)
        return [arm.name for arm in chosen]

    return only


@pytest.fixture
def network() -> nn.Module:
    return initialize(NETS["digits ResNet-8"](), 0).eval()


# accounting


def by_hand(widths: Mapping[int, int], ranks: Mapping[str, tuple[int, int]] | None = None) -> int:
    """Multiply-accumulates of ResNet-8 on 8x8 images: blocks with inner maps of these widths, at 64, 16 and 4 pixels.

    A convolution in Tucker-2 form reads the map before its stride: S R3 at that size, then 9 R3 R4 + T R4.
    """
    total = 9 * 1 * 8 * 64 + 32 * 10  # stem, classifier
    for stage, (outer, before, pixels) in enumerate(((8, 8, 64), (16, 8, 16), (32, 16, 4)), start=1):
        read = 64 if stage == 1 else 4 * pixels
        for conv, (into, out, size) in enumerate(((before, widths[stage], read), (widths[stage], outer, pixels)), 1):
            r3, r4 = (ranks or {}).get(f"layer{stage}.0.conv{conv}", (0, 0))
            total += into * r3 * size + (9 * r3 * r4 + out * r4) * pixels if r3 else 9 * into * out * pixels
    return total


HALVED, FULL = {1: 4, 2: 8, 3: 16}, {1: 8, 2: 16, 3: 32}


def test_every_combination_costs_what_a_count_by_hand_says(digits: dict[str, Any]) -> None:
    rows = digits["measurements"]["arms"]
    ranks = {name: rows[name]["steps"][-1]["tucker"] for name in ("pruned+tucker 25", "tucker 50")}
    assert rows["pruned+clustered 50"]["mac"] == by_hand(HALVED)
    assert rows["pruned+congruent 50"]["mac"] == by_hand(HALVED)
    assert rows["pruned+congruent 25"]["mac"] == by_hand({1: 2, 2: 4, 3: 8})
    assert rows["pruned+tucker 25"]["mac"] == by_hand(HALVED, ranks["pruned+tucker 25"])
    assert rows["tucker+clustered 50"]["mac"] == by_hand(FULL, ranks["tucker 50"])
    assert rows["tucker+clustered 50"]["steps"] == [*rows["tucker 50"]["steps"], {"cluster": 64}]
    assert rows["original"]["mac"] == by_hand(FULL)


def test_clustered_bytes_are_those_of_each_part(network: nn.Module, tmp_path: Path) -> None:
    halved = forms.applied(network, {"prune": 0.5}, SHAPE)
    tuckered = forms.applied(network, {"tucker": forms.ranks_within(network, SHAPE, 97_088)}, SHAPE)
    for model in (halved, tuckered):
        layers = [one for one in model.modules() if isinstance(one, nn.Conv2d)]
        kernels = sum(one.in_channels * one.out_channels for one in layers if one.kernel_size == (3, 3))
        pointwise = sum(one.weight.numel() for one in layers if one.kernel_size == (1, 1))
        rest = state_bytes(model) - 4 * (9 * kernels + pointwise)
        size = forms.write(forms.applied(model, {"cluster": 32}, SHAPE), tmp_path / "file")
        parts = sizes((tmp_path / "file").read_bytes())
        assert (parts["indices"], parts["scales"]) == (math.ceil(kernels * 5 / 8), 2 * kernels)
        assert (parts["codebooks"], parts["pointwise"], parts["rest"]) == (32 * 9 * 4, 4 * pointwise, rest)
        assert size == sum(parts.values()) == (tmp_path / "file").stat().st_size


def test_gates_count_what_is_left_over_the_images_and_what_they_cost(digits: dict[str, Any]) -> None:
    row, stage = digits["measurements"]["arms"]["lccl first"], digits["stages"]["lccl first"]
    convs = {"layer1.0.conv1": (8, 8, 64), "layer2.0.conv1": (8, 16, 16), "layer3.0.conv1": (16, 32, 4)}
    assert set(row["zeros"]) == set(convs)
    dense = {path: 9 * into * out * pixels for path, (into, out, pixels) in convs.items()}
    overhead = sum(9 * into * pixels for into, _, pixels in convs.values())
    assert stage["mac"] == by_hand(FULL) + overhead
    skipped = sum(row["zeros"][path] * mac for path, mac in dense.items())
    assert row["mac"] == pytest.approx(by_hand(FULL) + overhead - skipped)


@pytest.mark.parametrize(("net", "shape"), [("digits ResNet-8", (1, 8, 8)), ("ResNet-20", (3, 32, 32))])
def test_ranks_are_counted_as_the_network_they_make(net: str, shape: tuple[int, ...]) -> None:
    model = initialize(NETS[net](), 0).eval()
    most = forms.mac_of(forms.applied(model, {"prune": 0.5}, shape), shape)
    ranks = forms.ranks_within(model, shape, most)
    shapes_only = forms.applied(model.to("meta"), {"tucker": ranks}, shape)
    assert 0.99 * most < forms.mac_of(shapes_only, shape) <= most
    with pytest.raises(ValueError, match="no ranks fit a budget of 10"):
        forms.ranks_within(initialize(NETS[net](), 0), shape, 10)


def test_budgets_are_met_and_nearly_used_up(digits: dict[str, Any]) -> None:
    for arm in arms([HALF, QUARTER], 64):
        if arm.removed is None:
            continue
        row, budget = digits["measurements"]["arms"][arm.name], digits["measurements"]["budgets"][f"{arm.removed:g}"]
        column = "bytes" if arm.method == "clustered" else "mac"
        assert row[column] <= budget[column], arm.name
        if arm.method != "searched":  # a search may find a cheaper network better
            assert row[column] >= 0.99 * budget[column], arm.name


def test_forms_without_training_cost_what_the_trained_ones_do(digits: dict[str, Any], network: nn.Module) -> None:
    table = accounting.forms_table(network, SHAPE, [HALF, QUARTER], 64)
    rows = digits["measurements"]["arms"]
    assert set(rows) - set(table.index) == {"searched 50", "searched 25", "vbmf"}
    for name, form in table.iterrows():
        assert form["MAC"] == digits["stages"][name]["mac"] and form["bytes"] == rows[name]["bytes"], name
    assert len(accounting.forms_picture(table).axes) == 1


# files


def test_files_hold_what_the_rows_say_and_read_back_as_the_same_network(digits: dict[str, Any]) -> None:
    place = run.unit(catalogue.EXPERIMENTS, "head_to_head.digits", "quick", 0, TINY)
    for name, row in digits["measurements"]["arms"].items():
        assert row["same_outputs"], name
        assert place.part(f"{name} file").stat().st_size == row["bytes"], name


def test_a_plain_file_is_the_state_and_a_header(network: nn.Module, tmp_path: Path) -> None:
    size = forms.write(network, tmp_path / "x")
    header = 8 + int.from_bytes((tmp_path / "x").read_bytes()[:8], "little")
    assert size == header + state_bytes(network)
    other = initialize(NETS["digits ResNet-8"](), 1)
    x = torch.randn(2, *SHAPE)
    assert torch.equal(forms.read(tmp_path / "x", other)(x), network(x))


# training


def test_arms_share_batches_and_fresh_arms_their_start(few: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    few("original", "tuned", "pruned 50", "searched 50", "thin 50", "congruent 50", "lccl first", "pruned+clustered 50",
        "pruned+congruent 50")  # fmt: skip
    seen: dict[str, list[torch.Tensor]] = {}
    started: dict[str, torch.Tensor] = {}
    plain = Context.train

    def watched(self: Context, model: nn.Module, recipe: Any, phase: str, *more: Any, **how: Any) -> nn.Module:
        if "sampler" not in how:  # the baseline
            return plain(self, model, recipe, phase, *more, **how)
        started.setdefault(phase, next(model.parameters()).detach().clone())
        compose = how["sampler"]

        def sampler(indices: torch.Tensor, generator: torch.Generator) -> Any:
            batches = compose(indices, generator)
            seen.setdefault(phase, []).extend(batches)
            return batches

        return plain(self, model, recipe, phase, *more, **{**how, "sampler": sampler})

    monkeypatch.setattr(Context, "train", watched)
    found = run.ensure(run.unit(catalogue.EXPERIMENTS, "head_to_head.digits", "quick", 1, TINY), "cpu")
    rows = found["measurements"]["arms"]
    expected = torch.cat(seen["tuned"])
    assert len(seen["tuned"]) == 4 and rows["tuned"]["images"] == len(expected) == 64
    for name in rows:
        if name != "original":
            halves = 2 if len(rows[name]["steps"]) == 2 else 1  # a combination begins the order again half-way
            batches = torch.cat(seen[name])
            assert torch.equal(batches, torch.cat([expected[: 64 // halves]] * halves)), name
            assert rows[name]["images"] == len(batches) + 64 * name.startswith("searched"), name
    assert torch.equal(started["thin 50"], started["congruent 50"])
    assert not torch.equal(started["thin 50"], started["pruned 50"])
    assert torch.equal(started["pruned 50"], started["pruned+congruent 50"])


def test_a_stopped_run_goes_on_with_the_next_arm(few: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = few("original", "searched 50", "dafl 50", "searched 25", "pruned+tucker 25")
    unit = run.unit(catalogue.EXPERIMENTS, "head_to_head.digits", "quick", 0, TINY)
    computed, whole = list[str](), train.Bench._computed

    def stopping(self: train.Bench, arm: Any) -> dict[str, Any]:
        if arm.name == "dafl 50" and "dafl 50" not in computed:
            computed.append(arm.name)
            raise KeyboardInterrupt
        computed.append(arm.name)
        return whole(self, arm)

    monkeypatch.setattr(train.Bench, "_computed", stopping)
    with pytest.raises(KeyboardInterrupt):
        run.ensure(unit, "cpu")
    found = run.ensure(unit, "cpu")
    assert [name for name in computed if computed.count(name) > 1] == ["dafl 50"] * 2
    assert list(found["measurements"]["arms"]) == names
    assert set(found["stages"]) >= set(names)
    trained = [row["phase"] for row in found["history"]]
    assert set(trained) == {"PruningNet", *names} - {"original"} <= set(found["seconds"])
    assert trained.count("searched 50") == trained.count("dafl 50") == SHORT["epochs"]
    rows, shared = found["measurements"]["arms"], [row for row in found["history"] if row["phase"] == "PruningNet"]
    assert len(shared) == SHORT["epochs"], "what both searches share is told once"
    assert found["seconds"]["PruningNet"] == pytest.approx(sum(row["seconds"] for row in shared), abs=1e-3)
    assert rows["searched 50"]["seconds"] > found["seconds"]["PruningNet"]


def test_a_network_that_diverged_has_no_file_and_does_not_stop_the_others(few: Any, digits: dict[str, Any]) -> None:
    few("original", "pruned 50", "thin 50", "lccl both")
    wild = {**TINY, "tune": {**SHORT, "lr": 1e30}}
    found = run.ensure(run.unit(catalogue.EXPERIMENTS, "head_to_head.digits", "quick", 0, wild), "cpu")
    rows = found["measurements"]["arms"]
    assert rows["pruned 50"]["status"] == "collapsed" and rows["pruned 50"]["bytes"] is None
    assert rows["lccl both"]["zeros"] is None
    assert rows["thin 50"]["bytes"] and found["status"] == "finished"
    found["measurements"]["arms"] = digits["measurements"]["arms"] | rows
    table = pages.arms_table([found])
    assert table.loc["pruned 50", "bytes, %"] == "" and "at chance" in table.loc["pruned 50", "accuracy, %"]
    json.dumps(found, allow_nan=False)


def test_an_arm_says_how_its_own_network_ended_not_the_one_that_searched_for_it(few: Any) -> None:
    few("original", "searched 50")
    enough = {**TINY, "steps": 12, "fresh": {**SHORT, "epochs": 4, "lr": 0.1}}
    wild = {**enough, "search": {**TINY["search"], "recipe": {**SHORT, "lr": 1e30}}}
    found = run.ensure(run.unit(catalogue.EXPERIMENTS, "head_to_head.digits", "quick", 0, wild), "cpu")
    assert found["history"][0]["loss"] is None, "the PruningNet diverged"
    assert found["measurements"]["arms"]["searched 50"]["status"] == "finished"


def test_standard_runs_from_public_weights_on_noise(
    few: Any, small_cifar: SmallCifar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tucker_layers, "HOOI_LARGEST", 0)  # random weights have no ranks: each turn would be taken
    names = few("original", "pruned 50", "clustered 50", "tucker 25", "searched 25", "congruent 25", "dafl 25",
                "lccl first", "tucker+clustered 50")  # fmt: skip
    name, timing = "head_to_head.resnet20_100steps", "head_to_head.resnet20_latency"
    short = {**SHORT, "batch": 10}
    config = {**TINY, "tune": short, "fresh": short, "search": {**TINY["search"], "recipe": short}, "latent": 10}
    changes = {name: config, timing: {"rounds": 1, "warmup": 0}}
    timed, found = (small_cifar(one, changes) for one in (timing, name))
    assert timed["parents"] == [found["run_id"]]
    rows = found["measurements"]["arms"]
    assert list(rows) == names and all(row["same_outputs"] for row in rows.values())
    assert rows["pruned 50"]["mac"] < 0.52 * rows["original"]["mac"]
    told = {name for name, row in rows.items() if row.get("zeros", {}) is not None}  # gates of noise may diverge
    assert set(timed["measurements"]["latency"]) >= told > {"original", "tucker 25"}


# timing, tables


def test_every_form_is_timed_against_the_original(digits: dict[str, Any]) -> None:
    unit = run.unit(catalogue.EXPERIMENTS, "head_to_head.digits_latency", "quick", 0, {"rounds": 2, "warmup": 0})
    timing = Context(unit, "cpu", {"head_to_head.digits": digits}, lambda text: None)
    head_to_head.timed(timing)
    found = timing.measurements["latency"]
    rows = digits["measurements"]["arms"]
    assert set(found) == {*rows, "lccl first, computed densely", "lccl both, computed densely"}
    assert found["original"]["ratio"] == 1 and found["tuned"] == found["original"]
    assert found["pruned 50"] == found["thin 50"] == found["congruent 50"] != found["pruned 25"]
    assert all(0 < one["low"] <= one["ratio"] <= one["high"] for one in found.values())
    table = pages.arms_table([digits], [{"measurements": timing.measurements}])
    assert "dense" in table.loc["lccl both", "time, %"] and table.loc["original", "time, %"] == "100"
    picture = pages.frontier_picture([digits, digits], [{"measurements": timing.measurements}])
    assert len(picture.axes) == 3


def test_tables_show_means_with_intervals_and_pairs(digits: dict[str, Any]) -> None:
    one, other = (json.loads(json.dumps(digits)) for _ in range(2))
    gaps = {"tucker 50": (0, 2), "thin 50": (-3, -3)}  # against pruned 50, in the one seed and the other
    for number, rows in enumerate(run_["measurements"]["arms"] for run_ in (one, other)):
        rows["pruned 50"]["accuracy"] = 80 + 2 * number
        for name, gap in gaps.items():
            rows[name]["accuracy"] = rows["pruned 50"]["accuracy"] + gap[number]
    table = pages.arms_table([one, other])
    half = 6.3138 * math.sqrt(2) / math.sqrt(2)  # t of one degree of freedom at 95 %, times sd over root n
    assert table.loc["pruned 50", "accuracy, %"] == f"81.00 ({81 - half:.2f} to {81 + half:.2f})"
    assert not set(table.index) & {name for name in rows if "+" in name}
    order = pages.order_table([one, other]).loc["50 % of the maps"]
    against = order["against filter pruning, points"]
    assert against["Tucker-2"] == f"+1.00 ({1 - half:+.2f} to {1 + half:+.2f})"
    assert against["thin network, trained plainly"] == "-3.00 (-3.00 to -3.00)" and not against["filter pruning"]
    words = order["interval"]
    assert (words["Tucker-2"], words["thin network, trained plainly"]) == ("holds 0", "below 0")
    pairs = pages.combinations_table([one, other])
    assert list(pairs.loc["pruned+clustered 50"].index) == ["pruned+clustered 50", "pruned 50", "clustered C64"]
    groups = len(pages.combinations_picture([one, other]).axes[0].get_xticks())
    assert groups == len(pages.arms_table([digits], combined=True)) == 5
    assert list(pages.runs_table([digits])["run file"]) == [digits["run_id"]]


def test_sentences_are_computed_from_the_runs(digits: dict[str, Any]) -> None:
    other = json.loads(json.dumps(digits))
    for run_ in (digits, other):
        rows = run_["measurements"]["arms"]
        rows["tucker 25"]["accuracy"] = rows["pruned 25"]["accuracy"] - 7.5
        rows["searched 50"]["accuracy"] = rows["thin 50"]["accuracy"] + 3
    text = pages.seen([digits, other])
    assert "against filter pruning" in text and "Tucker-2 -7.50 (-7.50 to -7.50) points, below 0" in text
    assert "MetaPruning +3.00 (+3.00 to +3.00) points, above 0" in text
    trained = [f"{method} {left}" for method in ("pruned", "clustered", "tucker") for left in (50, 25)]
    lowest = min(digits["measurements"]["arms"][name]["accuracy"] for name in trained)
    assert pages.upper_part([digits]) == lowest


def test_a_combination_stands_beside_the_arm_that_is_its_first_step(digits: dict[str, Any]) -> None:
    every = {arm.name: arm for arm in arms([HALF, QUARTER], 64)}
    for arm in every.values():
        if arm.alone:
            first = every[arm.alone[0]]
            assert first.wanted == arm.wanted[:1] and (first.random, first.teaching) == (False, "labels"), arm.name
    other = json.loads(json.dumps(digits))
    for number, run_ in enumerate((digits, other)):
        rows = run_["measurements"]["arms"]
        rows["pruned+tucker 25"]["accuracy"] = 40 + number
        rows["pruned 50"]["accuracy"], rows["pruned 25"]["accuracy"] = 70 + number, 35 + number
    steps, budget = pages.seen([digits, other]).splitlines()[-2:]
    both = "pruned, then Tucker-2 (25 %)"
    assert steps.startswith("* Each combination against its first step alone") and f"{both} -30.00 (" in steps
    assert "at the budget of both" in budget and f"{both} +5.00 (" in budget and "clustered" not in budget
    pairs = pages.combinations_table([digits, other]).loc["pruned+tucker 25"]
    assert list(pairs.index) == ["pruned+tucker 25", "pruned 50", "tucker 25", "pruned 25"]
    assert pairs.loc["pruned 50"].iloc[-1].startswith("-30.00") and pairs.loc["pruned 25"].iloc[-1].startswith("+5.00")


def test_unsteady_times_take_no_part_in_the_mean_and_are_counted(digits: dict[str, Any]) -> None:
    def timing(ratio: float, high: float) -> dict[str, Any]:
        row = {"ratio": ratio, "low": 0.5, "high": high, "seconds": 1.0, "runs": 2}
        every = [*digits["measurements"]["arms"], "lccl both, computed densely"]
        return {"measurements": {"latency": dict.fromkeys(every, row)}}

    steady, wild = timing(0.8, 1.0), timing(3.0, 1.01)
    column = pages.arms_table([digits], [steady, steady, wild])["time, %"]
    assert column["pruned 50"] == "80, 1 unsteady" and column["lccl both"] == "80, 1 unsteady (dense 80, 1 unsteady)"
    assert pages.arms_table([digits], [steady])["time, %"]["pruned 50"] == "80"
    assert pages.arms_table([digits], [wild])["time, %"]["pruned 50"] == "1 unsteady"
    panels = pages.frontier_picture([digits, digits], [steady, wild]).axes
    assert {x for line in panels[2].lines for x in line.get_xdata()} <= {80.0} and len(panels) == 3


def test_times_of_a_phone_get_a_column_by_shape(digits: dict[str, Any]) -> None:
    row = {"precision": "fp32", "ratio": {"median": 1.6}, "model": "pruned 50"}
    slow = [{**row, "precision": "fp16"}, {**row, "model": "tucker 50", "ratio": None}]
    phone_run = {"measurements": {"rows": [row, *slow]}}
    column = pages.arms_table([digits], phone=phone_run)["phone's time, %"]
    assert {name for name, value in column.items() if value == "62"} == {
        "pruned 50", "thin 50", "congruent 50", "dafl 50"
    }  # fmt: skip
    assert column["tucker 50"] == column["original"] == ""


def test_forms_that_a_phone_measures_are_those_of_the_arms() -> None:
    forms_ = named("head to head", 0)
    table = accounting.forms_table(forms_["original"][0], (3, 32, 32), [HALF, QUARTER], 64)
    assert len(forms_) == catalogue.EXPERIMENTS["phone.head_to_head"].configs["standard"]["networks"]
    assert all(forms.mac_of(*form) == table.loc[name, "MAC"] for name, form in forms_.items())


def test_arms_of_combinations_need_their_budgets() -> None:
    with pytest.raises(ValueError, match="combinations need 0.5 and 0.75"):
        arms([HALF], 64)
    every = arms([0.25, HALF, QUARTER], 64)
    names = [arm.name for arm in every]
    assert len(names) == len(set(names)) and all(set(arm.alone) <= set(names) for arm in every)
    assert {arm.method for arm in every} == set(head_to_head.METHODS)


def test_a_step_of_unknown_kind_is_refused(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="unknown step 'quantise'"):
        forms.applied(network, {"quantise": 8}, SHAPE)


def test_runs_and_record_belong_to_their_profile(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert head_to_head.runs("head_to_head.resnet20_100steps", "quick") == []
    monkeypatch.setenv("SHRINKBOOK_DATA", str(scratch))
    assert head_to_head.runs("head_to_head.resnet20_100steps", "standard") == []  # no public weights here
    why = "not attempted: head_to_head.resnet20_100steps needs `make data DATA=resnet20-public`"
    assert head_to_head.why_not(head_to_head.comparison("standard")[0], "standard") == why
    assert head_to_head.why_not(head_to_head.comparison("quick")[0], "quick") == ""
    why = "not attempted: head_to_head.resnet20_100steps has no budget in profile paper; it runs in standard"
    assert head_to_head.why_not(head_to_head.comparison("paper")[0], "paper") == why
    with pytest.raises(ValueError, match="unknown profile 'quikc'; there are quick, standard, paper"):
        head_to_head.comparison("quikc")
    for profile, names in head_to_head.COMPARISONS.items():
        assert all(profile in head_to_head.EXPERIMENTS[name].configs for name in names)
    monkeypatch.setattr(store, "record_dir", lambda: scratch / "record")
    assert head_to_head.record("head_to_head.digits", "quick") == []
    baseline = run.unit(catalogue.EXPERIMENTS, "head_to_head.digits_baseline", "quick", 0, {"recipe": SHORT})
    done = run.ensure(baseline, "cpu")
    assert checkpoint.load(baseline.checkpoint)[0] and done["stages"]["original"]["mac"] == by_hand(FULL)
    assert cost(NETS["digits ResNet-8"](), SHAPE).weights == done["stages"]["original"]["weights"]
