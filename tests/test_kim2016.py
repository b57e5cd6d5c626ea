"""Kim et al. 2016: what its experiments count, tell and time, and that claims find what they read."""

import hashlib

import pytest
import torch
from conftest import SmallCifar

from shrinkbook.evidence import claims, store, verdicts
from shrinkbook.experiments import catalogue, kim2016
from shrinkbook.experiments.kim2016 import ranks, timing
from shrinkbook.experiments.kim2016 import tables as pages
from shrinkbook.experiments.kim2016.cost import compressed
from shrinkbook.experiments.run import ensure, unit
from shrinkbook.experiments.steps import layer_inputs
from shrinkbook.measure.cost import cost
from shrinkbook.methods import tucker
from shrinkbook.training import weights

PAPER = claims.load("kim2016")
ONE_ROUND = {"rounds": 1, "warmup": 0, "threads": 1}


def test_printed_ranks_come_from_the_paper_data() -> None:
    alexnet = kim2016.printed_ranks("AlexNet")
    assert list(alexnet) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert isinstance(alexnet["conv1"], int) and isinstance(alexnet["conv2"], tuple)
    assert "conv1_1" not in kim2016.printed_ranks("VGG-16")  # not recovered, not guessed


def test_structural_claims_differ_only_where_the_sources_contradict_each_other(scratch) -> None:
    run = ensure(unit(catalogue.EXPERIMENTS, "kim2016.cost", "quick", 0))
    structural = [claim for claim in PAPER.claims if claim.kind == "structural"]
    words = {claim.id: verdicts.judge(claim, PAPER, [run], "quick")["verdict"] for claim in structural}
    assert {name for name, word in words.items() if word == "differs"} == {
        f"kim2016.{n}" for n in ("1b", "1d", "1f", "4c")
    }
    assert words["kim2016.1g"] == "not attempted"
    assert set(words.values()) == {"reproduced", "differs", "not attempted"}


def test_one_shot_story_on_digits(scratch) -> None:
    short = {"epochs": 2, "batch": 32, "lr": 0.01}
    wanted = unit(catalogue.EXPERIMENTS, "kim2016.digits_finetune", "quick", 0, {"finetune": short})
    run = ensure(wanted)
    story, curve = run["measurements"]["finetune"], run["measurements"]["curve"]
    assert story["original"] > 90 > story["decomposed"] + 10
    assert story["decomposed"] < story["one_epoch"] and curve["epochs"] == [0, 1, 2]
    assert curve["tuned"][0] == pytest.approx(story["decomposed"], abs=1e-3)
    assert curve["tuned"][2] == pytest.approx(story["tuned"], abs=1e-3)
    assert curve["tuned"][1] == pytest.approx(story["one_epoch"], abs=1e-3)
    assert run["stages"]["decomposed"]["mac"] < run["stages"]["original"]["mac"]
    assert run["stages"]["scratch"]["mac"] == run["stages"]["tuned"]["mac"]
    gaps = run["measurements"]["gaps"]["tuned_over_scratch"]
    assert gaps == pytest.approx([story["tuned"] - story[name] for name in ("scratch", "scratch_own_rate")])
    assert all(0 <= share < 100 for share in run["measurements"]["ranks"]["share"])
    judged = {v["claim"]: v for v in verdicts.judge_paper(PAPER, [run], "quick")}
    for claim in ("2a", "3", "4d", "4e", "5"):
        assert judged[f"kim2016.{claim}"]["ours"] is not None, claim
    found = run["measurements"]["ranks"]
    every = [share for row in found["layers"].values() for share in row["estimated"]]
    assert len(found["share"]) == len(every) and max(every) > 1
    for row in found["layers"].values():
        assert row["rank"] in ([], [max(1, rank) for rank in row["estimated"]])
    assert judged["kim2016.4d"]["ours"] == pytest.approx(sum(found["share"]) / len(every)), "the quantity itself"
    assert run["measurements"]["gaps"]["mean_rank_above_untrained"] > 0
    assert store.find(store.runs_dir(), "li2017.digits_vgg", run["parents"][0]) is not None


