"""Cluster a trained network in every way the settings name, fine-tune with fixed indices, write it to bytes."""

import copy

import torch
from torch import Tensor, nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.li2017.models import PRUNED
from shrinkbook.experiments.public import loaded
from shrinkbook.experiments.son2018.sharing import by_layer
from shrinkbook.experiments.son2018.variants import index_bits, is_plain, settings
from shrinkbook.experiments.steps import finite, note_images, rounded, trained
from shrinkbook.methods import filter_pruning
from shrinkbook.methods.clustered_bytes import from_bytes, sizes, to_bytes
from shrinkbook.methods.clustered_layers import clustered_layers, codebooks
from shrinkbook.methods.kernel_clustering import compress, plan, prune_kernels, pruned_stay_zero
from shrinkbook.methods.kernel_sharing import SharedCost, shared_cost
from shrinkbook.training.evaluate import recalibrate_batch_norm

REFRESH = 2000  # training images that batch norm statistics are taken from


def trained_network(run: Context) -> None:
    """All of it on a network trained here: clustering, sharing, and both ways of joining it with pruning."""
    model = trained(run)
    every(run, model)
    joint(run, model)


def vgg16(run: Context) -> None:
    """The same at the paper's schedule, with its cells."""
    trained_network(run)
    found, joined = run.measurements, run.measurements["joint"]
    run.cell("cifar10/VGG-16/error", 100 - found["baseline"]["original"])
    run.cell("pruning/VGG-16/error", 100 - found["baseline"]["original"])
    for name, accuracy in found["tuned"].items():
        row = f"VGG-16-{name.replace('-M', '-M13') if name.endswith('-M') else name}"
        run.cell(f"cifar10/{row}/error", 100 - accuracy)
        run.cell(f"cifar10/{row}/acceleration", found["acceleration"]["models"][name])
        run.cell(f"cifar10/{row}/flop", found["acceleration"]["multiplications"][name])
    run.cell("pruning/C512/error", 100 - found["tuned"]["C512"])
    run.cell("pruning/filter-pruning/error", 100 - joined["pruned"])
    if "pruned_clustered" in joined:
        run.cell("pruning/filter-pruning-C512/error", 100 - joined["pruned_clustered"])


def public_network(run: Context) -> None:
    """Clustering and sharing on a public ResNet."""
    every(run, loaded(run))


def every(run: Context, model: nn.Module) -> None:
    """Each model of the settings before and after fine-tuning, and the original fine-tuned as much as they are."""
    run.measurements["kernels"] = sum(layer.kernels for layer in plan(model, 1).layers)
    control = copy.deepcopy(model)
    run.train(control, run.recipe(run.config["finetune"]), "control")
    run.stage("control tuned", control)
    stages = {"original": "original", "tuned": "control tuned"}
    run.measurements["baseline"] = {name: _last(run, stage) for name, stage in stages.items()}
    if run.fixed_network:
        for name, stage in stages.items():
            note_images(run, f"baseline.{name}", [run.evaluations[stage].correct])
    shared: dict[str, SharedCost] = {}
    random: dict[str, float] = {}
    for name in run.config["models"]:
        smaller = one(run, model, name)
        shared[name] = shared_cost(smaller, _shape(run))
        random[name] = random_acceleration(smaller, _shape(run))
        if name == run.config["pictured"]:
            picture(run, smaller)
            on_cpu = copy.deepcopy(smaller).cpu().float().eval()
            run.measurements["sharing"] = by_layer(on_cpu, torch.randn(1, *_shape(run)), run.seed)
        run.progress(f"{name}: {_last(run, f'{name} clustered'):.2f} %, tuned {_last(run, f'{name} tuned'):.2f} %")
    plain = sorted((name for name in shared if is_plain(name)), key=index_bits)
    run.measurements["trend"] = {
        "bits": [index_bits(name) for name in plain],
        "tuned": [run.measurements["tuned"][name] for name in plain],
    }
    if run.fixed_network:
        run.per_image_pairs["trend.tuned"] = [
            [f"tuned.{more}", f"tuned.{fewer}"] for fewer, more in zip(plain, plain[1:], strict=False)
        ]
    run.measurements["acceleration"] = {
        "bits": [index_bits(name) for name in plain],
        "ratio": [shared[name].acceleration for name in plain],
        "models": {name: found.acceleration for name, found in shared.items()},
        "random": random,
        "multiplications": {name: found.total("shared", False) for name, found in shared.items()},
    }
    tuned, baseline = run.measurements["tuned"], run.measurements["baseline"]
    run.measurements["gaps"] = {
        "shared_over_random": [shared[name].acceleration / random[name] - 1 for name in plain],
        "c128_over_original_and_control": [tuned["C128"] - baseline[name] for name in stages],
    }
    if run.fixed_network:
        run.per_image_pairs["gaps.c128_over_original_and_control"] = [
            ["tuned.C128", f"baseline.{name}"] for name in stages
        ]
    recovery(run)


