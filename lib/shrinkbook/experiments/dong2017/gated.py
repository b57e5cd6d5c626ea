"""Train a plain network and gated ones from the same weights at the same budget; count, look, and skip exactly."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from shrinkbook.experiments.dong2017.collapse import counted, learnt
from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.networks import NETS
from shrinkbook.experiments.steps import layer_inputs, rounded
from shrinkbook.methods.lccl import add_lccl, gates, responses
from shrinkbook.methods.lccl_saving import Sparsity, dead_gates, idle_gates, saving, sparsity
from shrinkbook.methods.lccl_skip import SkippingConv, skipping
from shrinkbook.nets import initialize
from shrinkbook.training.evaluate import at_chance, evaluation_batches

ARMS: dict[str, dict[str, Any]] = {
    "lccl": {},  # kxkxCx1, batch norm and ReLU, on both convolutions of a block: the default everywhere
    "pointwise": {"kind": "1x1xCxT"},
    "published": {"kind": "1x1xCx1"},
    "grid": {"kind": "1x1xCx1", "grid": 2},
    "relu": {"norm": False},
    "first": {"layers": "first"},
    "second": {"layers": "second"},
    "hard": {"hard": True},
    "after_relu": {"relu": True},
}
# Cells of the comparisons, which the paper has of networks that are not known: arm and measure of ours.
ABLATIONS = {
    f"{table}/{row}/{column}": (arm, column)
    for table, second, rows in (
        ("kernels", "saved", {"1x1xCxT": "pointwise", "kxkxCx1": "lccl"}),
        ("sparsity", "zeros", {"ReLU": "relu", "BN and ReLU": "lccl"}),
        (
            "placement", "saved", {"first convolution": "first", "second convolution": "second",
            "both convolutions": "lccl"},
        ),
    )
    for row, arm in rows.items()
    for column in ("accuracy", second)
}  # fmt: skip
ABLATED = ("pre-activation ResNet-20", "cifar10")  # network and data that stand in those cells
SHOWN = 6  # test images whose zero maps are kept


def gated(run: Context) -> None:
    """Every arm of the settings against a plain network: same weights at the start, same batches, same recipe.

    Where the settings have a recipe of its own for it, the plain network trains by that one, as the authors' does. A
    run with a parent adds arms to the parent's, its plain network among them. Of an arm at chance only the accuracy is
    kept; it makes the run a collapsed one, as a collapsed parent does.
    """
    data = run.load_data()
    found: dict[str, float] = run.measurements.setdefault("accuracy", {})
    taught: dict[str, float] = run.measurements.setdefault("learnt", {})
    arms: dict[str, Any] = run.measurements.setdefault("arms", {})
    for parent in run.parents.values():
        found.update(parent["measurements"]["accuracy"])
        taught.update(learnt(parent))
        arms.update(counted(parent))
        if parent["status"] == "collapsed":
            run.status = "collapsed"
    for name in [*(() if run.parents else ("baseline",)), *run.config["arms"]]:
        model, settings = started(run.config["net"], name, run.seed), run.config["recipe"]
        if name == "baseline":
            settings = run.config.get("plain recipe", settings)
        run.train(model, run.recipe(settings), name, resume=run.unit.part(name), replay=True)
        found[name] = run.stage(name, model)
        run.progress(f"{name}: {found[name]:.2f} %")
        if name in run.collapsed or at_chance(found[name], data.classes):
            run.status = "collapsed"
            if run.history[-1]["loss"] is None:
                run.measurements.setdefault("diverged", {})[name] = "the loss of the last epoch is not finite"
            continue
        taught[name] = found[name]
        if name != "baseline":
            arm(run, name, model.eval())
    if "lccl" in arms:
        run.measurements["saving"] = {"above_20": 100 * arms["lccl"]["removed"] - 20}
        if "relu" in arms:
            run.measurements["sparsity"] = {"bn_relu": arms["lccl"]["zeros"], "relu": arms["relu"]["zeros"]}
    if run.config.get("row"):
        cells(run, run.config["row"])
    if (run.config["net"], run.config["data"]) == ABLATED:
        for address, (name, column) in ABLATIONS.items():
            if column == "accuracy" and name in found:
                run.cell(address, found[name])
            elif column != "accuracy" and name in arms:
                run.cell(address, {"saved": 100 * arms[name]["removed"], "zeros": arms[name]["zeros"]}[column])


def started(net: str, arm: str, seed: int) -> nn.Module:
    """An arm before training: the seed's plain network; gates have another seed, or they would repeat its numbers."""
    plain = initialize(NETS[net](), seed)
    return plain if arm == "baseline" else add_lccl(plain, seed=seed + 1000, **ARMS[arm])


def cells(run: Context, row: str) -> None:
    """The printed row of this network; ResNet-20 has two on CIFAR-10, and one run of ours stands beside both.

    A plain network at chance leaves its cells empty: nothing is lost against it.
    """
    table, accuracy, arms = run.config["data"], run.measurements["accuracy"], run.measurements["arms"]
    plain = run.measurements["learnt"].get("baseline")
    ours = {"accuracy": accuracy["lccl"]}
    if plain is not None:
        ours["drop"] = plain - accuracy["lccl"]
    if "lccl" in arms:
        removed = arms["lccl"]["removed"]
        ours |= {"saved": 100 * removed, "flop": run.stages["baseline"]["mac"] * (1 - removed)}
    for suffix in ("", ", second row") if (table, row) == ("cifar10", "ResNet-20") else ("",):
        if plain is not None:
            run.cell(f"{table}/{row}{suffix}/accuracy", plain)
        for column, value in ours.items():
            run.cell(f"{table}/{row}-LCCL{suffix}/{column}", value)


