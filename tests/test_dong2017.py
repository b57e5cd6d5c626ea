"""Dong et al. 2017: what its experiments count, train, skip and time."""

from functools import partial

import pytest
import torch
from conftest import SmallCifar, paths_of
from torch import nn

from shrinkbook.evidence import claims, report, samples, verdicts
from shrinkbook.evidence.statistics import agree
from shrinkbook.evidence.store import dig
from shrinkbook.experiments import catalogue, dong2017
from shrinkbook.experiments.dong2017 import tables as pages
from shrinkbook.experiments.dong2017.gated import ARMS, cells, data_sets, depths, exactness, started, zero_maps
from shrinkbook.experiments.dong2017.gated import gated as gated_experiment
from shrinkbook.experiments.dong2017.skip import break_even
from shrinkbook.experiments.experiment import Context, Experiment
from shrinkbook.experiments.networks import NETS
from shrinkbook.experiments.run import ensure, unit
from shrinkbook.measure.cost import cost
from shrinkbook.methods.lccl import add_lccl, gates
from shrinkbook.nets import PreactResNet, initialize
from shrinkbook.training import evaluate
from shrinkbook.training.data import STORED

PAPER = claims.load("dong2017")
CIFAR = PAPER.tables["cifar10"]
ONE_EPOCH = {"epochs": 1, "batch": 100, "lr": 0.1}
LEARNING = {"epochs": 6, "batch": 25, "lr": 0.03}  # enough for every arm to leave chance on digits
NO_STEPS = {**ONE_EPOCH, "lr": 0.0}

WORDS = ("differs", "differs", "reproduced", "reproduced")  # the count of the authors' code, fixed beforehand


def test_structural_claims_are_what_the_printed_savings_leave(scratch) -> None:
    run = ensure(unit(catalogue.EXPERIMENTS, "dong2017.cost", "quick", 0))
    structural = [claim for claim in PAPER.claims if claim.kind == "structural"]
    words = {claim.id: verdicts.judge(claim, PAPER, [run], "quick")["verdict"] for claim in structural}
    assert words == {f"dong2017.{name}": word for name, word in zip(("1a", "1b", "7a", "9a"), WORDS, strict=True)}
    reading = run["measurements"]["readings"]["imagenet/ResNet-18-LCCL"]
    assert reading["left if faster"] == pytest.approx(reading["base, as published"] / 1.346)
    assert reading["left if removed"] == pytest.approx(reading["base, as published"] * (1 - 0.346))
    printed = PAPER.cell("imagenet/ResNet-18-LCCL/flop").value
    assert [agree(reading[f"left if {how}"], printed) for how in ("removed", "faster")] == ["reproduced", "differs"]


@pytest.fixture(scope="module")
def digits():
    return ensure(unit(catalogue.EXPERIMENTS, "dong2017.digits", "quick", 0, {"recipe": LEARNING}))


def test_digits_fill_what_their_claims_read(digits) -> None:
    read = [claim for claim in PAPER.claims if "dong2017.digits" in claim.experiments]
    assert {claim.id for claim in read} == {f"dong2017.{name}" for name in ("2", "8a", "8b")}
    for claim in read:
        assert all(dig(digits["measurements"], path) is not None for path in paths_of(claim)), claim.id
        assert verdicts.judge(claim, PAPER, [digits], "quick")["ours"] is not None, claim.id


def test_arms_start_alike_and_gates_are_counted_layer_by_layer(digits) -> None:
    arms, stages = digits["measurements"]["arms"], digits["stages"]
    assert list(arms) == digits["config"]["arms"]
    assert stages["lccl"]["mac"] > stages["baseline"]["mac"]  # gates cost, before anything is skipped
    layers = arms["lccl"]["layers"]
    assert list(layers) == [f"layer{n}.0.conv{m}" for n in (1, 2) for m in (1, 2)]
    assert [row["break_even"] for row in layers.values()] == pytest.approx([1 / n for n in (16, 16, 32, 32)])
    assert all(row["low"] <= row["zeros"] <= row["high"] for row in layers.values())
    assert arms["pointwise"]["overhead"] == pytest.approx(100 / 9)
    measured = digits["measurements"]
    assert measured["saving"]["above_20"] == pytest.approx(100 * arms["lccl"]["removed"] - 20)
    assert measured["sparsity"] == {"bn_relu": arms["lccl"]["zeros"], "relu": arms["relu"]["zeros"]}
    table = pages.arms_table([digits])
    assert table.loc["lccl", "saved of gated layers, %"] != table.loc["lccl", "saved, %"]
    assert table.loc["pointwise", "as the authors count, %"] == ""  # their formula asserts one map


