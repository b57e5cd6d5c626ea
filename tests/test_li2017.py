"""Pruning Filters for Efficient ConvNets: its numbers without training, its experiments at small budgets."""

import base64
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SmallCifar, paths_of

from shrinkbook.evidence import claims, samples, store, verdicts
from shrinkbook.evidence.store import dig
from shrinkbook.experiments import catalogue, public, run
from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.li2017 import EXPERIMENTS
from shrinkbook.experiments.li2017.models import PRUNED
from shrinkbook.experiments.li2017.retrain import single_layers
from shrinkbook.experiments.li2017.scan import border_blocks
from shrinkbook.experiments.networks import NETS
from shrinkbook.experiments.steps import note_images
from shrinkbook.measure.cost import cost
from shrinkbook.methods.filter_pruning import compress, couplings_of, select, slim
from shrinkbook.nets import resnet_cifar
from shrinkbook.training.data import DataError

PAPER = claims.load("li2017")


def even(first: int, last: int, *skipped: int) -> list[int]:
    """First layers of the blocks between two layer numbers."""
    return [number for number in range(first, last + 1, 2) if number not in skipped]


# Filters before and after, with the layers they are left in; section 4 of the paper and the printed FLOP.
KEPT = {
    "VGG-16-pruned-A": {(64, 32): [1], (512, 256): [8, 9, 10, 11, 12, 13]},
    "ResNet-56-pruned-A": {
        (16, 14): even(2, 18, 16), (32, 28): even(20, 36, 20), (64, 57): even(38, 54, 38, 54),
    },
    "ResNet-56-pruned-B": {
        (16, 6): even(2, 18, 16, 18), (32, 22): even(20, 36, 20, 34), (64, 57): even(38, 54, 38, 54),
    },
    "ResNet-110-pruned-A": {(16, 8): even(2, 36, 36)},
    "ResNet-110-pruned-B": {
        (16, 8): even(2, 36, 36), (32, 19): even(38, 72, 38), (64, 44): even(74, 108, 74),
    },
    "ResNet-34-pruned-A": {(64, 44): [4, 6], (128, 89): [10, 12], (256, 179): [18, 20, 22, 24]},
    "ResNet-34-pruned-B": {(64, 32): [4, 6], (128, 51): [10, 12], (256, 153): [18, 20, 22, 24]},
}  # fmt: skip

# Multiply-accumulates and weights of convolutions and linear layers, ResNet-34 without its projections; by hand.
EXACT = {
    "VGG-16": (313_463_808, 14_977_728),
    "VGG-16-pruned-A": (206_279_680, 5_390_176),
    "ResNet-56": (125_485_696, 848_944),
    "ResNet-56-pruned-A": (112_435_840, 769_456),
    "ResNet-56-pruned-B": (90_907_264, 732_016),
    "ResNet-110": (252_887_680, 1_719_856),
    "ResNet-110-pruned-A": (212_779_648, 1_680_688),
    "ResNet-110-pruned-B": (155_124_352, 1_161_712),
    "ResNet-34": (3_644_493_824, 21_607_616),
    "ResNet-34-pruned-A": (3_080_916_992, 19_962_560),
    "ResNet-34-pruned-B": (2_763_001_856, 19_280_576),
    "ResNet-34-pruned-C": (3_374_446_592, 20_050_112),
}

