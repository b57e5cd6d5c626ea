"""Kim et al. 2016, Tucker decomposition with EVBMF ranks: every experiment and its budgets.

`quick` counts the full-size networks and tells the story of figure 3 on digits. `standard` times AlexNet and VGG-16
at the printed ranks on this machine and compresses the public ResNet-56. ImageNet and the phone are not attempted.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shrinkbook import nets
from shrinkbook.evidence import claims
from shrinkbook.experiments.public import loaded
from shrinkbook.experiments.run import Context, Experiment
from shrinkbook.experiments.steps import note_images, original, rounded, trained
from shrinkbook.measure.cost import Cost, cost
from shrinkbook.measure.latency import latency
from shrinkbook.methods import tucker
from shrinkbook.nets import initialize

ORIGINALS = {
    "AlexNet": (nets.alexnet, 227),
    "VGG-S": (nets.vgg_s, 224),
    "GoogLeNet": (nets.googlenet, 224),
    "VGG-16": (nets.vgg16_imagenet, 224),
}
FC6 = {"fc6": (256, 6, 6)}  # AlexNet's fc6 is decomposed as a convolution over the last map


def printed_ranks(net: str) -> dict[str, int | tuple[int, ...]]:
    """The ranks that the paper prints for AlexNet (table 2) or VGG-16 (appendix), layer by layer, as far as known."""
    paper = claims.load("kim2016")
    table, columns = {
        "AlexNet": ("table2", ("input_side", "output_side")),
        "VGG-16": ("appendix_vgg16", ("r3", "r4")),
    }[net]
    ranks: dict[str, list[int]] = {}
    for cell in paper.tables[table].cells:
        if cell.unit == "rank" and cell.column in columns and cell.value:
            ranks.setdefault(cell.row.removesuffix("*"), []).append(int(cell.value))
    return {layer: tuple(values) if len(values) > 1 else values[0] for layer, values in ranks.items()}


def by_shapes(net: str) -> tuple[nn.Module, nn.Module, tucker.Report]:
    """A network and its compressed form at the printed ranks, on the meta device: shapes without weights."""
    build, side = ORIGINALS[net]
    with torch.device("meta"):
        model = build()
    maps = FC6 if net == "AlexNet" else None
    smaller, report = tucker.compress(model, printed_ranks(net), example_shape=(3, side, side), as_convolution=maps)
    return model, smaller, report


def additions(found: Cost) -> int:
    """The paper's FLOP of an original network: multiply-accumulates and one addition an output for the bias."""
    return found.mac + sum(math.prod(layer.output) for layer in found.layers)


def costs(run: Context) -> None:
    """Table 1 and 2 without weights: the originals, and AlexNet* and VGG-16* at the printed ranks."""
    for name, (build, side) in ORIGINALS.items():
        with torch.device("meta"):
            found = cost(build(), (3, side, side))
        run.cell(f"table1/{name}/weights", found.weights)
        run.cell(f"table1/{name}/flop", additions(found))
    for name in ("AlexNet", "VGG-16"):
        report = by_shapes(name)[2]
        run.cell(f"table1/{name}*/weights", report.total("weights_after"))
        run.cell(f"table1/{name}*/flop", report.total("mac_after"))
        run.cell(f"table1/{name} change/weights", report.compression or math.nan)
        run.cell(f"table1/{name} change/flop", report.speedup or math.nan)
        if name == "AlexNet":
            _table2(run, report)


def _table2(run: Context, report: tucker.Report) -> None:
    for row in report.layers:
        cells: dict[str, float | None] = {
            f"{row.name}/weights": row.weights,
            f"{row.name}/flop": row.mac,
            f"{row.name}*/weights": row.weights_after,
            f"{row.name}*/flop": row.mac_after,
            f"{row.name} change/weights": row.compression,
            f"{row.name} change/flop": row.speedup,
            **{f"{row.name}*/flop_{part.name.rsplit('.', 1)[1]}": part.mac for part in row.parts},
        }
        for place, value in cells.items():
            if value is not None:
                run.cell(f"table2/{place}", value)


