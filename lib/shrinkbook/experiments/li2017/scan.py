"""Figures 2, 3, 5 to 10 without retraining: train a network, then ask what removing filters does to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.steps import note_images, original, rounded, trained
from shrinkbook.measure.cost import cost
from shrinkbook.methods import filter_criteria as criteria
from shrinkbook.methods.filter_pruning import (
    Scores,
    couplings_of,
    ranked_kernel,
    select,
    sensitivity,
    slim,
    split_before,
)
from shrinkbook.nets import Coupling

Curves = dict[str, list[float]]


def scan_scores(run: Context, model: nn.Module, layers: Sequence[str]) -> dict[str, Scores]:
    """Every way of choosing filters that the settings name, by the name used in figures."""
    wanted = run.config["criteria"]
    scores: dict[str, Scores] = {
        "smallest": criteria.filter_l1,
        "random": criteria.random_filters(run.seed),
        "largest": criteria.largest_first,
        "l2": criteria.filter_l2,
    }
    if any(name in criteria.ACTIVATION_CRITERIA for name in wanted):
        assert run.data is not None
        couplings = couplings_of(model)
        batches = (run.data.normalise(part) for part in run.data.x_train.split(500))
        paths = {layer: couplings[layer].ranked_by for layer in layers}
        scores |= criteria.activation_scores(model, paths, batches)
    return {name: scores[name] for name in wanted}


@dataclass
class Scan:
    """One way of choosing, layer by layer: accuracy at every ratio, and right answers per image summed over ratios."""

    accuracy: Curves = field(default_factory=dict)
    correct: dict[str, Tensor] = field(default_factory=dict)


def scan(run: Context, model: nn.Module, layers: Sequence[str], scores: Mapping[str, Scores]) -> dict[str, Scan]:
    """Prune one layer at a time by every way of choosing, at every ratio; accuracies are noted under ``scan``.

    What lies before the layer is the same for all of them and runs once.
    """
    found = {name: Scan() for name in scores}
    for number, layer in enumerate(layers, start=1):
        measure = run.evaluate_tail(*split_before(model, layer))
        for name, score in scores.items():
            results = sensitivity(model, [layer], run.config["ratios"], measure, score)[layer]
            found[name].accuracy[layer] = [result.accuracy for result in results]
            found[name].correct[layer] = torch.stack([result.correct for result in results]).sum(0)
        run.progress(f"scan: layer {number}/{len(layers)}")
    run.measurements["scan"] = {
        name: {layer: rounded(curve) for layer, curve in one.accuracy.items()} for name, one in found.items()
    }
    return found


def vgg_scan(run: Context) -> None:
    """Figures 2a, 2b, 3, 5, 8, 9, 10 on a VGG: norms, scans of single layers by every criterion, greedy selection."""
    model = trained(run)
    layers = list(couplings_of(model))
    ratios = run.config["ratios"]
    run.measurements |= {"ratios": ratios, "layers": layers, "norms": sorted_norms(model, layers)}
    run.measurements["first_layer"] = rounded_nested(ranked_kernel(model, couplings_of(model)["conv_1"]))
    scans = scan(run, model, layers, scan_scores(run, model, layers))
    curves = {name: found.accuracy for name, found in scans.items()}
    mean = {name: mean_over(curve) for name, curve in curves.items()}
    run.measurements["order"] = {name: mean[name] for name in ("smallest", "random", "largest")}
    run.measurements["flatness"] = {
        "flatness": [float(np.mean(run.measurements["norms"][layer])) for layer in layers],
        "loss": [original(run) - curves["smallest"][layer][ratios.index(0.5)] for layer in layers],
    }
    at_80, at_90 = ratios.index(0.8), ratios.index(0.9)
    above_60 = [index for index, ratio in enumerate(ratios) if ratio > 0.6]
    plain = [name for name in criteria.ACTIVATION_CRITERIA if name != "mean-std"]
    run.measurements["gaps"] = {
        "smallest_over_random_at_90": [
            curves["smallest"][layer][at_90] - curves["random"][layer][at_90] for layer in layers
        ],
        "conv_1_over_conv_2_at_80": curves["smallest"]["conv_1"][at_80] - curves["smallest"]["conv_2"][at_80],
        "deep_layers_at_60": [
            curves["smallest"][layer][ratios.index(0.6)] - original(run) for layer in deep_layers(model, layers)
        ],
        "l1_minus_l2": float(
            max(np.mean(np.abs(np.subtract(curves["smallest"][layer], curves["l2"][layer]))) for layer in layers)
        ),
        "l1_over_activation": [mean["smallest"] - mean[name] for name in plain],
        "l1_over_mean_std_above_60": mean_over(curves["smallest"], above_60) - mean_over(curves["mean-std"], above_60),
    }  # fmt: skip
    greedy_against_independent(run, model, layers)


def greedy_against_independent(run: Context, model: nn.Module, layers: Sequence[str]) -> None:
    """Prune all layers at one ratio by both strategies (section 3.4); accuracies under ``selection``.

    Without retraining, the ratios have to be small: where both fall to chance there is nothing to compare.
    """
    ratios = run.config["selection_ratios"]
    curves: Curves = {
        strategy: [
            run.accuracy(slim(model, select(model, dict.fromkeys(layers, ratio), strategy=strategy)))
            for ratio in ratios
        ]
        for strategy in ("greedy", "independent")
    }
    run.measurements["selection"] = {
        "ratios": ratios,
        **{name: float(np.mean(curve)) for name, curve in curves.items()},
        **{f"{name}_curve": rounded(curve) for name, curve in curves.items()},
        "greedy_minus_independent": [g - i for g, i in zip(curves["greedy"], curves["independent"], strict=True)],
    }


def resnet_scan(run: Context) -> None:
    """Figure 6 on a residual network trained here: sensitivity of the first layer of every block."""
    residual_scan(run, trained(run))


def depth(run: Context) -> None:
    """Claim 12: what pruning single layers costs ResNet-110 and ResNet-56, from the scans of both at one seed."""
    loss = {
        name: scanned["stages"]["original"]["accuracy"]["last"] - scanned["measurements"]["order"]["smallest"]
        for name, scanned in run.parents.items()
    }
    run.measurements["loss"] = loss
    run.measurements["gaps"] = {"resnet110_over_resnet56": loss["li2017.resnet56_scan"] - loss["li2017.resnet110_scan"]}


def residual_scan(run: Context, model: nn.Module) -> None:
    """Scan the first layers of all blocks; compare blocks at the borders of stages with the others of their stage, and
    the inner blocks of the stages with each other."""
    couplings = couplings_of(model)
    layers = [name for name in couplings if name.startswith("conv_")]
    run.measurements |= {"ratios": run.config["ratios"], "layers": layers}
    scans = scan(run, model, layers, scan_scores(run, model, layers))
    run.measurements["order"] = {name: mean_over(found.accuracy) for name, found in scans.items()}
    smallest, border = scans["smallest"].accuracy, border_blocks(couplings)
    # By stage: stages differ anyway (claim 11b), so a block at the border is held against the inner ones of its own.
    stages = sorted({couplings[layer].stage for layer in layers})
    at_border = {stage: [layer for layer in border if couplings[layer].stage == stage] for stage in stages}
    inside = {
        stage: [layer for layer in layers if couplings[layer].stage == stage and layer not in border]
        for stage in stages
    }
    mean = {
        name: {stage: mean_over({layer: smallest[layer] for layer in group[stage]}) for stage in stages if group[stage]}
        for name, group in (("inner", inside), ("border", at_border))
    }
    run.measurements["border"] = border
    run.measurements["gaps"] = {
        "inner_over_border_blocks": [mean["inner"][stage] - mean["border"][stage] for stage in mean["border"]]
    }
    run.measurements["stages"] = {
        "stage": list(mean["inner"]),
        "loss": [original(run) - accuracy for accuracy in mean["inner"].values()],
    }
    if run.fixed_network:
        groups = {f"order.{name}": list(found.correct.values()) for name, found in scans.items()}
        correct = scans["smallest"].correct
        for stage in stages:
            groups[f"inner.stage_{stage}"] = [correct[layer] for layer in inside[stage]]
            if at_border[stage]:
                groups[f"border.stage_{stage}"] = [correct[layer] for layer in at_border[stage]]
        for path, answers in groups.items():
            note_images(run, path, answers, len(run.config["ratios"]))
        run.per_image_pairs = {
            "gaps.inner_over_border_blocks": [[f"inner.stage_{s}", f"border.stage_{s}"] for s in mean["border"]],
            # Of a least-squares line through equally spaced stages, the ends decide: three stages, first above last.
            "stages.loss": [[f"inner.stage_{stages[0]}", f"inner.stage_{stages[-1]}"]],
        }


def projection_scan(run: Context) -> None:
    """Figure 7 in small: first layers against all second layers of a stage with their shortcut, accuracy lost for the
    work saved, in the stages that have a projection."""
    model = trained(run)
    assert run.data is not None
    shape = tuple(run.data.x_test.shape[1:])
    full, ratios, couplings = cost(model, shape).mac, run.config["ratios"], couplings_of(model)
    paired = {coupling.stage for name, coupling in couplings.items() if name.startswith("stage_")}
    layers = [name for name, coupling in couplings.items() if coupling.stage in paired]
    curves = scan(run, model, layers, {"smallest": criteria.filter_l1})["smallest"].accuracy
    per_mac: dict[str, list[float]] = {"first": [], "second": []}
    for layer in layers:
        for ratio, accuracy in zip(ratios, curves[layer], strict=True):
            saved = 100 * (1 - cost(slim(model, select(model, {layer: ratio})), shape).mac / full)
            kind = "second" if layer.startswith("stage_") else "first"
            per_mac[kind].append((original(run) - accuracy) / saved)
    loss = {kind: float(np.mean(values)) for kind, values in per_mac.items()}
    run.measurements |= {"ratios": ratios, "layers": layers, "loss_per_percent_of_mac": loss}
    run.measurements["gaps"] = {"first_over_second_per_mac": loss["second"] - loss["first"]}


def border_blocks(couplings: Mapping[str, Coupling]) -> list[str]:
    """First layers of the blocks that the paper found sensitive in ResNet-56 (20, 38, 54), in any depth: the first
    block of every stage but the first, and the last block of the network."""
    firsts: dict[int, str] = {}
    for name, coupling in couplings.items():
        if name.startswith("conv_"):
            firsts.setdefault(coupling.stage, name)
            last = name
    return [firsts[stage] for stage in sorted(firsts)[1:]] + [last]


def deep_layers(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """The widest layers: of VGG-16 those with 512 maps."""
    couplings = couplings_of(model)
    widths = {layer: len(ranked_kernel(model, couplings[layer])) for layer in layers}
    return [layer for layer in layers if widths[layer] == max(widths.values())]


def sorted_norms(model: nn.Module, layers: Sequence[str]) -> Curves:
    """Figure 2a: filter norms s_j of each layer, largest first, divided by the largest."""
    couplings = couplings_of(model)
    curves: Curves = {}
    for layer in layers:
        norms = criteria.filter_l1(ranked_kernel(model, couplings[layer]))
        curves[layer] = rounded((norms / norms.max()).sort(descending=True).values.tolist(), 4)
    return curves


def mean_over(curves: Mapping[str, Sequence[float]], indices: Sequence[int] | None = None) -> float:
    """Mean over all layers and ratios (or the ratios at ``indices``)."""
    return float(np.mean([curve if indices is None else [curve[i] for i in indices] for curve in curves.values()]))


def rounded_nested(tensor: Tensor) -> Any:
    """A small tensor as nested lists with four decimals."""
    return np.round(tensor.cpu().numpy().astype(float), 4).tolist()