def test_layers_times_every_factor(scratch) -> None:
    run = ensure(unit(catalogue.EXPERIMENTS, "kim2016.alexnet_layers", "standard", 0, ONE_ROUND), "cpu")
    layers = run["measurements"]["layers"]
    assert list(layers) == list(kim2016.printed_ranks("AlexNet"))
    assert set(layers["conv2"]) == {"original", "compressed", "first", "core", "last", "mac_ratio"}
    assert all(value > 0 for row in layers.values() for value in row.values())
    here = pages.host_layer_columns(run)
    assert set(here.index) <= {cell.row for cell in PAPER.tables["table2"].cells} and "conv2*" in here.index
    table = pages.layer_table(run)
    assert list(table.index) == [*layers, "sum"] and table["time ratio"].notna().all()
    rates = run["measurements"]["percent_of_peak"]
    assert len(rates["core"]) == 5 and len(rates["1x1"]) == 4 * 2 + 1  # convolutions only; conv1 has one factor more
    parts = {part.name: part.mac for part in kim2016.by_shapes("AlexNet")[2].layer("conv2").parts}
    of_peak = parts["conv2.core"] / layers["conv2"]["core"] / run["measurements"]["peak_gmac_per_second"] / 1e7
    assert rates["core"][1] == pytest.approx(of_peak)
    for claim in ("7", "8a"):
        assert verdicts.judge(PAPER.claim(f"kim2016.{claim}"), PAPER, [run], "standard")["ours"] is not None
    assert run["measurements"]["unsteady"] == []
    run["measurements"]["unsteady"] = ["compressed conv2", "compressed conv3.core"]
    ratios = pages.layer_table(run)["time ratio"]
    assert set(ratios.index[ratios == "unsteady"]) == {"conv2", "sum"}
    changes = pages.host_layer_columns(run)["this machine, ms"]
    assert changes["conv2 change"] == "unsteady" and changes["conv3 change"].startswith("x")