def finetune(run: Context) -> None:
    """Figure 3 on a network trained here."""
    one_shot(run, trained(run))


def public_finetune(run: Context) -> None:
    """Figure 3 on the public ResNet-56."""
    one_shot(run, loaded(run))


def one_shot(run: Context, model: nn.Module) -> None:
    """Ranks by EVBMF, all layers decomposed at once, one fine-tuning; the same shape from random weights as control.

    Test accuracy is noted after every epoch for the figure; nothing is chosen by it.
    """
    assert run.data is not None
    shape, keep_out = tuple(run.data.x_test.shape[1:]), run.config["keep_out"]
    smaller, report = tucker.compress(model, example_shape=shape, keep_out=keep_out)
    run.measurements["ranks"] = rank_shares(report)
    run.measurements["cost"] = {"compression": report.compression, "speedup": report.speedup}
    found = {"original": original(run), "decomposed": run.stage("decomposed", smaller)}
    control = initialize(copy.deepcopy(smaller), run.seed + 1000)
    curves: dict[str, list[float]] = {}
    for name, network in (("tuned", smaller), ("scratch", control)):
        curves[name] = [run.accuracy(network)]
        run.train(network, run.recipe(run.config["finetune"]), name, curve=curves[name])
        found[name] = run.stage(name, network)
        if run.fixed_network:
            note_images(run, f"finetune.{name}", [run.evaluate(network).correct])
    run.measurements["finetune"] = {**found, "one_epoch": curves["tuned"][1]}
    run.measurements["curve"] = {
        "epochs": list(range(len(curves["tuned"]))), **{name: rounded(curve) for name, curve in curves.items()}
    }  # fmt: skip
    untrained = tucker.compress(initialize(copy.deepcopy(model), run.seed), example_shape=shape)[1]
    largest = max((max(row.estimated) for row in untrained.layers if row.estimated), default=0)
    run.measurements["gaps"] = {
        "mean_rank_below_60": 60 - float(np.mean(run.measurements["ranks"]["share"])),
        "one_over_untrained_rank": 1.0 - largest,
    }


def rank_shares(report: tucker.Report) -> dict[str, Any]:
    """Estimated ranks as a share of the full ones, in percent, and the input ranks of convolutions by depth."""
    estimated = [row for row in report.layers if row.estimated]
    deep = [row for row in report.layers if row.kind == "tucker2"]
    return {
        "layers": {
            row.name: {"kind": row.kind, "full": list(row.limits), "rank": list(row.ranks)} for row in estimated
        },
        "share": [100 * r / full for row in estimated for r, full in zip(row.estimated or (), row.limits, strict=True)],
        "depth": list(range(1, len(deep) + 1)),
        "input_share": [100 * row.ranks[0] / row.limits[0] for row in deep],
    }