def depths(run: Context) -> None:
    """What each network of the parents loses, against its layers: a slope for the claim that deeper ones lose less."""
    drops = {int(name.removeprefix("dong2017.resnet")): drop for name, drop in _drops(run).items()}
    if run.status == "collapsed":
        return
    run.measurements["depths"] = {"layers": list(drops), "drop": list(drops.values())}
    for depth, drop in drops.items():
        run.cell(f"cifar10/ResNet-{depth}-LCCL/drop", drop)


def data_sets(run: Context) -> None:
    """What the parents' networks lose on average, on each data set."""
    drops: dict[str, list[float]] = {}
    for name, drop in _drops(run).items():
        drops.setdefault(run.parents[name]["config"]["data"], []).append(drop)
    if run.status != "collapsed":
        run.measurements["drop"] = {data: sum(found) / len(found) for data, found in drops.items()}


def _drops(run: Context) -> dict[str, float]:
    """What each parent's network loses; one at chance, plain or gated, is left out and makes this run collapsed."""
    found = {name: learnt(parent) for name, parent in run.parents.items()}
    drops = {name: one["baseline"] - one["lccl"] for name, one in found.items() if {"baseline", "lccl"} <= one.keys()}
    if len(drops) < len(found):
        run.status = "collapsed"
    return drops


def arm(run: Context, name: str, model: nn.Module) -> None:
    """Zeros of every gate over the test images, what they save in every reading, and, once, maps and exactness."""
    assert run.data is not None
    batches = [images for images, _ in evaluation_batches(run.data, run.device)]
    try:
        measured = sparsity(model, batches)
        dead = dead_gates(model, [part for one in batches for part in one.split(run.config["recipe"]["batch"])])
        exact = exactness(model, batches[0][: run.config["exact_images"]]) if name == "lccl" else None
    except ValueError as error:  # a diverged network has an accuracy, but no zeros to count
        run.measurements.setdefault("diverged", {})[name] = str(error)
        run.status = "collapsed"
        return
    result = saving(model, tuple(run.data.x_test.shape[1:]), {path: one.mean for path, one in measured.items()})
    run.measurements["arms"][name] = {
        "zeros": 100 * sum(one.mean for one in measured.values()) / len(measured),
        "removed": result.removed,
        "removed, gated layers only": result.removed_of_gated,
        "removed, as the authors count": result.removed_published,
        "faster": result.faster,
        "overhead": 100 * sum(one.gate_mac for one in result.layers) / sum(one.mac for one in result.layers),
        "idle": idle_gates(measured),
        "dead": dead,
        "layers": {one.name: _row(measured[one.name], one.break_even) for one in result.layers},
    }
    if exact:
        run.measurements["maps"] = zero_maps(model, batches[0][:SHOWN])
        run.measurements["exact"] = exact


def _row(measured: Sparsity, break_even: float) -> dict[str, float]:
    low, high = measured.spread
    return {"zeros": measured.mean, "low": low, "high": high, "break_even": break_even}


def zero_maps(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """Where gates of one map are 0, in three layers: layer -> images x rows x columns of 0, 1 (closed)."""
    found = {path: gate for path, gate in responses(model, images).items() if gate.shape[1] == 1}
    paths = list(found)
    chosen = [paths[0], paths[len(paths) // 2], paths[-1]]
    return {path: (found[path][:, 0] == 0).int().tolist() for path in chosen} | {
        "images": [rounded(image.flatten().tolist(), 2) for image in images.float().mean(1)]
    }


def exactness(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """Every gated layer with and without skipping on what it reads, in double precision, and the multiplications done.

    Returns:
        minus_difference: minus the largest difference as a share of the largest output, over all layers.
        minus_miscount: minus the sum of |multiplications done - open positions x k k C x outputs|.
        layers: multiplications done, those of the dense layer.

    Raises:
        ValueError: an output of a gated layer is not finite.
    """
    model, images = copy.deepcopy(model).cpu().double().eval(), images.cpu().double()
    inputs, twin = layer_inputs(model, images), skipping(model)
    worst, miscount, layers = 0.0, 0, {}
    for path, gate in gates(model).items():
        skipped = twin.get_submodule(path)
        assert isinstance(skipped, SkippingConv)
        x = inputs[path]
        with torch.inference_mode():
            ours, plain = skipped(x), model.get_submodule(path)(x)
            opened = int((gate(x) != 0).sum())
        if not torch.isfinite(plain).all():
            raise ValueError(f"layer {path}: the output holds NaN or infinity; the network diverged")
        worst = max(worst, float((ours - plain).abs().max() / plain.abs().max().clamp_min(1e-30)))
        outputs, row = skipped.main.matrix.shape
        per_position = row * (outputs if gate.conv.out_channels == 1 else 1)
        miscount += abs(skipped.main.multiplications - opened * per_position)
        layers[path] = {"done": skipped.main.multiplications, "dense": plain.numel() // outputs * row * outputs}
    return {"minus_difference": -worst, "minus_miscount": -miscount, "layers": layers, "images": len(images)}