def random_acceleration(clustered: nn.Module, shape: tuple[int, int, int]) -> float:
    """What sharing would save if every kernel had a centroid and a transform drawn at random: what numbers alone share.

    n draws of K variants meet K (1 - (1 - 1/K)^n) of them in the mean: by output with n inputs, by input with n
    outputs, and each layer takes the order that is cheaper. A single draw would put its own noise into the control.
    """
    layers, rows = clustered_layers(clustered), shared_cost(clustered, shape).layers
    total = 0.0
    for row in rows:
        fewest = 1.0
        if row.clustered:
            layer = layers[row.name]
            variants, inputs, outputs = layer.codebook.effective().shape[0], layer.in_channels, layer.out_channels
            met = [variants * (1 - (1 - 1 / variants) ** n) / n for n in (inputs, outputs)]
            fewest = min(met)
        total += row.dense * fewest
    return sum(row.dense for row in rows) / total


def recovery(run: Context) -> None:
    """For C64: fine-tuned, against midway between clustered (batch norm taken anew) and original."""
    baseline, refreshed, tuned = (run.measurements[name] for name in ("baseline", "refreshed", "tuned"))
    run.measurements["recovery"] = {"tuned": tuned["C64"], "midway": (refreshed["C64"] + baseline["original"]) / 2}
    if run.fixed_network:
        right = {stage: run.evaluations[stage].correct for stage in ("original", "C64 refreshed", "C64 tuned")}
        note_images(run, "recovery.tuned", [right["C64 tuned"]] * 2)
        note_images(run, "recovery.midway", [right["C64 refreshed"], right["original"]])


def one(run: Context, model: nn.Module, name: str) -> nn.Module:
    """One clustered model: stages ``<name> clustered``, ``refreshed`` (batch norm statistics taken anew, no weight
    trained) and ``tuned``, and its bytes; returns it fine-tuned."""
    assert run.data is not None
    smaller, report = compress(model, **settings(name, model), seed=run.seed, max_iterations=run.config["iterations"])
    run.stage(f"{name} clustered", smaller)
    refreshed = copy.deepcopy(smaller)
    recalibrate_batch_norm(refreshed, run.data, REFRESH, run.device)
    run.stage(f"{name} refreshed", refreshed)
    run.train(smaller, run.recipe(run.config["finetune"]), name)
    run.stage(f"{name} tuned", smaller)
    for stage in ("clustered", "refreshed", "tuned"):
        run.measurements.setdefault(stage, {})[name] = _last(run, f"{name} {stage}")
        if run.fixed_network:
            note_images(run, f"{stage}.{name}", [run.evaluations[f"{name} {stage}"].correct])
    row: dict[str, float | None] = {
        "formula": report.bits_after() / 8, "ratio": report.ratio(), "reloaded_accuracy": None
    }  # fmt: skip
    if finite(smaller):  # one that diverged has no bytes
        data = to_bytes(smaller)
        row |= {**sizes(data), "file": len(data), "reloaded_accuracy": run.accuracy(from_bytes(data, model))}
    run.measurements.setdefault("bytes", {})[name] = row
    return smaller


def picture(run: Context, smaller: nn.Module) -> None:
    """Centroids of a model with one codebook, the most used first, and how many kernels each stands for."""
    (codebook,) = codebooks(smaller)
    uses = torch.zeros(len(codebook.centroids), dtype=torch.int64)
    for layer in clustered_layers(smaller).values():
        index = layer.index.long() if layer.kept is None else layer.index[layer.kept].long()
        uses += torch.bincount(index.flatten().cpu(), minlength=len(uses))
    order = uses.argsort(descending=True, stable=True)
    centroids: Tensor = codebook.centroids.detach().float().cpu()[order]
    run.measurements["centroids"] = {
        "uses": uses[order].tolist(), "values": [rounded(one.flatten().tolist(), 4) for one in centroids]
    }  # fmt: skip


def joint(run: Context, model: nn.Module) -> None:
    """Clustering after pruning: half of the kernels by their l1 norm, and the filters of VGG-16-pruned-A.

    Where a pruned network diverges, its part is left out: hours of others must not be lost with it.
    """
    k = run.config["joint_centroids"]
    halved, masks = prune_kernels(model)
    with pruned_stay_zero(halved, masks):
        run.train(halved, run.recipe(run.config["finetune"]), "P")
    fewer, _ = filter_pruning.compress(model, PRUNED[run.config["filter_pruning"]].ratios)
    run.train(fewer, run.recipe(run.config["finetune"]), "filter-pruning")
    found: dict[str, float] = {}
    before = plan(model, 1).bits_before
    for name, smaller, key in (("P", halved, "kernels_"), ("filter-pruning", fewer, "")):
        found[f"{key}pruned"] = run.stage(name, smaller)
        if not finite(smaller):
            continue
        clustered, report = compress(smaller, k, seed=run.seed, max_iterations=run.config["iterations"])
        run.stage(f"{name}-C{k} clustered", clustered)
        run.train(clustered, run.recipe(run.config["finetune"]), f"{name}-C{k}")
        found[f"{key}pruned_clustered"] = run.stage(f"{name}-C{k} tuned", clustered)
        found[f"{key}ratio"] = before / report.bits_after()
        found[f"{key}ratio_with_mask"] = before / (report.bits_after() + report.mask_bits)
        if name == "filter-pruning":
            again = copy.deepcopy(smaller)
            run.train(again, run.recipe(run.config["finetune"]), "filter-pruning again")
            found["pruned_again"] = run.stage("filter-pruning again", again)
    run.measurements["joint"] = found


def _shape(run: Context) -> tuple[int, int, int]:
    assert run.data is not None
    channels, height, width = run.data.x_test.shape[1:]
    return channels, height, width


def _last(run: Context, stage: str) -> float:
    return run.stages[stage]["accuracy"]["last"]