def layer_latency(run: Context) -> None:
    """Time a full-size network against its compressed form, and every layer against its factors, one image at a time.

    Weights do not matter for time: both have random ones. Layers are timed on maps of the size they read.
    """
    net = run.config["net"]
    side = ORIGINALS[net][1]
    model, smaller, report = by_shapes(net)
    model, smaller = (initialize(m.to_empty(device="cpu"), run.seed).eval().to(run.device) for m in (model, smaller))
    image = torch.randn(run.config["batch"], 3, side, side, generator=torch.Generator().manual_seed(run.seed))
    rounds, warmup = run.config["rounds"], run.config["warmup"]
    whole = latency({"original": model, "compressed": smaller}, image.to(run.device), rounds, warmup, run.seed)
    seconds = {name: timing.median for name, timing in whole.items()}
    inputs = {**layer_inputs(model, image.to(run.device)), **layer_inputs(smaller, image.to(run.device))}
    layers: dict[str, dict[str, float]] = {}
    rates: dict[str, list[float]] = {"core": [], "1x1": []}
    for row in report.layers:
        if not row.ranks:
            continue
        pair = {"original": model.get_submodule(row.name), "compressed": smaller.get_submodule(row.name)}
        timed = latency(pair, inputs[row.name], rounds, warmup, run.seed)
        parts = {}
        for part in row.parts:
            module = smaller.get_submodule(part.name)
            parts[part.name.rsplit(".", 1)[1]] = latency({"x": module}, inputs[part.name], rounds, warmup)["x"].median
            is_core = part.name.endswith(".core")
            rates["core" if is_core else "1x1"].append(
                part.mac * run.config["batch"] / parts[part.name.rsplit(".", 1)[1]]
            )
        layers[row.name] = {
            **{name: timing.median for name, timing in timed.items()},
            **parts,
            "mac_ratio": row.mac / row.mac_after,
        }
        run.progress(f"{row.name} timed")
    run.measurements["seconds"] = {**seconds, "layers": layers}
    mac_ratio, measured = report.total("mac") / report.total("mac_after"), seconds["original"] / seconds["compressed"]
    run.measurements["ratio"] = {"mac": mac_ratio, "measured": measured, "realised": measured / mac_ratio}
    realised = {name: row["original"] / row["compressed"] / row["mac_ratio"] for name, row in layers.items()}
    fc = [value for name, value in realised.items() if name.startswith("fc")]
    conv = [value for name, value in realised.items() if name.startswith("conv")]
    run.measurements["gaps"] = {
        "mac_ratio_over_measured": mac_ratio - measured,
        "core_over_1x1": (float(np.median(rates["core"])) - float(np.median(rates["1x1"]))) / 1e9,
    }
    if fc:
        run.measurements["gaps"]["fc_over_conv_realised"] = 100 * (float(np.median(fc)) - float(np.median(conv)))


def layer_inputs(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """What every module reads when the network sees ``image``, by module path."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        return lambda module, inputs: seen.__setitem__(name, inputs[0].detach().clone())

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in model.named_modules() if name]
    with torch.inference_mode():
        model(image)
    for handle in handles:
        handle.remove()
    return seen


def _timed(net: str) -> Mapping[str, Mapping[str, Any]]:
    return {"standard": {"net": net, "batch": 1, "rounds": 15, "warmup": 3, "schedule": "batch 1"}}


_ALL = [
    Experiment(
        "kim2016.cost", costs, {"quick": {"threads": 1}, "standard": {"threads": 1}, "paper": {"threads": 1}},
        seeds={"quick": 1, "standard": 1, "paper": 1}, seconds={"quick": 4, "standard": 4, "paper": 4},
    ),
    Experiment(
        "kim2016.digits_finetune", finetune,
        {
            "quick": {
                "data": "digits", "net": "digits VGG", "schedule": "30 epochs",
                # Their ranks are estimated as 0: nine pixels, and the ten classes themselves.
                "keep_out": ["features.conv_1", "classifier.linear_2"],
                "finetune": {"epochs": 30, "batch": 32, "lr": 0.01, "milestones": [0.5]},
            }
        },
        parents=("li2017.digits_vgg",), seconds={"quick": 7},
    ),
    Experiment("kim2016.alexnet_latency", layer_latency, _timed("AlexNet"), seconds={"standard": 30}),
    Experiment("kim2016.vgg16_latency", layer_latency, _timed("VGG-16"), seconds={"standard": 120}),
    Experiment(
        "kim2016.resnet56_finetune_2ep", public_finetune,
        {
            "standard": {
                "data": "cifar10", "net": "ResNet-56", "dtype": "bfloat16", "schedule": "public weights, 2 epochs",
                "keep_out": ["linear"],
                "finetune": {"epochs": 2, "batch": 128, "lr": 0.01, "milestones": [0.5], "augment": True},
            }
        },
        seeds={"standard": 1}, seconds={"standard": 900},
    ),
]  # fmt: skip

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
