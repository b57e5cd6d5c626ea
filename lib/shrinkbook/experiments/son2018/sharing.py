"""Where shared computation wins on this machine: dense against both orders, over centroids, channels and map sizes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.steps import layer_inputs
from shrinkbook.measure.latency import in_mode, latency
from shrinkbook.methods.clustered_layers import Codebook, cluster_conv, clustered_layers, expand
from shrinkbook.methods.kernel_sharing import AddThenConv, ConvThenAdd, counts, shared_cost


def sharing_map(run: Context) -> None:
    """Time 3x3 layers with random indices, the least favourable: trained networks use few centroids often.

    On the processor, wherever the profile trains. The dense layer counts in the faster of two layouts. Both orders are
    timed image by image, as they run.
    """
    config, points = run.config, []
    generator = torch.Generator().manual_seed(run.seed)
    for channels in config["channels"]:
        for k in config["centroids"]:
            conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            index = torch.randint(k, (channels, channels), generator=generator)
            scale = torch.randn(channels, channels, generator=generator)
            codebook = Codebook(torch.randn(k, 3, 3, generator=generator))
            layer = cluster_conv(conv, codebook, index, scale=scale).eval()
            dense = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            dense.weight = nn.Parameter(layer.weight.detach())
            models = {
                "dense": dense,
                "dense, channels last": in_mode(dense, "channels_last"),
                "add-then-conv": AddThenConv(layer),
                "conv-then-add": ConvThenAdd(layer),
            }
            found = counts(layer)
            for side in config["sides"]:
                image = torch.randn(1, channels, side, side, generator=generator)
                timed = latency(models, image, config["rounds"], config["warmup"], run.seed)
                seconds = {name: timing.median for name, timing in timed.items()}
                baseline = min(seconds["dense"], seconds["dense, channels last"])
                shared = min(seconds["add-then-conv"], seconds["conv-then-add"])
                points.append(
                    {
                        "channels": channels, "k": k, "side": side, "seconds": seconds,
                        "counted": found.dense / found.shared, "measured": baseline / shared,
                        "counted add-then-conv": found.dense / found.add_then_conv,
                        "counted conv-then-add": found.dense / found.conv_then_add,
                    }
                )  # fmt: skip
        run.progress(f"{channels} channels timed")
    run.measurements["map"] = points


def by_layer(clustered: nn.Module, image: Tensor, seed: int, rounds: int = 5) -> list[dict[str, Any]]:
    """Every clustered layer of a network, timed on what it reads: multiplications and seconds, dense and shared.

    Args:
        image: (1, channels, height, width).
    """
    inputs = layer_inputs(clustered, image)
    dense = expand(clustered)
    rows = []
    for row in shared_cost(clustered, (image.shape[1], image.shape[2], image.shape[3])).layers:
        if not row.clustered:
            continue
        layer = clustered_layers(clustered)[row.name]
        found = counts(layer)
        models = {
            "dense": dense.get_submodule(row.name),
            "add-then-conv": AddThenConv(layer),
            "conv-then-add": ConvThenAdd(layer),
        }
        timed = latency(models, inputs[row.name], rounds, 1, seed)
        rows.append(
            {
                "layer": row.name, "maps": list(row.output),
                "centroids of an output (mean v)": float(found.per_output.double().mean()),
                "centroids of an input (mean lambda)": float(found.per_input.double().mean()),
                "dense": row.dense, "add-then-conv": row.add_then_conv, "conv-then-add": row.conv_then_add,
                "seconds": {name: timing.median for name, timing in timed.items()},
            }
        )  # fmt: skip
    return rows


def as_matrices(runs: list[dict[str, Any]], value: str) -> tuple[dict[str, np.ndarray], list[int], list[int]]:
    """The map as one matrix (channels, sides) for each k, medians over the runs; and the names of rows and columns."""
    points = runs[0]["measurements"]["map"]
    channels, sides, ks = (sorted({point[name] for point in points}) for name in ("channels", "side", "k"))
    panels = {f"{k} centroids": np.zeros((len(channels), len(sides))) for k in ks}
    for number, point in enumerate(points):
        median = float(np.median([run["measurements"]["map"][number][value] for run in runs]))
        panels[f"{point['k']} centroids"][channels.index(point["channels"]), sides.index(point["side"])] = median
    return panels, channels, sides
