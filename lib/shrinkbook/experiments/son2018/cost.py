"""Kernel counts, sizes and ratios of every clustered model: formula 5 without training, on shapes alone."""

from typing import Any

import torch
from torch import nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.li2017.models import VGG_A
from shrinkbook.experiments.networks import NETS
from shrinkbook.experiments.son2018.variants import settings
from shrinkbook.measure.cost import cost, parameter_count
from shrinkbook.methods import filter_pruning
from shrinkbook.methods.kernel_clustering import plan, spatial_layers
from shrinkbook.methods.kernel_sizes import Report

CODEBOOK_BITS = 16  # the precision of centroids that the printed figures of ResNet-18 and DenseNet-BC need
COUNTED = {
    "VGG-16": "VGG-16 with one linear layer",
    "ResNet-56": "ResNet-56",
    "DenseNet-12-40": "DenseNet-12-40",
    "DenseNet-BC": "DenseNet-BC-100-12",
    "ResNet-18": "ResNet-18",
    "ResNet-50": "ResNet-50",
}
IMAGENET = ("ResNet-18", "ResNet-50")
CENTROIDS = [f"C{k}" for k in (32, 64, 128, 256, 512, 1024)]
MODELS = [
    *CENTROIDS, "C128-TIC2", "C64-TIC4", "C32-TIC8", "C64-M2", "C32-M", "C64-M", "C128-M",
    "C64N", "C128N", "C256N", "C1024N",
]  # fmt: skip


def on_meta(name: str) -> nn.Module:
    """One of the counted networks, or VGG-16-pruned-A of Li et al. 2017, shapes without weights."""
    if name == "VGG-16-pruned-A":  # which filters go does not matter, but choosing takes weights
        return filter_pruning.compress(NETS[COUNTED["VGG-16"]](), VGG_A)[0].to("meta")
    with torch.device("meta"):
        return NETS[COUNTED[name]]()


def planned(net: str, variant: str, model: nn.Module | None = None) -> Report:
    """The report of a clustered model without clustering; 7x7 layers of ImageNet networks have 64 centroids."""
    model = model or on_meta(net)
    return plan(model, **settings(variant, model), sizes={7: 64} if net in IMAGENET else None)


def ratio(net: str, report: Report) -> float:
    """As the paper prints it: the 3x3 part of CIFAR networks, all convolutions of the others with 16-bit 1x1 ones."""
    return report.whole_ratio(16, CODEBOOK_BITS) if net in IMAGENET else report.ratio(CODEBOOK_BITS)


def costs(run: Context) -> None:
    """Every cell that needs no training, and ``sizes``, all networks by all clustered models."""
    nets = {net: on_meta(net) for net in (*COUNTED, "VGG-16-pruned-A")}
    for net in ("VGG-16", "ResNet-56", "DenseNet-12-40", "ResNet-18"):
        kernels = sum(conv.weight[:, :, 0, 0].numel() for conv in _three_by_three(nets[net]))
        run.cell(f"kernels/{net}/kernels", kernels)
        if net == "VGG-16":
            run.cell("kernels/VGG-16/share", 100 * 9 * kernels / parameter_count(nets[net]))
            for table in ("cifar10", "pruning"):
                run.cell(f"{table}/VGG-16/size", planned(net, "C512", nets[net]).bits_before / 8e6)
            run.cell("cifar10/VGG-16/flop", cost(nets[net], (3, 32, 32)).without("classifier").mac)
    sizes: dict[str, dict[str, Any]] = {}
    for net, model in nets.items():
        for variant in MODELS:
            if variant.endswith("-M2") and not net.startswith("VGG"):
                continue
            report = planned(net, variant, model)
            sizes.setdefault(net, {})[variant] = {
                "kernels": sum(layer.kernels for layer in report.layers),
                "megabytes": report.bits_after(CODEBOOK_BITS) / 8e6,
                "ratio": ratio(net, report),
                "ratio, centroids at 32 bits": report.whole_ratio(16) if net in IMAGENET else report.ratio(),
            }
    run.measurements["sizes"] = sizes
    for variant in ("C128-TIC2", "C64-TIC4"):
        run.cell(f"cifar10/VGG-16-{variant}/size", sizes["VGG-16"][variant]["megabytes"])
        run.cell(f"cifar10/VGG-16-{variant}/ratio", sizes["VGG-16"][variant]["ratio"])
    run.cell("cifar10/DenseNet-BC-C128N/size", 1000 * sizes["DenseNet-BC"]["C128N"]["megabytes"])
    run.cell("cifar10/DenseNet-BC-C128N/ratio", sizes["DenseNet-BC"]["C128N"]["ratio"])
    for variant in ("C256", "C1024", "C1024N"):
        run.cell(f"imagenet/ResNet-18-{variant}/ratio", sizes["ResNet-18"][variant]["ratio"])
    run.cell("pruning/C512/size", sizes["VGG-16"]["C512"]["megabytes"])
    run.cell("pruning/C512/ratio", sizes["VGG-16"]["C512"]["ratio"])
    before, pruned = (sizes[net]["C512"]["kernels"] for net in ("VGG-16", "VGG-16-pruned-A"))
    pruned_model = nets["VGG-16-pruned-A"]
    run.cell("pruning/filter-pruning/size", planned("VGG-16-pruned-A", "C512", pruned_model).bits_before / 8e6)
    run.cell("pruning/filter-pruning/ratio", before / pruned)
    both = before / pruned * sizes["VGG-16-pruned-A"]["C512"]["ratio"]
    run.cell("pruning/filter-pruning-C512/ratio", both)


def _three_by_three(model: nn.Module) -> list[nn.Conv2d]:
    return [conv for conv in spatial_layers(model).values() if conv.kernel_size == (3, 3)]