def test_unsteady_layers_take_no_part_in_the_gaps(scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[float] = []

    def wild(low: float, high: float) -> bool:  # all but the first: compressed conv1
        slow.append(high)
        return len(slow) > 1

    monkeypatch.setattr(timing, "unsteady", wild)
    run = ensure(unit(catalogue.EXPERIMENTS, "kim2016.alexnet_layers", "standard", 1, ONE_ROUND), "cpu")
    assert run["measurements"]["gaps"] == {} and run["measurements"]["percent_of_peak"] == {"core": [], "1x1": []}
    assert len(run["measurements"]["unsteady"]) == len(slow) - 1 > 20
    assert verdicts.judge(PAPER.claim("kim2016.7"), PAPER, [run], "standard")["verdict"] == "not attempted"


def test_whole_network_takes_each_at_its_fastest(scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "usable_modes", lambda device: ("eager", "channels_last"))  # compiling takes long
    run = ensure(unit(catalogue.EXPERIMENTS, "kim2016.alexnet_latency", "standard", 0, ONE_ROUND), "cpu")
    seconds, ratio = run["measurements"]["seconds"], run["measurements"]["ratio"]
    fastest = {name: min(seconds[mode][name]["median"] for mode in seconds) for name in ("original", "compressed")}
    assert ratio["measured"] == pytest.approx(fastest["original"] / fastest["compressed"])
    assert ratio["realised"] == pytest.approx(ratio["measured"] / ratio["mac"])
    gap = run["measurements"]["gaps"]["faster_but_less_than_mac"]
    assert gap == pytest.approx(min(ratio["mac"] - ratio["measured"], ratio["measured"] - 1))
    assert verdicts.judge(PAPER.claim("kim2016.6a"), PAPER, [run], "standard")["ours"] is not None
    here = pages.host_columns({"AlexNet": {1: [run]}, "VGG-S": {1: []}})
    assert list(here.index) == ["AlexNet", "AlexNet*", "AlexNet change"]
    table = pages.speed_table({"AlexNet": {1: [run, run], 32: []}})
    row = table.loc["AlexNet", 1, "printed"]
    assert row["time ratio"] == round(ratio["measured"], 2) and (row["runs"], row["unsteady runs"]) == (2, 0)
    power = run["measurements"]["power"]
    assert (power["watt"]["original"] is None) == bool(power["reason"])
    assert pages.power_table({"AlexNet": {1: [run]}}).loc["AlexNet", "why not"] == power["reason"]


def test_unsteady_times_have_no_ratio_in_any_table() -> None:
    def run(ratio: float, high: float) -> dict:
        seconds = {"median": 1.0, "low": 1.0, "high": high}
        measured = {
            "seconds": {"eager": {"original": seconds, "compressed": seconds}},
            "fastest": {"original": "eager", "compressed": "eager"},
            "ratio": {"mac": 4.0, "measured": ratio, "realised": ratio / 4},
            "noise": "told so",
        }
        return {"measurements": measured, "config": {"ranks": "printed"}}

    steady, wild = run(2.0, 2.0), run(8.0, 2.01)
    mixed, lost = ({"AlexNet": {1: found, 32: []}} for found in ([steady, wild, wild], [wild]))
    row = pages.speed_table(mixed).loc["AlexNet", 1, "printed"]
    assert (row["time ratio"], row["realised"], row["unsteady runs"]) == (2.0, "0.50 (0.50 to 0.50)", 2)
    row = pages.speed_table(lost).loc["AlexNet", 1, "printed"]
    assert (row["MAC ratio"], row["time ratio"], row["realised"]) == (4.0, "unsteady", "unsteady")
    changes = [pages.host_columns(one).loc["AlexNet change", "this machine, ms"] for one in (mixed, lost)]
    assert changes == ["x2.00", "unsteady"]
    power = pages.power_table(lost).loc["AlexNet"]  # as an earlier version stored it: without power
    assert power["original"] == "" and power["why not"] == "told so"


def test_noisy_rounds_claim_no_gap(scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "usable_modes", lambda device: ("eager",))
    monkeypatch.setattr(timing, "unsteady", lambda low, high: True)
    run = ensure(unit(catalogue.EXPERIMENTS, "kim2016.alexnet_latency", "standard", 0, ONE_ROUND), "cpu")
    assert "gaps" not in run["measurements"] and "no gap" in run["measurements"]["noise"]
    assert run["measurements"]["power"] == {
        "watt": {"original": None, "compressed": None}, "reason": f"not measured, {timing.NOISE}"
    }  # fmt: skip
    assert verdicts.judge(PAPER.claim("kim2016.6a"), PAPER, [run], "standard")["verdict"] == "not attempted"


def test_common_shares_meet_the_printed_totals() -> None:
    for net, columns in {"VGG-S": ("flop", "weights"), "GoogLeNet": ("flop",)}.items():
        report = compressed(net, kim2016.common_share(net))[2]
        for column in columns:
            printed = PAPER.cell(f"table1/{net}*/{column}").number
            ours = report.total("mac_after" if column == "flop" else "weights_after")
            assert ours == pytest.approx(printed, rel=0.005), (net, column)


def test_public_weights_tell_the_whole_story(small_cifar: SmallCifar) -> None:
    name = "kim2016.resnet20_finetune_10ep"
    recipe = {"epochs": 1, "batch": 2, "lr": 0.01}
    run = small_cifar(name, {name: {"finetune": recipe, "looks": [0.5], "keep_out": []}})
    curve = run["measurements"]["curve"]
    assert curve["epochs"] == [0, 0.5, 1] and len(curve["tuned"]) == len(curve["scratch"]) == 3
    verdict = verdicts.judge(PAPER.claim("kim2016.2a"), PAPER, [run], "standard")
    assert verdict["n"] == 12 and verdict["scope"].startswith("this network only"), verdict
    for claim in ("1l", "2b"):  # how much comes back is for ImageNet to say
        assert verdicts.judge(PAPER.claim(f"kim2016.{claim}"), PAPER, [run], "standard")["verdict"] == "not attempted"


def test_ranks_of_public_imagenet_weights(scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHRINKBOOK_DATA", str(scratch))
    generator = torch.Generator().manual_seed(0)

    def planted(rows: int, columns: int, rank: int) -> torch.Tensor:
        left, right = (torch.randn(n, rank, generator=generator) for n in (rows, columns))
        return left @ right.T + 0.1 * torch.randn(rows, columns, generator=generator)

    state = {
        "features.0.weight": planted(32, 27, 4).view(32, 3, 3, 3),
        "features.0.bias": torch.zeros(32),
        "aux1.conv.weight": torch.zeros(8, 8, 1, 1),
        "features.3.weight": torch.einsum("tr,rsij->tsij", torch.randn(48, 5), torch.randn(5, 32, 3, 3)),
        "classifier.1.weight": planted(40, 64, 7),
    }
    state["features.3.weight"] += 0.1 * torch.randn(48, 32, 3, 3)
    name = "kim2016.alexnet_imagenet_ranks"
    assert "make data" in catalogue.left_out(["kim2016"], "standard", "cpu")[name]
    assert name not in {one.experiment.name for one in catalogue.units(["kim2016"], "standard", None, "cpu")}
    assert name in {one.experiment.name for one in catalogue.units(["kim2016"], "standard")}
    file = scratch / "file"
    torch.save(state, file)
    start = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(weights.PUBLIC, "alexnet-public", weights.Weights(scratch.as_uri(), f"alexnet-{start}.pth"))
    served = scratch / f"alexnet-{start}.pth"
    file.rename(served)
    assert weights.fetch("alexnet-public").read_bytes() == served.read_bytes()
    assert name not in catalogue.left_out(["kim2016"], "standard", "cpu")
    run = ensure(unit(catalogue.EXPERIMENTS, name, "standard", 0, {"threads": 1}), "cpu")
    layers = run["measurements"]["ranks"]["layers"]
    assert {key: row["kind"] for key, row in layers.items()} == {
        "features.0": "tucker1", "features.3": "tucker2", "classifier.1": "svd"
    }  # fmt: skip
    assert layers["features.0"]["estimated"] == [4] and layers["classifier.1"]["estimated"] == [7]
    assert layers["features.3"]["estimated"][1] == 5
    assert run["measurements"]["gaps"]["mean_rank_above_untrained"] > 5
    assert verdicts.judge(PAPER.claim("kim2016.4d"), PAPER, [run], "standard")["ours"] is not None


def layer(name: str, kind: str, estimated: tuple[int, ...], used: tuple[int, ...]) -> tucker.Layer:
    return tucker.Layer(name, kind, (16,) * len(estimated), estimated, used, 1, 1, 1, 1, None, (), "")


def test_shares_and_trend_are_of_the_estimates_whatever_became_of_the_layer() -> None:
    rows = [
        layer("a", "tucker1", (4,), (4,)), layer("b", "tucker2", (0, 8), (1, 8)), layer("c", "kept", (15, 16), ()),
        layer("d", "tucker2", (2, 2), (2, 2)),
    ]  # fmt: skip
    out = tucker.Layer("out", "kept", (), None, (), 1, 1, 1, 1, None, (), "kept out")
    found = ranks.rank_shares(tucker.Report((*rows, out)))
    assert found["share"] == [25, 0, 50, 93.75, 100, 12.5, 12.5]
    assert (found["depth"], found["input_share"]) == ([1, 2, 3], [0, 93.75, 12.5])
    table = pages.ranks_table({"seed 0": {"measurements": {"ranks": found}}})["seed 0"]
    assert dict(table) == {
        "a": "[4] of [16]", "b": "[0, 8] of [16, 16], used [1, 8]", "c": "[15, 16] of [16, 16], left whole",
        "d": "[2, 2] of [16, 16]",
    }  # fmt: skip
    del found["layers"]["d"]["estimated"]  # as an earlier version stored it
    other = {"measurements": {"ranks": {"layers": {"e": {"rank": [3], "full": [9]}}}}}
    table = pages.ranks_table({"seed 0": {"measurements": {"ranks": found}}, "seed 1": other})
    assert table.loc["d", "seed 0"] == "[2, 2] of [16, 16]" and list(table.loc["e"]) == ["", "[3] of [9]"]


@pytest.mark.parametrize(("trained", "untrained"), [(0, 0), (2, 2), (15, 0)])
def test_neither_nothing_nor_noise_has_ranks_far_below_the_full_ones(trained: int, untrained: int) -> None:
    share, other = (100 * rank / 16 for rank in (trained, untrained))
    gaps = {"mean_rank_below_60": 60 - share, "mean_rank_above_untrained": share - other}
    stored = [
        {
            "experiment": "kim2016.digits_finetune", "version": 3, "profile": "quick", "seed": seed,
            "run_id": str(seed), "config": {"data": "digits", "schedule": "30 epochs"}, "status": "finished",
            "parents": [], "cells": {}, "measurements": {"gaps": gaps},
        }
        for seed in range(5)
    ]  # fmt: skip
    claim = PAPER.claim("kim2016.4d")
    assert verdicts.judge(claim, PAPER, stored, "quick")["verdict"] != "reproduced"
    for run in stored:
        run["measurements"]["gaps"] = {"mean_rank_below_60": 48.0, "mean_rank_above_untrained": 12.0}
    assert verdicts.judge(claim, PAPER, stored, "quick")["verdict"] == "reproduced"


def test_untrained_kernels_are_judged_alike_in_both_profiles(scratch) -> None:
    claim, name = PAPER.claim("kim2016.5"), "kim2016.untrained_ranks"
    assert claim.experiments[0] == name
    for profile in ("quick", "standard"):
        wanted = catalogue.units(["kim2016"], profile)
        runs = [ensure(one, "cpu") for one in wanted if one.experiment.name == name]
        verdict = verdicts.judge(claim, PAPER, runs, profile)
        assert (verdict["verdict"], verdict["ours"], verdict["n"]) == ("reproduced", 0, 5), verdict["reason"]
        assert list(runs[0]["measurements"]["ranks"]["layers"]) == [f"conv{n}" for n in range(1, 6)]
    runs[0]["measurements"]["gaps"]["one_over_untrained_rank"] = -2
    assert verdicts.judge(claim, PAPER, runs, "standard")["verdict"] == "inconclusive"


def test_claims_about_four_networks_have_the_seeds_that_an_order_needs() -> None:
    for claim in PAPER.claims:
        for name in claim.experiments if claim.kind == "order" else ():
            if name.endswith(("_latency", "_layers")):
                assert len([u for u in catalogue.units(["kim2016"], "standard") if u.experiment.name == name]) == 5, (
                    name
                )


def test_claims_name_experiments_that_exist() -> None:
    missing = {name for claim in PAPER.claims for name in claim.experiments} - set(catalogue.EXPERIMENTS)
    assert missing == {"kim2016.imagenet_finetune"}, "planned for profile paper, its cost stated"


def test_layers_are_timed_on_what_they_read() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2 * 4 * 4, 3)).eval()
    image = torch.randn(1, 1, 6, 6)
    seen = layer_inputs(model, image)
    assert torch.equal(seen["0"], image)
    assert torch.equal(seen["2"], model[1](model[0](image)))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_originals_count_one_addition_an_output() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2 * 4 * 4, 3))
    assert kim2016.additions(cost(model, (1, 6, 6))) == (16 * 18 + 32) + (96 + 3)
