"""Pruning followed by retraining, and the same shapes from scratch (table 1, figure 2c)."""

from torch import nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.li2017.models import PRUNED
from shrinkbook.experiments.li2017.scan import deep_layers
from shrinkbook.experiments.steps import note_images, original, rounded, trained
from shrinkbook.methods.filter_pruning import compress, couplings_of, sensitivity
from shrinkbook.nets import initialize


def retrain(run: Context) -> None:
    """Prune once, retrain with a small constant rate; train the same shape from scratch where the settings say so."""
    model = trained(run)
    for name in run.config["models"]:
        retrain_one(run, model, name)


def retrain_one(run: Context, model: nn.Module, name: str) -> None:
    """One named model: stages ``<name> slimmed``, ``<name> tuned``, ``<name> scratch``, and their errors as cells.

    The last model of the settings also fills ``retrain``, which the order claims read.
    """
    config, digits = run.config, run.config["data"] == "digits"
    smaller, report = compress(model, PRUNED[name].ratios, strategy=config["strategy"])
    run.measurements.setdefault("kept", {})[name] = report.filters_after
    found = {"original": original(run), "slimmed": run.stage(f"{name} slimmed", smaller)}
    if run.fixed_network:
        note_images(run, "retrain.original", [run.evaluations["original"].correct])
        note_images(run, "retrain.slimmed", [run.evaluations[f"{name} slimmed"].correct])
    run.train(smaller, run.recipe(config["retrain"]), f"{name}: retrain")
    found["tuned"] = run.stage(f"{name} tuned", smaller)
    if run.fixed_network:
        note_images(run, "retrain.tuned", [run.evaluations[f"{name} tuned"].correct])
    if config.get("scratch"):
        fresh = initialize(smaller, run.seed + 1000)  # not the seed the large network grew from
        run.train(fresh, run.recipe(config["scratch"]), f"{name}: scratch")
        found["scratch"] = run.stage(f"{name} scratch", fresh)
    if not digits:
        run.cell(f"table1/{PRUNED[name].net}/error", 100 - found["original"])
        run.cell(f"table1/{name}/error", 100 - found["tuned"])
        if "scratch" in found:
            run.cell(f"table1/{name} scratch-train/error", 100 - found["scratch"])
    run.measurements["retrain"] = found
    run.progress(f"{name}: " + ", ".join(f"{stage} {value:.2f} %" for stage, value in found.items()))


def iterative(run: Context) -> None:
    """As :func:`retrain`; then the last model again with a whole retraining after every pruned layer."""
    retrain(run)
    step_by_step = trained(run)
    for layer, ratio in PRUNED[run.config["models"][-1]].ratios.items():
        step_by_step, _ = compress(step_by_step, {layer: ratio})
        run.train(step_by_step, run.recipe(run.config["retrain"]), "layer by layer")
    run.measurements["retrain"]["layer_by_layer"] = run.accuracy(step_by_step)


def single_layers(run: Context) -> None:
    """Figure 2c: prune one layer, retrain, measure; every layer at every ratio of ``layer_ratios``."""
    model = trained(run)
    layers, ratios = list(couplings_of(model)), run.config["layer_ratios"]
    recipe = run.recipe({**run.config["retrain"], "epochs": run.config["layer_epochs"]})
    curves = sensitivity(
        model, layers, ratios, run.accuracy, retrain=lambda smaller: run.train(smaller, recipe, "one layer")
    )
    run.history = [row for row in run.history if row["phase"] != "one layer"]  # dozens of short curves, nothing to see
    run.measurements["scan_retrained"] = {layer: rounded(curve) for layer, curve in curves.items()}
    run.measurements["layer_ratios"] = ratios
    run.measurements["layers"] = layers
    if 0.9 in ratios:
        run.measurements["gaps"] = {
            "deep_layers_at_90_retrained": [
                curves[layer][ratios.index(0.9)] - original(run) for layer in deep_layers(model, layers)
            ]
        }


def vgg_retrain(run: Context) -> None:
    """All of it on one small network."""
    iterative(run)
    single_layers(run)
