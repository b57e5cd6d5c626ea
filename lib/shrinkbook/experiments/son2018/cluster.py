"""Cluster a trained network in every way the settings name, fine-tune with fixed indices, write it to bytes."""

import copy

import torch
from torch import Tensor, nn

from shrinkbook.experiments.li2017.models import PRUNED
from shrinkbook.experiments.public import loaded
from shrinkbook.experiments.run import Context
from shrinkbook.experiments.son2018.variants import index_bits, is_plain, settings
from shrinkbook.experiments.steps import note_images, original, rounded, trained
from shrinkbook.methods import filter_pruning
from shrinkbook.methods.clustered_bytes import from_bytes, sizes, to_bytes
from shrinkbook.methods.clustered_layers import clustered_layers, codebooks
from shrinkbook.methods.kernel_clustering import compress, plan, prune_kernels, pruned_stay_zero
from shrinkbook.methods.kernel_sharing import SharedCost, counts, shared_cost


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
    run.cell("pruning/C512/error", 100 - found["tuned"]["C512"])
    run.cell("pruning/filter-pruning/error", 100 - joined["pruned"])
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
    run.measurements["baseline"] = {"original": original(run), "tuned": run.stages["control tuned"]["accuracy"]["last"]}
    if run.fixed_network:
        note_images(run, "baseline.original", [run.evaluations["original"].correct])
    shared: dict[str, SharedCost] = {}
    layers: dict[str, list[float]] = {"channels_per_centroid": [], "acceleration": []}
    for name in run.config["models"]:
        smaller = one(run, model, name)
        shared[name] = shared_cost(smaller, _shape(run))
        if is_plain(name):
            for layer in clustered_layers(smaller).values():
                found = counts(layer)
                layers["channels_per_centroid"].append(max(layer.index.shape) / len(layer.codebook.centroids))
                layers["acceleration"].append(found.dense / found.shared)
        if name == run.config["pictured"]:
            picture(run, smaller)
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
    }
    run.measurements["layers"] = {name: rounded(values, 4) for name, values in layers.items()}


def one(run: Context, model: nn.Module, name: str) -> nn.Module:
    """One clustered model: stages ``<name> clustered`` and ``<name> tuned``, its bytes; returns it fine-tuned."""
    smaller, report = compress(model, **settings(name, model), seed=run.seed, max_iterations=run.config["iterations"])
    run.stage(f"{name} clustered", smaller)
    run.train(smaller, run.recipe(run.config["finetune"]), name)
    run.stage(f"{name} tuned", smaller)
    for stage in ("clustered", "tuned"):
        run.measurements.setdefault(stage, {})[name] = _last(run, f"{name} {stage}")
        if run.fixed_network:
            note_images(run, f"{stage}.{name}", [run.evaluations[f"{name} {stage}"].correct])
    data = to_bytes(smaller)
    again = from_bytes(data, model)
    run.measurements.setdefault("bytes", {})[name] = {
        **sizes(data),
        "file": len(data),
        "formula": report.bits_after() / 8,
        "ratio": report.ratio(),
        "reloaded_accuracy": run.accuracy(again),
    }
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
    """Clustering after pruning: half of the kernels by their l1 norm, and the filters of VGG-16-pruned-A."""
    k = run.config["joint_centroids"]
    halved, masks = prune_kernels(model)
    with pruned_stay_zero(halved, masks):
        run.train(halved, run.recipe(run.config["finetune"]), "P")
    fewer, _ = filter_pruning.compress(model, PRUNED[run.config["filter_pruning"]].ratios)
    run.train(fewer, run.recipe(run.config["finetune"]), "filter-pruning")
    found: dict[str, float] = {}
    for name, smaller, key in (("P", halved, "kernels_"), ("filter-pruning", fewer, "")):
        found[f"{key}pruned"] = run.stage(name, smaller)
        clustered, report = compress(smaller, k, seed=run.seed, max_iterations=run.config["iterations"])
        run.stage(f"{name}-C{k} clustered", clustered)
        run.train(clustered, run.recipe(run.config["finetune"]), f"{name}-C{k}")
        found[f"{key}pruned_clustered"] = run.stage(f"{name}-C{k} tuned", clustered)
        found[f"{key}ratio"] = plan(model, 1).bits_before / (report.bits_after() + report.mask_bits)
    run.measurements["joint"] = found


def _shape(run: Context) -> tuple[int, int, int]:
    assert run.data is not None
    channels, height, width = run.data.x_test.shape[1:]
    return channels, height, width


def _last(run: Context, stage: str) -> float:
    return run.stages[stage]["accuracy"]["last"]
