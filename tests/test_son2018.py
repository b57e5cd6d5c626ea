"""Son et al. 2018: what its experiments count, cluster and time; every printed ratio as a file that exists."""

import numpy as np
import pytest
import torch
from conftest import SmallCifar, paths_of

from shrinkbook.evidence import claims, samples, verdicts
from shrinkbook.evidence.store import dig
from shrinkbook.experiments import catalogue, son2018
from shrinkbook.experiments.networks import NETS
from shrinkbook.experiments.run import ensure, unit
from shrinkbook.experiments.son2018 import tables as pages
from shrinkbook.experiments.son2018.cluster import random_acceleration
from shrinkbook.experiments.son2018.cost import CODEBOOK_BITS, IMAGENET, on_meta, planned, ratio
from shrinkbook.experiments.son2018.variants import index_bits, is_plain, settings
from shrinkbook.methods.clustered_bytes import from_bytes, sizes, to_bytes
from shrinkbook.methods.clustered_layers import Codebook, cluster_conv, replace_layers
from shrinkbook.methods.kernel_clustering import spatial_layers
from shrinkbook.methods.kernel_sharing import shared_cost
from shrinkbook.methods.kernel_transforms import permutations

PAPER = claims.load("son2018")
ONE_EPOCH = {"epochs": 1, "batch": 32, "lr": 0.005}


def test_names_mean_what_the_paper_says() -> None:
    model = NETS["digits VGG"]()
    assert settings("C64-TIC4", model) == {"k": 64, "transforms": 4, "scaled": True, "codebooks": "one"}
    assert settings("C1024N", model) == {"k": 1024, "transforms": 1, "scaled": False, "codebooks": "one"}
    assert settings("C64-M", model)["codebooks"] == "per layer"
    first, last = settings("C64-M2", on_meta("VGG-16"))["codebooks"]
    assert (len(first), len(last)) == (10, 3) and last[-1] == "features.conv_13"
    assert [index_bits(name) for name in ("C256", "C128-TIC2", "C64-TIC4", "C32-TIC8")] == [8] * 4
    assert [name for name in ("C64", "C64N", "C64-M", "C64-TIC2") if is_plain(name)] == ["C64"]
    with pytest.raises(ValueError, match="C64-TIC3"):
        settings("C64-TIC3", model)


def test_structural_claims_differ_only_where_the_sources_contradict_each_other(scratch) -> None:
    run = ensure(unit(catalogue.EXPERIMENTS, "son2018.cost", "quick", 0))
    structural = [claim for claim in PAPER.claims if claim.kind == "structural"]
    words = {claim.id: verdicts.judge(claim, PAPER, [run], "quick")["verdict"] for claim in structural}
    others = {name: word for name, word in words.items() if word != "reproduced"}
    assert others == {"son2018.5c": "close", "son2018.6b": "differs"}
    table = pages.size_table(run)
    assert table.loc["VGG-16", "C128-TIC2"] == pytest.approx(12.0, abs=0.05)
    assert np.isnan(table.loc["ResNet-18", "C64-M2"])  # two groups are told for VGG-16 only


FILES = [
    ("VGG-16", "C128-TIC2"), ("VGG-16", "C64-TIC4"), ("VGG-16", "C512"), ("VGG-16-pruned-A", "C512"),
    ("DenseNet-BC", "C128N"), ("ResNet-18", "C256"), ("ResNet-18", "C1024"), ("ResNet-18", "C1024N"),
]  # fmt: skip


