"""Kim et al. 2016: what its experiments count, tell and time, and that claims find what they read."""

import pytest
import torch

from shrinkbook.evidence import claims, store, verdicts
from shrinkbook.experiments import catalogue, kim2016
from shrinkbook.experiments.run import ensure, unit
from shrinkbook.measure.cost import cost

PAPER = claims.load("kim2016")


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
    assert all(0 <= share < 100 for share in run["measurements"]["ranks"]["share"])
    judged = {v["claim"]: v for v in verdicts.judge_paper(PAPER, [run], "quick")}
    for claim in ("2a", "3", "4d", "4e", "5"):
        assert judged[f"kim2016.{claim}"]["ours"] is not None, claim
    assert store.find(store.runs_dir(), "li2017.digits_vgg", run["parents"][0]) is not None


def test_layer_latency_times_every_factor(scratch) -> None:
    settings = {"rounds": 1, "warmup": 0}
    run = ensure(unit(catalogue.EXPERIMENTS, "kim2016.alexnet_latency", "standard", 0, settings), "cpu")
    layers = run["measurements"]["seconds"]["layers"]
    assert list(layers) == list(kim2016.printed_ranks("AlexNet"))
    assert set(layers["conv2"]) == {"original", "compressed", "first", "core", "last", "mac_ratio"}
    assert all(value > 0 for row in layers.values() for value in row.values())
    ratio = run["measurements"]["ratio"]
    assert ratio["realised"] == pytest.approx(ratio["measured"] / ratio["mac"])
    for claim in ("6a", "7", "8a"):
        assert verdicts.judge(PAPER.claim(f"kim2016.{claim}"), PAPER, [run], "standard")["ours"] is not None


def test_layers_are_timed_on_what_they_read() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2 * 4 * 4, 3)).eval()
    image = torch.randn(1, 1, 6, 6)
    seen = kim2016.layer_inputs(model, image)
    assert torch.equal(seen["0"], image)
    assert torch.equal(seen["2"], model[1](model[0](image)))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_originals_count_one_addition_an_output() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2 * 4 * 4, 3))
    assert kim2016.additions(cost(model, (1, 6, 6))) == (16 * 18 + 32) + (96 + 3)