def test_arms_start_from_the_same_network_and_gates_do_not_repeat_its_numbers() -> None:
    net = "digits pre-activation ResNet"
    plain, gated = started(net, "baseline", 0), started(net, "lccl", 0)
    assert torch.equal(plain.layer2[0].conv2.weight, gated.layer2[0].conv2.main.weight)
    stem, gate = plain.stem[0].weight.flatten(), gated.layer1[0].conv1.gate.conv.weight.flatten()
    count = min(len(stem), len(gate))
    assert abs(torch.corrcoef(torch.stack([stem[:count], gate[:count]]))[0, 1]) < 0.3
    for place, conv in (("first", "conv1"), ("second", "conv2")):
        assert all(path.endswith(conv) for path in gates(started(net, place, 0)))
    assert gates(started(net, "grid", 0))["layer1.0.conv1"].grid == 2


def test_skipping_is_exact_with_trained_gates(digits) -> None:
    exact = digits["measurements"]["exact"]
    assert -1e-9 < exact["minus_difference"] <= 0
    assert exact["minus_miscount"] == 0
    assert all(0 < row["done"] < row["dense"] for row in exact["layers"].values())


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_skips_exactly(arm: str) -> None:
    plain = initialize(PreactResNet((1, 1), (8, 16), in_channels=1), 0)
    model = add_lccl(plain, **ARMS[arm]).eval()
    found = exactness(model, torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert -1e-9 < found["minus_difference"] <= 0 and found["minus_miscount"] == 0


def test_zero_maps_show_images_and_three_gates(digits) -> None:
    maps = digits["measurements"]["maps"]
    assert len(maps["images"]) == 6 and len(maps) == 4
    first = torch.tensor(maps["layer1.0.conv1"])
    assert first.shape == (6, 8, 8) and set(first.unique().tolist()) <= {0, 1}
    drawn = pages.maps_picture(digits).axes
    shown = [torch.tensor(axis.images[0].get_array()) for axis in (drawn[0], drawn[6])]
    painted = (shown[0] != shown[1]).any(2).int()  # below the image, where the first gate is closed and only there
    assert torch.equal(painted, first[0])


@pytest.mark.parametrize(("bias", "closed"), [(1.0, 0), (-1.0, 1)])
def test_zero_maps_mark_what_is_closed(bias: float, closed: int) -> None:
    model = started("digits pre-activation ResNet", "lccl", 0).eval()
    gate = model.layer1[0].conv1.gate
    nn.init.zeros_(gate.conv.weight)
    nn.init.constant_(gate.norm.bias, bias)
    maps = torch.tensor(zero_maps(model, torch.rand(2, 1, 8, 8))["layer1.0.conv1"])
    assert (maps == closed).all()


def test_an_output_that_is_not_finite_is_not_exact() -> None:
    model = started("digits pre-activation ResNet", "lccl", 0).eval()
    nn.init.constant_(model.layer2[0].conv2.main.weight, torch.nan)
    with pytest.raises(ValueError, match=r"layer layer2.0.conv2: the output holds NaN"):
        exactness(model, torch.rand(2, 1, 8, 8))


def test_a_child_adds_its_arm_to_the_parents(digits, scratch) -> None:
    config = {**digits["config"], "arms": ["relu"]}
    assert digits["measurements"]["learnt"] == digits["measurements"]["accuracy"]
    experiment = Experiment("dong2017.child", gated_experiment, {"quick": config}, parents=("dong2017.digits",))
    context = Context(unit({**catalogue.EXPERIMENTS, "dong2017.child": experiment}, "dong2017.child", "quick", 0),
                      "cpu", {"dong2017.digits": digits}, print)  # fmt: skip
    gated_experiment(context)
    assert {row["phase"] for row in context.history} == {"relu"}
    assert context.measurements["accuracy"] == digits["measurements"]["accuracy"]  # the same arm once more
    assert context.measurements["sparsity"] == digits["measurements"]["sparsity"]


def test_accuracy_is_drawn_against_saving_beside_the_printed_rows(digits) -> None:
    (alone,) = pages.frontier_picture([digits], CIFAR).axes
    assert [line.get_label() for line in alone.lines] == ["baseline", *digits["config"]["arms"]]
    saved = 100 * digits["measurements"]["arms"]["lccl"]["removed"]
    assert list(alone.lines[1].get_xdata()) == [saved] and list(alone.lines[0].get_xdata()) == [0]
    named = {**digits, "config": {**digits["config"], "data": "cifar10"}}
    _, printed = pages.frontier_picture([named], CIFAR).axes
    points = {line.get_label(): (*line.get_xdata(), *line.get_ydata()) for line in printed.lines}
    assert points["ResNet-110, printed"] == (0, 34.2, 93.63, 93.44)
    assert not any("ResNet-44" in label for label in points)  # nothing printed, nothing drawn
    assert all(line.get_marker() not in ("", "None", None) for line in [*alone.lines, *printed.lines])


def test_cifar_runs_fill_the_printed_rows(small_cifar: SmallCifar, monkeypatch: pytest.MonkeyPatch) -> None:
    shallow = partial(PreactResNet, (1, 1, 1), (16, 32, 64))  # nine blocks overflow after a few steps on 12 images
    monkeypatch.setitem(NETS, "pre-activation ResNet-20", shallow)
    name = "dong2017.resnet20_10ep"
    small = {"recipe": {"epochs": 20, "batch": 6, "lr": 1e-2}, "exact_images": 1}
    child = small_cifar("dong2017.resnet20_relu_10ep", dict.fromkeys((name, "dong2017.resnet20_relu_10ep"), small))
    run = small_cifar(name, {name: small})
    row, mac = run["cells"]["cifar10"], cost(shallow(), (3, 32, 32)).mac
    assert row["ResNet-20-LCCL"] == row["ResNet-20-LCCL, second row"]
    drop = row["ResNet-20"]["accuracy"] - row["ResNet-20-LCCL"]["accuracy"]
    assert row["ResNet-20-LCCL"]["drop"] == pytest.approx(drop)
    assert row["ResNet-20-LCCL"]["flop"] == pytest.approx(mac * (1 - row["ResNet-20-LCCL"]["saved"] / 100))
    assert row["ResNet-20"]["accuracy"] == run["measurements"]["accuracy"]["baseline"]
    assert run["cells"]["kernels"] == {"kxkxCx1": {k: row["ResNet-20-LCCL"][k] for k in ("accuracy", "saved")}}
    assert run["cells"]["placement"]["both convolutions"] == run["cells"]["kernels"]["kxkxCx1"]
    relu = child["measurements"]["arms"]["relu"]
    assert child["cells"]["sparsity"]["ReLU"] == {
        "accuracy": child["measurements"]["accuracy"]["relu"], "zeros": relu["zeros"]
    }  # fmt: skip
    assert child["cells"]["sparsity"]["BN and ReLU"] == run["cells"]["sparsity"]["BN and ReLU"]
    assert "cifar10" not in child["cells"]
    for claim in PAPER.claims:
        if name in claim.experiments:
            assert all(dig(run["measurements"], path) is not None for path in paths_of(claim)), claim.id


def test_the_plain_network_trains_by_its_own_recipe_where_there_is_one(scratch) -> None:
    plain = {"recipe": {**ONE_EPOCH, "warmup": 0.5}, "arms": ["lccl"]}
    run = ensure(unit(catalogue.EXPERIMENTS, "dong2017.digits", "quick", 0, plain))
    assert [(row["phase"], row["lr"]) for row in run["history"]] == [("baseline", 0.1), ("lccl", 0.1)]
    full = unit(catalogue.EXPERIMENTS, "dong2017.resnet56", "standard", 0).config
    recipes = [full["plain recipe"], full["recipe"]]
    assert [recipe["epochs"] for recipe in recipes] == [164, 164]
    assert [recipe.get("warmup", 0) for recipe in recipes] == [0, 0.03]
    short = unit(catalogue.EXPERIMENTS, "dong2017.resnet20_10ep", "standard", 0).config
    assert "plain recipe" not in short and short["recipe"]["warmup"] == 0.03


def filled(name: str, parents: dict[str, dict]) -> Context:
    context = Context(unit(catalogue.EXPERIMENTS, name, "standard", 0), "cpu", parents, print)
    context.stages["baseline"] = {"mac": 1000}
    return context


def test_losses_by_depth_and_by_data_set() -> None:
    def parent(data: str, lccl: float) -> dict:
        measured = {"accuracy": {"baseline": 90.0, "lccl": lccl}}
        return {"config": {"data": data}, "measurements": measured, "status": "collapsed" if lccl < 20 else "finished"}

    deep = filled("dong2017.depths", {f"dong2017.resnet{d}": parent("cifar10", 80 + d / 20) for d in (20, 110)})
    depths(deep)
    assert deep.measurements["depths"] == {"layers": [20, 110], "drop": [9.0, 4.5]}
    assert deep.cells["cifar10"]["ResNet-110-LCCL"]["drop"] == 4.5
    losses = {"dong2017.resnet20": 89.0, "dong2017.resnet32": 87.0, "dong2017.resnet20_cifar100": 85.0}
    sets = filled("dong2017.data_sets", {n: parent("cifar" + (n[18:][-3:] or "10"), a) for n, a in losses.items()})
    data_sets(sets)
    assert sets.measurements["drop"] == {"cifar10": 2.0, "cifar100": 5.0}
    for name, function in (("dong2017.depths", depths), ("dong2017.data_sets", data_sets)):
        parents = {"dong2017.resnet20": parent("cifar10", 10.0), "dong2017.resnet110": parent("cifar10", 89.0)}
        run = filled(name, parents)
        function(run)
        assert run.status == "collapsed" and not run.measurements and not run.cells  # no slope through a chance level


@pytest.mark.parametrize(("data", "rows"), [("cifar10", 4), ("cifar100", 2)])
def test_rows_are_filled_in_the_table_of_their_data(data: str, rows: int) -> None:
    run = filled({"cifar10": "dong2017.resnet20", "cifar100": "dong2017.resnet20_cifar100"}[data], {})
    run.measurements |= {"accuracy": {"baseline": 90.0, "lccl": 89.0}, "arms": {"lccl": {"removed": 0.25}}}
    run.measurements["learnt"] = run.measurements["accuracy"]
    cells(run, "ResNet-20")
    assert list(run.cells) == [data] and len(run.cells[data]) == rows
    assert run.cells[data]["ResNet-20-LCCL"] == {"accuracy": 89, "drop": 1, "saved": 25, "flop": 750}


def test_whole_networks_are_timed_at_the_printed_saving(scratch) -> None:
    small = {"side": 96, "rounds": 1, "warmup": 1}
    run = ensure(unit(catalogue.EXPERIMENTS, "dong2017.network_speed", "standard", 0, small), "cpu")
    for net in ("ResNet-18", "ResNet-34"):
        printed = PAPER.cell(f"imagenet/{net}-LCCL/saved").number
        ours = run["cells"]["speed"][f"{net}-LCCL"]
        assert ours["theoretical"] == pytest.approx(printed, abs=1.5)  # of nine positions of a map whole ones close
        seconds = run["measurements"][net]["seconds"]
        dense = min(seconds["im2col in blocks"], seconds["im2col at once"])
        assert ours["measured"] == pytest.approx(100 * (1 - seconds["skipping"] / dense))  # of a single round


def test_gates_that_diverged_cost_the_run_its_verdicts_not_its_numbers(scratch) -> None:
    wild = {"recipe": {**ONE_EPOCH, "batch": 8, "lr": 1e6}, "arms": ["lccl"]}
    run = ensure(unit(catalogue.EXPERIMENTS, "dong2017.digits", "quick", 0, wild))
    assert run["status"] == "collapsed" and "lccl" in run["measurements"]["accuracy"]
    assert "lccl" not in run["measurements"]["arms"] and "not finite" in run["measurements"]["diverged"]["lccl"]
    assert verdicts.judge(PAPER.claim("dong2017.8a"), PAPER, [run], "quick")["verdict"] == "inconclusive"


@pytest.fixture
def at_chance(small_cifar: SmallCifar, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """ResNet-20 (a shallow one) and its ablation on noise, at a rate of 0: none learns, gates close as drawn."""
    monkeypatch.setitem(NETS, "pre-activation ResNet-20", partial(PreactResNet, (1, 1, 1), (16, 32, 64)))
    still = {"recipe": NO_STEPS, "plain recipe": NO_STEPS, "exact_images": 1}
    names = ("dong2017.resnet20", "dong2017.resnet20_ablation")
    return [small_cifar(name, dict.fromkeys(names[: 1 + place], still)) for place, name in enumerate(names)]


@pytest.mark.parametrize("plain", [None, 92.0], ids=["plain network at chance", "plain network learnt"])
def test_five_collapsed_runs_reproduce_nothing(at_chance: list[dict], plain: float | None) -> None:
    """Left in, gates at 50 % zeros would save what the paper says, and arms at chance would lose nothing."""
    assert [set(run["measurements"]["accuracy"]) for run in at_chance] == [{"baseline", "lccl"}, {"baseline", *ARMS}]
    runs = []
    for one in at_chance:
        measured = one["measurements"]
        assert one["status"] == "collapsed"
        assert measured["learnt"] == measured["arms"] == {} and not {"saving", "sparsity", "exact"} & measured.keys()
        assert {column for table in one["cells"].values() for row in table.values() for column in row} == {"accuracy"}
        measured = measured | {"accuracy": dict.fromkeys(measured["accuracy"], 10.0)}  # on ten classes; noise varies
        run = {**one, "config": {**one["config"], "schedule": "paper"}, "measurements": measured}
        if plain:
            extra = {"accuracy": {**measured["accuracy"], "baseline": plain}, "learnt": {"baseline": plain}}
            rows = {**run["cells"].get("cifar10", {}), "ResNet-20": {"accuracy": plain}}
            run |= {"measurements": {**measured, **extra}, "cells": {**run["cells"], "cifar10": rows}}
        runs += [{**run, "seed": seed, "run_id": f"{seed:016d}"} for seed in range(5)]
    words = {verdict["claim"]: verdict["verdict"] for verdict in verdicts.judge_paper(PAPER, runs, "standard")}
    judged = {name.removeprefix("dong2017."): word for name, word in words.items() if word != "not attempted"}
    assert {"1d", "1e", "2", "3a", "3b", "4a", "4b", "8a", "8b"} <= judged.keys()
    assert "reproduced" not in judged.values()


def older(run: dict, **accuracy: float) -> dict:
    """A run of before collapse was noted arm by arm: everything counted, the status collapsed."""
    measured = {key: value for key, value in run["measurements"].items() if key != "learnt"}
    measured["accuracy"] = measured["accuracy"] | accuracy
    arms = {name: {**arm, "dead": {"layer1.0.conv1": "closed"}} for name, arm in measured["arms"].items()}
    measured["arms"] = {name: {k: v for k, v in arm.items() if k != "idle"} for name, arm in arms.items()}
    return {**run, "status": "collapsed", "measurements": measured}


def test_arms_of_older_collapsed_runs_are_shown_without_a_saving(digits) -> None:
    run = older(digits, lccl=10.0)
    table = pages.arms_table([run])
    assert table.loc["lccl", ["accuracy", "not trained", "saved, %", "zeros, %"]].tolist() == [
        "10", "1 of 1 collapsed", "—", "—"
    ]  # fmt: skip
    assert table.loc["relu", "not trained"] == "" and float(table.loc["relu", "saved, %"])
    assert table.loc["relu", ["gates closed", "gates without gradient"]].tolist() == ["1", ""]
    both = pages.arms_table([run, {**digits, "seed": 1}])
    assert both.loc["lccl", "not trained"] == "1 of 2 collapsed"
    assert both.loc["lccl", "saved, %"] == pages.arms_table([digits]).loc["lccl", "saved, %"]  # of the one that did
    points = {line.get_label(): len(line.get_xdata()) for line in pages.frontier_picture([run], CIFAR).axes[0].lines}
    assert points == {"baseline": 1, "lccl (1 of 1 collapsed)": 0, "pointwise": 1, "relu": 1}
    assert list(dong2017.counted(run)) == ["pointwise", "relu"]
    assert pages.exact_table([run]).loc[0, "network"] == "collapsed"


def test_a_child_takes_nothing_of_a_collapsed_parents_gates(digits, scratch) -> None:
    config = {**digits["config"], "arms": []}
    experiment = Experiment("dong2017.child", gated_experiment, {"quick": config}, parents=("dong2017.digits",))
    one = unit({**catalogue.EXPERIMENTS, "dong2017.child": experiment}, "dong2017.child", "quick", 0)
    context = Context(one, "cpu", {"dong2017.digits": older(digits, lccl=10.0)}, print)
    gated_experiment(context)
    assert context.status == "collapsed" and "lccl" not in context.measurements["arms"]
    assert "lccl" in context.measurements["accuracy"] and "sparsity" not in context.measurements


def test_a_diverged_arm_is_named_where_its_numbers_would_stand(digits) -> None:
    measured = {key: value for key, value in digits["measurements"].items() if key not in ("maps", "exact")}
    arms = {name: arm for name, arm in measured["arms"].items() if name != "lccl"}
    measured |= {"arms": arms, "diverged": {"lccl": "layer layer1.0.conv1: the gate holds NaN"}}
    run = {**digits, "seed": 7, "status": "collapsed", "measurements": measured}
    table = pages.exact_table([digits, run])
    assert table.loc[7, ["difference", "miscount", "network"]].tolist() == ["—", "—", "diverged"]
    assert table.loc[0, "network"] == "trained" and table.loc[0, "difference"] >= 0 == table.loc[0, "miscount"]
    arms = pages.arms_table([digits, run])
    assert arms.loc["lccl", "not trained"] == "1 of 2 diverged"
    assert "lccl (1 of 2 diverged)" in [
        line.get_label() for line in pages.frontier_picture([digits, run], CIFAR).axes[0].lines
    ]


def test_the_tables_on_cifar_show_trained_networks_and_no_arithmetic(scratch) -> None:
    counted = ensure(unit(catalogue.EXPERIMENTS, "dong2017.cost", "standard", 0))
    flop, place = "cifar10/ResNet-20-LCCL/flop", ("ResNet-20-LCCL", "flop [FLOP]")
    assert report.wide(CIFAR, [], [counted]).loc[place] == "2.61e7 [recalled] | — | —"
    row = {"accuracy": 91.0, "saved": 30.0, "flop": 2.84e7}
    trained = filled("dong2017.resnet20", {})
    run = {
        "experiment": "dong2017.resnet20", "profile": "standard", "version": 1, "seed": 0, "run_id": "0" * 16,
        "status": "finished", "config": dict(trained.config), "cells": {"cifar10": {"ResNet-20-LCCL": row}},
    }  # fmt: skip
    for schedule, mark in (("paper", ""), ("10 epochs", " [10 epochs]")):
        run["config"]["schedule"] = schedule
        assert report.wide(CIFAR, [], [counted, run]).loc[place] == f"2.61e7 [recalled] | — | 2.84e7{mark}"
        side = report.side_by_side(CIFAR, [], [counted, run], {flop}).set_index(["row", "column"])
        assert side.loc[("ResNet-20-LCCL", "flop"), "word"] == "close"  # of the arithmetic, which the claim is about
    collapsed = {**run, "status": "collapsed", "cells": {"cifar10": {"ResNet-20-LCCL": {**row, "accuracy": 10.0}}}}
    shown = report.wide(CIFAR, [], [counted, collapsed]).loc["ResNet-20-LCCL"]
    assert shown["accuracy [%]"].endswith("| 10.00 [10 epochs, collapsed]")
    assert shown["saved [%]"] == "36.0 [recalled] | — | —" and shown["flop [FLOP]"] == "2.61e7 [recalled] | — | —"
    one, other = collapsed, {**run, "seed": 1}
    shown = report.wide(CIFAR, [], [one, other]).loc["ResNet-20-LCCL"]
    assert shown["accuracy [%]"].endswith("(2) [10 epochs, 1 of 2 collapsed]")
    assert shown["saved [%]"].endswith("| 30.0 [10 epochs]")


def test_chance_is_where_training_finds_it() -> None:
    for data, classes in (("digits", 10), ("cifar10", 10), ("cifar100", 100), ("imagenet", 1000)):
        for accuracy in (100 / classes, 150 / classes, 151 / classes):
            assert samples.at_chance({"config": {"data": data}}, accuracy) == evaluate.at_chance(accuracy, classes)
    assert {name: layout.classes for name, layout in STORED.items() if layout.classes != 10} == samples.CLASSES


def test_skipping_is_timed_against_both_dense_forms(scratch) -> None:
    small = {"shapes": [[64, 4], [8, 6]], "zeros": [0.0, 0.6], "rounds": 2, "warmup": 1, "batch": 2}
    run = ensure(unit(catalogue.EXPERIMENTS, "dong2017.skip", "quick", 0, small))
    points = run["measurements"]["points"]
    assert [(p["channels"], p["zeros"]) for p in points] == [(64, 0.0), (64, 0.6), (8, 0.0), (8, 0.6)]
    assert [p["closed"] for p in points] == pytest.approx([0, 0.6, 0, 0.6], abs=0.04)
    seconds, skip = points[1]["seconds"], run["measurements"]["skip"]  # 64 channels and more
    dense = min(seconds["im2col in blocks"], seconds["im2col at once"])
    assert skip["shared_gain"] == [pytest.approx(dense / seconds["kxkxCx1"] - 1)]
    assert skip["shared"] == pytest.approx(dense / seconds["kxkxCx1"])
    assert skip["pointwise"] == pytest.approx(dense / seconds["1x1xCxT"])
    assert skip["measured"] == pytest.approx(100 * (1 - seconds["kxkxCx1"] / dense))
    assert skip["theoretical"] == pytest.approx(100 * (0.6 - 1 / 64))
    assert len(pages.even_picture([run]).axes[0].patches) == 2
    assert list(run["measurements"]["break_even"]) == ["64x4x4", "8x6x6"]
    assert len(pages.skip_table([run])) == 4
    assert len(pages.speed_picture([run, run]).axes) == 2
    for claim in ("5a", "5b", "5c", "5d"):
        assert verdicts.judge(PAPER.claim(f"dong2017.{claim}"), PAPER, [run], "quick")["ours"] is not None


def test_the_goal_is_judged_shape_by_shape_by_the_medians() -> None:
    shapes = ((64, 8, 0.6), (128, 16, 0.6), (64, 8, 0.9), (32, 8, 0.6))

    def run(*gains: float) -> dict:
        points = [
            {"channels": c, "side": side, "zeros": z,
             "seconds": {"im2col in blocks": gain, "im2col at once": 9.0, "kxkxCx1": 1.0}}
            for (c, side, z), gain in zip(shapes, gains, strict=True)
        ]  # fmt: skip
        return {"measurements": {"points": points}}

    text = pages.goal_text([run(1.2, 1.5, 3, 3), run(1.3, 1.9, 3, 3), run(1.9, 1.6, 3, 3)])
    assert text == (
        "The goal, 1.5 times at 60 % zeros from 64 channels on, is reached on 128 x 16 x 16 (1.60) and missed on "
        "64 x 8 x 8 (1.30)."
    )
    assert pages.goal_text([run(2, 2, 1, 1)]).endswith("is reached on 64 x 8 x 8 (2.00), 128 x 16 x 16 (2.00).")


def test_break_even_is_interpolated() -> None:
    def points(*gains: float) -> list[dict]:
        seconds = [{"framework": gain, "framework, channels last": 9.0, "kxkxCx1": 1.0} for gain in gains]
        return [
            {"channels": 8, "side": 4, "zeros": z, "seconds": s} for z, s in zip((0.0, 0.4, 0.8), seconds, strict=True)
        ]

    assert break_even(points(0.5, 0.8, 1.6), 8, 4) == pytest.approx(0.5)
    assert break_even(points(1.2, 1.5, 1.6), 8, 4) == 0.0
    assert break_even(points(0.5, 0.6, 0.7), 8, 4) is None