# Seed 0 of every digits experiment; baselines and the VGG's scan in full, the rest at less than their own budget.
ONE_EPOCH = {"epochs": 1, "batch": 32, "lr": 0.01}
THREE_EPOCHS = {**ONE_EPOCH, "epochs": 3}  # batch norm has to catch up with the pruned maps
SCRATCH = {"epochs": 2, "batch": 32, "lr": 0.1}
BUDGETS: dict[str, dict[str, Any]] = {
    "li2017.cost": {},
    "li2017.wall_clock": {"rounds": 1},
    "li2017.digits_vgg": {},
    "li2017.digits_vgg_scan": {},
    "li2017.digits_vgg_retrain": {
        "retrain": THREE_EPOCHS, "scratch": SCRATCH, "layer_ratios": [0.5], "layer_epochs": 1,
    },
    "li2017.digits_resnet": {},
    "li2017.digits_resnet_scan": {"ratios": [0.5]},
    "li2017.digits_resnet_retrain": {"retrain": THREE_EPOCHS, "scratch": SCRATCH},
    "li2017.digits_projection": {},
    "li2017.digits_projection_scan": {"ratios": [0.5]},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs() -> dict[str, dict[str, Any]]:
    """Runs by experiment, in the session's store."""
    units = {name: run.unit(EXPERIMENTS, name, "quick", 0, changes) for name, changes in BUDGETS.items()}
    return {name: run.ensure(unit) for name, unit in units.items()}


# without training


def layers_of(kept: dict[tuple[int, int], list[int]]) -> dict[str, tuple[int, int]]:
    return {f"conv_{number}": widths for widths, numbers in kept.items() for number in numbers}


@pytest.mark.parametrize("name", KEPT)
def test_named_models_keep_the_papers_filters(name: str) -> None:
    _, report = compress(NETS[PRUNED[name].net](), PRUNED[name].ratios)
    assert {layer: (report.filters[layer], report.filters_after[layer]) for layer in report.filters_after} == layers_of(
        KEPT[name]
    )


def test_resnet_34_c_loses_maps_of_its_third_stage() -> None:
    smaller, report = compress(NETS["ResNet-34"](), PRUNED["ResNet-34-pruned-C"].ratios)
    assert (report.filters, report.filters_after) == ({"stage_3": 256}, {"stage_3": 204})
    outputs = [layer.output[0] for layer in cost(smaller, (3, 224, 224)).layers]
    assert outputs.count(204) == 7  # six second layers and the shortcut


def test_every_printed_pruned_model_is_tested() -> None:
    named = {row for row in PAPER.tables["table1"].rows if "pruned" in row and "scratch" not in row}
    assert named == {*KEPT, "ResNet-34-pruned-C"}
    assert named | {name for name in PRUNED if name.startswith("digits")} == set(PRUNED)


def test_cost_is_exact_and_fills_every_structural_cell(runs: dict[str, dict[str, Any]]) -> None:
    table = runs["li2017.cost"]["cells"]["table1"]
    assert {row: (cells["flop"], cells["params"]) for row, cells in table.items()} == EXACT
    for claim in PAPER.claims:
        if claim.kind == "structural":
            missing = [c.address for c in PAPER.cells(claim) if samples.cell_value(runs["li2017.cost"], c) is None]
            assert missing == [], claim.id


def test_structural_claims_are_reproduced_or_close_where_the_arithmetic_says_so(runs: dict[str, Any]) -> None:
    for profile in ("quick", "standard", "paper"):
        found = run.unit(EXPERIMENTS, "li2017.cost", profile, 0).find(store.runs_dir())
        assert found is not None
        words = {v["claim"]: v for v in verdicts.judge_paper(PAPER, [found], profile) if v["kind"] == "structural"}
        assert {claim: verdict["verdict"] for claim, verdict in words.items()} == {
            **dict.fromkeys(words, "reproduced"), "li2017.4e": "close",
        }  # fmt: skip
        assert len(words) == 6
        off = [cell["cell"] for cell in words["li2017.4e"]["cells"] if cell["word"] != "reproduced"]
        assert off == ["table1/ResNet-34-pruned-C/flop_pruned"]


def test_sensitive_blocks_of_resnet_56_and_their_likes() -> None:
    assert border_blocks(couplings_of(resnet_cifar(56))) == ["conv_20", "conv_38", "conv_54"]
    assert border_blocks(couplings_of(resnet_cifar(110))) == ["conv_38", "conv_74", "conv_108"]
    assert border_blocks(couplings_of(NETS["digits ResNet"]())) == ["conv_8", "conv_14", "conv_18"]


# claims and experiments


def test_every_claim_gets_a_word_and_a_reason(runs: dict[str, dict[str, Any]]) -> None:
    for found in (list(runs.values()), []):
        judged = verdicts.judge_paper(PAPER, found, "quick")
        assert [verdict["claim"] for verdict in judged] == [claim.id for claim in PAPER.claims]
        assert all(verdict["verdict"] in verdicts.WORDS and verdict["reason"] for verdict in judged)
    numbers = {claim.number for claim in PAPER.claims}
    assert numbers == set(range(1, 18))


def test_claims_name_experiments_that_exist_or_what_they_would_cost() -> None:
    for claim in PAPER.claims:
        unknown = [name for name in claim.experiments if name not in catalogue.EXPERIMENTS]
        assert not unknown or claim.cost, f"{claim.id} names {unknown} without a cost"
        assert claim.experiments, claim.id


@pytest.mark.parametrize("name", [name for name in BUDGETS if not name.endswith(("vgg", "resnet", "projection"))])
def test_experiments_on_digits_measure_what_their_claims_read(name: str, runs: dict[str, dict[str, Any]]) -> None:
    readers = [claim for claim in PAPER.claims if name in claim.experiments]
    assert readers, f"no claim reads {name}"
    for claim in readers:
        for path in paths_of(claim):
            value = dig(runs[name]["measurements"], path)
            assert value is not None, f"{claim.id} reads {path}, which {name} does not measure"
            assert np.isfinite(value).all(), (claim.id, path)
        if not paths_of(claim):
            assert any(samples.cell_value(runs[name], cell) is not None for cell in PAPER.cells(claim)), claim.id


def test_every_experiment_of_quick_is_tested_here() -> None:
    assert set(BUDGETS) == {name for name, experiment in EXPERIMENTS.items() if "quick" in experiment.configs}


# mechanisms on digits, seed 0


def test_baselines_on_digits_are_good_but_not_saturated(runs: dict[str, dict[str, Any]]) -> None:
    for name in ("li2017.digits_vgg", "li2017.digits_resnet", "li2017.digits_projection"):
        assert runs[name]["status"] == "finished"
        assert 90 < runs[name]["stages"]["original"]["accuracy"]["last"] < 99, name
        assert runs[name]["cells"] == {}  # digits never stand in for a printed error


def test_smallest_over_random_over_largest(runs: dict[str, dict[str, Any]]) -> None:
    order = runs["li2017.digits_vgg_scan"]["measurements"]["order"]
    assert order["smallest"] > order["random"] > order["largest"]


def test_retraining_recovers(runs: dict[str, dict[str, Any]]) -> None:
    for name in ("li2017.digits_vgg_retrain", "li2017.digits_resnet_retrain"):
        found = runs[name]["measurements"]["retrain"]
        assert found["tuned"] > found["slimmed"] + 5, name
        (pruned,) = runs[name]["measurements"]["kept"]
        stages = runs[name]["stages"]
        assert stages[f"{pruned} tuned"]["mac"] == stages[f"{pruned} scratch"]["mac"] < stages["original"]["mac"]


def test_a_scan_measures_what_surgery_gives(runs: dict[str, dict[str, Any]]) -> None:
    parent = run.unit(EXPERIMENTS, "li2017.digits_vgg", "quick", 0)
    child = run.unit(EXPERIMENTS, "li2017.digits_vgg_scan", "quick", 0)
    context = Context(child, "cpu", {}, lambda message: None)
    digits = context.load_data()
    assert parent.checkpoint.exists()
    model = run.load_parent(context, NETS["digits VGG"]()).eval()
    found = runs["li2017.digits_vgg_scan"]["measurements"]
    assert context.accuracy(model) == runs["li2017.digits_vgg"]["stages"]["original"]["accuracy"]["last"]
    one_image = 100 / len(digits.y_test)
    for layer, ratio in (("conv_1", 0.3), ("conv_4", 0.5), ("conv_7", 0.6)):
        smaller = slim(model, select(model, {layer: ratio}))
        scanned = found["scan"]["smallest"][layer][found["ratios"].index(ratio)]
        assert scanned == pytest.approx(context.accuracy(smaller), abs=one_image + 0.001)


# per image, public weights


def test_right_answers_per_image_come_back_from_the_run_file() -> None:
    unit = run.unit(EXPERIMENTS, "li2017.resnet56_public_scan", "standard", 0)
    context = Context(unit, "cpu", {}, lambda message: None)
    counts = [torch.tensor([0, 1, 5, 3]), torch.tensor([5, 1, 5, 0])]  # two layers, five ratios each
    note_images(context, "order.smallest", counts, ratios=5)
    stored = {"run_id": unit.run_id, "measurements": context.measurements, "per_image": context.per_image}
    assert samples.per_image(stored, "order.smallest").tolist() == [50.0, 20.0, 100.0, 30.0]
    assert zlib.decompress(base64.b64decode(context.per_image["order"]["smallest"])) == bytes([5, 2, 10, 3])


def test_public_experiments_measure_what_their_claims_read(small_cifar: SmallCifar) -> None:
    name = "li2017.resnet56_public_scan"
    scan = small_cifar(name, {name: {"ratios": [0.5]}})
    name = "li2017.resnet56_public_retrain_2ep"
    tuned = small_cifar(name, {name: {"models": ["ResNet-56-pruned-B"], "retrain": ONE_EPOCH}})
    for found in (scan, tuned):
        assert found["fixed_network"] is True
        for claim in PAPER.claims:
            if found["experiment"] not in claim.experiments:
                continue
            assert all(dig(found["measurements"], path) is not None for path in paths_of(claim)), claim.id
            verdict = verdicts.judge(claim, PAPER, [found], "standard")
            assert verdict["experiment"] == found["experiment"]
            assert verdict["scope"].startswith("this network only")
            if claim.kind == "order":
                assert verdict["n"] == 12, (claim.id, verdict["reason"])  # images
    images = samples.per_image(scan, "order.smallest")
    assert images.mean() == pytest.approx(scan["measurements"]["order"]["smallest"])
    assert scan["measurements"]["selection"] == "test"
    errors = tuned["cells"]["table1"]
    assert errors["ResNet-56"]["error"] == pytest.approx(100 - tuned["measurements"]["retrain"]["original"])
    assert errors["ResNet-56-pruned-B"]["error"] == pytest.approx(100 - tuned["measurements"]["retrain"]["tuned"])


def test_the_papers_recipe_gives_the_errors_its_claims_read(small_cifar: SmallCifar) -> None:
    name = "li2017.resnet56_retrain"
    recipes = {"retrain": ONE_EPOCH, "scratch": ONE_EPOCH}
    found = small_cifar(name, {"li2017.resnet56": {"recipe": ONE_EPOCH}, name: recipes})
    (base,) = store.runs(store.runs_dir(), "li2017.resnet56")
    rows = ["ResNet-56", "ResNet-56-pruned-A", "ResNet-56-pruned-A scratch-train"]
    rows += ["ResNet-56-pruned-B", "ResNet-56-pruned-B scratch-train"]
    assert {row: list(cells) for row, cells in found["cells"]["table1"].items()} == dict.fromkeys(rows, ["error"])
    error = 100 - base["stages"]["original"]["accuracy"]["last"]
    assert found["cells"]["table1"]["ResNet-56"] == {"error": error}
    judged = {**found, "config": {**found["config"], "schedule": "paper"}}
    paired = [verdicts.judge(PAPER.claim(name), PAPER, [judged], "standard") for name in ("li2017.2b", "li2017.2c")]
    errors = {row: cells["error"] for row, cells in found["cells"]["table1"].items()}
    assert [verdict["ours"] for verdict in paired] == [
        pytest.approx(errors[f"ResNet-56-pruned-{model}"] - errors["ResNet-56"]) for model in "AB"
    ]


def test_gpu_budgets_cover_what_their_claims_read() -> None:
    twins = {experiment.function: name for name, experiment in EXPERIMENTS.items() if name in BUDGETS}
    for claim in PAPER.claims:
        for name in claim.experiments:
            if name not in EXPERIMENTS or not EXPERIMENTS[name].gpu:
                continue
            config = EXPERIMENTS[name].configs["standard"]
            if claim.kind == "delta" and not claim.gap:
                rows = [cell.row for cell in PAPER.cells(claim)]
                assert set(rows) <= {config["net"], *config["models"]}, (claim.id, name)
            elif "retrain.scratch" in claim.order:
                assert config["scratch"] and config["models"][-1] == PAPER.cells(claim)[0].row, (claim.id, name)
            elif name.endswith("_scan"):  # the same function runs on digits, above
                twin = EXPERIMENTS[twins[EXPERIMENTS[name].function]].configs["quick"]
                assert set(twin["criteria"]) <= set(config["criteria"]), (claim.id, name)
                assert {0.5, 0.6, 0.8, 0.9} <= set(config["ratios"]), (claim.id, name)


def test_public_weights_that_are_missing_or_damaged(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHRINKBOOK_DATA", str(scratch))
    path = scratch / "checkpoints" / "resnet56-4bfd9763.th"
    with pytest.raises(DataError) as caught:
        public.public_network("ResNet-56")
    assert str(caught.value) == f"{path} is missing: run `make data DATA=resnet56-public`"
    path.parent.mkdir()
    path.write_bytes(b"half a file")
    with pytest.raises(DataError) as caught:
        public.public_network("ResNet-56")
    assert str(caught.value) == f"{path} is damaged: delete it and run `make data DATA=resnet56-public`"


def test_depth_compares_what_scans_lose() -> None:
    unit = run.unit(EXPERIMENTS, "li2017.depth", "standard", 0)
    scans = {
        f"li2017.{net}_scan": {
            "stages": {"original": {"accuracy": {"last": last}}}, "measurements": {"order": {"smallest": smallest}}
        }
        for net, last, smallest in (("resnet56", 93.0, 90.0), ("resnet110", 93.5, 92.0))
    }  # fmt: skip
    context = Context(unit, "cpu", scans, lambda message: None)
    unit.experiment.function(context)
    assert context.measurements["gaps"]["resnet110_over_resnet56"] == pytest.approx(1.5)


def test_figure_2c_measures_every_layer_and_what_claim_9b_reads(scratch: Path) -> None:
    name = "li2017.digits_vgg_retrain"
    small = {**EXPERIMENTS, name: replace(EXPERIMENTS[name], function=single_layers)}
    changes = {"retrain": ONE_EPOCH, "layer_ratios": [0.9], "layer_epochs": 1}
    found = run.ensure(run.unit(small, name, "quick", 0, changes))
    curves = found["measurements"]["scan_retrained"]
    assert list(curves) == found["measurements"]["layers"] == [f"conv_{number}" for number in range(1, 8)]
    gaps = found["measurements"]["gaps"]["deep_layers_at_90_retrained"]
    original = found["stages"]["original"]["accuracy"]["last"]
    assert gaps == pytest.approx([curves[layer][0] - original for layer in ("conv_5", "conv_6", "conv_7")], abs=1e-3)