@pytest.mark.parametrize(("net", "variant"), FILES)
def test_every_printed_ratio_is_a_file(net: str, variant: str) -> None:
    """Random codes in place of clustered ones: the size does not depend on them. Outputs come back from the bytes."""
    report = planned(net, variant)
    model = on_meta(net).to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else 0)
    transforms = settings(variant, model)["transforms"]
    books = [
        Codebook(
            (0.02 * torch.randn(group.k, side, side, generator=generator)).half().float(),
            permutations(side, transforms),
        )
        for group in report.codebooks
        for side in [round(group.area**0.5)]
    ]
    convs, clustered = spatial_layers(model), {}
    for row in report.layers:
        shape = convs[row.name].weight.shape[:2]
        index, turn = (torch.randint(most, shape, generator=generator) for most in (row.k, transforms))
        scale = torch.randn(shape, generator=generator) if row.scale_bits else None
        clustered[row.name] = cluster_conv(convs[row.name], books[row.codebook], index, turn, scale)
    model = replace_layers(model, clustered)
    pointwise = 16 if net in IMAGENET else 32
    for tensor in (module.weight for module in model.modules() if type(module) is torch.nn.Conv2d):
        tensor.data = tensor.data.half().float()
    data = to_bytes(model, codebook_bits=CODEBOOK_BITS, pointwise_bits=pointwise)
    parts = sizes(data)
    counted = parts["indices"] + parts["scales"] + parts["codebooks"] + parts["masks"]
    assert counted == -(-report.bits_after(CODEBOOK_BITS) // 8)
    if net in IMAGENET:
        counted += parts["pointwise"]
    kernels = sum(layer.kernels * layer.area for layer in report.layers)
    others = sum(other.weights for other in report.others) if net in IMAGENET else 0
    assert 4 * (kernels + others) / counted == pytest.approx(ratio(net, report), rel=1e-6)
    assert parts["header"] < 0.05 * len(data)
    again = from_bytes(data, on_meta(net).to_empty(device="cpu")).eval()
    side = 64 if net in IMAGENET else 32
    image = torch.randn(1, 3, side, side, generator=generator)
    with torch.inference_mode():
        logits = model(image)
        assert torch.isfinite(logits).all() and torch.equal(logits, again(image))


@pytest.fixture(scope="module")
def digits():
    return ensure(unit(catalogue.EXPERIMENTS, "son2018.digits", "quick", 0, {"finetune": ONE_EPOCH}))


def test_digits_fill_what_their_claims_read(digits) -> None:
    read = [claim for claim in PAPER.claims if "son2018.digits" in claim.experiments]
    assert len(read) >= 10
    for claim in read:
        assert all(dig(digits["measurements"], path) is not None for path in paths_of(claim)), claim.id
        assert verdicts.judge(claim, PAPER, [digits], "quick")["ours"] is not None, claim.id


def test_files_of_clustered_digits_networks_hold_what_the_formula_says(digits) -> None:
    found = digits["measurements"]
    assert set(found["bytes"]) == set(found["tuned"]) == set(digits["config"]["models"])
    for name, row in found["bytes"].items():
        assert row["indices"] + row["scales"] + row["codebooks"] == pytest.approx(row["formula"], abs=1), name
        assert row["reloaded_accuracy"] == found["tuned"][name], name
    assert found["bytes"]["C64N"]["scales"] == 0
    centroids = found["centroids"]
    assert centroids["uses"] == sorted(centroids["uses"], reverse=True)
    assert sum(centroids["uses"]) == sum(
        conv.weight[:, :, 0, 0].numel() for conv in spatial_layers(NETS["digits VGG"]()).values()
    )


def test_sharing_is_counted_layer_by_layer(digits) -> None:
    found = digits["measurements"]
    plain = [name for name in digits["config"]["models"] if is_plain(name)]
    assert len(found["gaps"]["shared_over_random"]) == len(found["acceleration"]["ratio"]) == len(plain)
    assert all(value >= 1 for value in found["acceleration"]["ratio"])
    assert (
        found["acceleration"]["models"]["C64"] == found["acceleration"]["ratio"][found["acceleration"]["bits"].index(6)]
    )


def test_every_clustered_layer_is_timed_in_both_orders(digits) -> None:
    rows = digits["measurements"]["sharing"]
    assert [row["layer"] for row in rows] == [f"features.conv_{number}" for number in range(1, 8)]
    assert all(min(row["seconds"].values()) > 0 for row in rows)
    total = sum(row["dense"] for row in rows) / sum(min(row["add-then-conv"], row["conv-then-add"]) for row in rows)
    assert total == pytest.approx(digits["measurements"]["acceleration"]["models"]["C64"])
    table = pages.sharing_table(digits)
    assert table["counted"].min() >= 1


@pytest.mark.parametrize(("centroids", "transforms"), [(16, 1), (4, 8)])
def test_random_indices_are_the_control_of_sharing(centroids, transforms) -> None:
    """The closed form against the mean of many draws, which a single one misses by more."""
    generator = torch.Generator().manual_seed(0)
    codebook = Codebook(torch.randn(centroids, 3, 3, generator=generator), permutations(3, transforms))
    conv = torch.nn.Conv2d(40, 24, 3, bias=False)
    draws = []
    for _ in range(40):
        index, turn = (torch.randint(n, (24, 40), generator=generator) for n in (centroids, transforms))
        drawn = torch.nn.Sequential(cluster_conv(conv, codebook, index, transform=turn))
        draws.append(shared_cost(drawn, (40, 8, 8)).acceleration)
    assert random_acceleration(drawn, (40, 8, 8)) == pytest.approx(np.mean(draws), rel=0.005)
    assert np.ptp(draws) > 0.02
    same = torch.nn.Sequential(cluster_conv(conv, codebook, torch.zeros(24, 40, dtype=torch.int64)))
    assert shared_cost(same, (40, 8, 8)).acceleration == 40  # one centroid everywhere: as much to share as can be
    assert random_acceleration(same, (40, 8, 8)) == random_acceleration(drawn, (40, 8, 8))


def test_batch_norm_taken_anew_trains_no_weight(digits) -> None:
    found = digits["measurements"]
    assert set(found["refreshed"]) == set(found["tuned"])
    assert found["refreshed"]["C256"] > found["clustered"]["C256"] + 5
    assert found["recovery"]["midway"] == pytest.approx((found["refreshed"]["C64"] + found["baseline"]["original"]) / 2)


def test_pruned_kernels_stay_pruned_and_shrink_the_file(digits) -> None:
    joint, stages = digits["measurements"]["joint"], digits["stages"]
    assert joint["ratio"] == joint["ratio_with_mask"]  # whole filters go, no kernel is masked
    assert joint["kernels_ratio"] > joint["kernels_ratio_with_mask"] > digits["measurements"]["bytes"]["C64"]["ratio"]
    assert stages["filter-pruning"]["mac"] < stages["original"]["mac"] == stages["P"]["mac"]


def test_public_networks_are_judged_over_images(small_cifar: SmallCifar) -> None:
    name = "son2018.resnet20_public"
    run = small_cifar(name, {name: {"finetune": {**ONE_EPOCH, "batch": 4}, "iterations": 2}})
    assert run["fixed_network"] is True
    for claim in PAPER.claims:
        if name in claim.experiments:
            verdict = verdicts.judge(claim, PAPER, [run], "standard")
            assert verdict["n"] == 12, (claim.id, verdict["reason"])
    images = samples.per_image(run, "tuned.C64")
    assert images.mean() == pytest.approx(run["measurements"]["tuned"]["C64"])


def test_the_map_of_sharing_has_every_point(scratch) -> None:
    small = {"channels": [4, 8], "centroids": [2, 64], "sides": [5], "rounds": 1, "warmup": 0}
    run = ensure(unit(catalogue.EXPERIMENTS, "son2018.sharing", "quick", 0, small))
    panels, channels, sides = son2018.as_matrices([run, run], "counted")
    assert (channels, sides, list(panels)) == ([4, 8], [5], ["2 centroids", "64 centroids"])
    assert panels["2 centroids"].shape == (2, 1)
    assert panels["2 centroids"][1, 0] > 3  # eight channels, two centroids
    assert all(point["seconds"]["dense"] > 0 for point in run["measurements"]["map"])
