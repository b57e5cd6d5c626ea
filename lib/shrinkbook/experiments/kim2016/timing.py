"""Tables 1 and 2 in time: a full-size network against its compressed form, and every layer against its factors."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.kim2016.cost import ORIGINALS, RANKS, compressed
from shrinkbook.experiments.steps import layer_inputs
from shrinkbook.measure.energy import power
from shrinkbook.measure.latency import MODES, OnItsInput, Timing, in_mode, latency, usable_modes
from shrinkbook.measure.steady import unsteady
from shrinkbook.methods.tucker import Report
from shrinkbook.nets import initialize

NOISE = "the slow tenth of the rounds takes more than twice the time of the fast one"


def whole_network(run: Context) -> None:
    """Time the network and its compressed form in every mode, all in turns; each counts where it is fastest.

    Weights do not matter for time: both have random ones. Where a median is worth little (see
    :func:`~shrinkbook.measure.steady.unsteady`), no gap is claimed and no power measured.
    """
    models, report, image = _prepared(run)
    modes = usable_modes(run.device)
    ready = {f"{mode} {name}": in_mode(model, mode) for mode in modes for name, model in models.items()}
    timed = latency(ready, image, run.config["rounds"], run.config["warmup"], run.seed)
    seconds = {
        mode: {
            name: {key: getattr(timed[f"{mode} {name}"], key) for key in ("median", "low", "high")} for name in models
        }
        for mode in modes
    }
    best = {name: min(modes, key=lambda mode, name=name: seconds[mode][name]["median"]) for name in models}  # type: ignore[misc]
    chosen = {name: seconds[mode][name] for name, mode in best.items()}
    mac = report.total("mac") / report.total("mac_after")
    measured = chosen["original"]["median"] / chosen["compressed"]["median"]
    by_mode = {mode: of["original"]["median"] / of["compressed"]["median"] for mode, of in seconds.items()}
    run.measurements["seconds"] = seconds
    run.measurements["fastest"] = best
    run.measurements["size"] = {"mac_after": report.total("mac_after"), "weights_after": report.total("weights_after")}
    run.measurements["ratio"] = {"mac": mac, "measured": measured, "realised": measured / mac, **by_mode}
    run.progress(f"{run.config['net']}: {measured:.2f} x in time, {mac:.2f} x in multiply-accumulates, fastest {best}")
    if any(unsteady(one["low"], one["high"]) for one in chosen.values()):
        run.measurements["noise"] = f"{NOISE}: no gap is claimed"
        run.measurements["power"] = {"watt": dict.fromkeys(models), "reason": f"not measured, {NOISE}"}
    else:
        run.measurements["gaps"] = {"faster_but_less_than_mac": min(mac - measured, measured - 1)}
        run.measurements["power"] = _power({name: ready[f"{mode} {name}"] for name, mode in best.items()}, image, run)
        watt = run.measurements["power"]["watt"]
        if None not in watt.values():
            run.measurements["gaps"]["watt_saved"] = watt["original"] - watt["compressed"]
    torch.compiler.reset()  # compiled networks hold their weights for as long as the cache does


def _power(models: Mapping[str, nn.Module], image: Tensor, run: Context) -> dict[str, Any]:
    """Mean watts of each network, medians of three turns of two seconds; or None and the reason."""

    def once(model: nn.Module) -> None:
        model(image)
        if image.is_cuda:
            torch.cuda.synchronize()

    watts: dict[str, list[float | None]] = {name: [] for name in models}
    why = ""
    with torch.inference_mode():
        for _ in range(3):
            for name, model in models.items():
                watt, reason = power(lambda model=model: once(model), run.device)  # type: ignore[misc]
                watts[name].append(watt)
                why = why or reason
    medians = {name: None if None in found else float(np.median(found)) for name, found in watts.items()}  # type: ignore[arg-type]
    return {"watt": medians, "reason": why}


def layer_by_layer(run: Context) -> None:
    """Time every decomposed layer and its factors on what they read, all in turns, each in the faster of two layouts.

    Rates of convolutions are given as shares of the peak, the rate of a large matrix product on this machine. Layers
    and factors whose median is worth little are named as ``unsteady`` and take no part in the gaps.
    """
    models, report, image = _prepared(run)
    inputs = {which: layer_inputs(model, image) for which, model in models.items()}
    rows = [row for row in report.layers if row.ranks]
    wanted = {(which, row.name) for row in rows for which in models}
    wanted |= {("compressed", part.name) for row in rows for part in row.parts}
    whole = [row.name for row in report.layers if not row.ranks]
    wanted |= {("original", name) for name in whole}
    parts: dict[str, nn.Module] = {}
    for which, name in sorted(wanted):
        for mode in MODES[:2]:
            seen = inputs[which][name]
            if mode == "channels_last" and seen.ndim == 4:
                seen = seen.contiguous(memory_format=torch.channels_last)
            parts[f"{mode} {which} {name}"] = OnItsInput(in_mode(models[which].get_submodule(name), mode), seen)
    timed = latency(parts, image, run.config["rounds"], run.config["warmup"], run.seed)

    def fastest(which: str, name: str) -> Timing:
        return min((timed[f"{mode} {which} {name}"] for mode in MODES[:2]), key=lambda one: one.median)

    def seconds(which: str, name: str) -> float:
        return fastest(which, name).median

    best = {f"{which} {name}": fastest(which, name) for which, name in sorted(wanted)}
    noisy = [name for name, one in best.items() if unsteady(one.low, one.high)]
    peak = _peak_rate(run.device)
    layers: dict[str, dict[str, float]] = {}
    rates: dict[str, list[float]] = {"core": [], "1x1": []}
    for row in rows:
        layers[row.name] = {which: seconds(which, row.name) for which in models}
        for part in row.parts:
            short = part.name.rsplit(".", 1)[1]
            layers[row.name][short] = seconds("compressed", part.name)
            if row.name.startswith("conv") and f"compressed {part.name}" not in noisy:
                rate = part.mac * run.config["batch"] / layers[row.name][short]
                rates["core" if short == "core" else "1x1"].append(100 * rate / peak)
        layers[row.name]["mac_ratio"] = row.mac / row.mac_after
    run.measurements["layers"] = layers
    run.measurements["left_whole"] = {name: seconds("original", name) for name in whole}
    run.measurements["peak_gmac_per_second"] = peak / 1e9
    run.measurements["percent_of_peak"] = rates
    run.measurements["unsteady"] = noisy
    steady = {name: row for name, row in layers.items() if not {f"{which} {name}" for which in models} & set(noisy)}
    realised = {name: 100 * row["original"] / row["compressed"] / row["mac_ratio"] for name, row in steady.items()}
    fc, conv = ([value for name, value in realised.items() if name.startswith(kind)] for kind in ("fc", "conv"))
    pairs = {"core_over_1x1": (rates["core"], rates["1x1"]), "fc_over_conv_realised": (fc, conv)}
    run.measurements["gaps"] = {
        name: float(np.median(above) - np.median(below)) for name, (above, below) in pairs.items() if above and below
    }


def _prepared(run: Context) -> tuple[Mapping[str, nn.Module], Report, Tensor]:
    """Original and compressed network with random weights, the report, and a batch of random images."""
    net = run.config["net"]
    model, smaller, report = compressed(net, RANKS[run.config["ranks"]](net))
    models = {"original": model, "compressed": smaller}
    models = {n: initialize(m.to_empty(device="cpu"), run.seed).eval().to(run.device) for n, m in models.items()}
    side = ORIGINALS[net][1]
    image = torch.randn(run.config["batch"], 3, side, side, generator=torch.Generator().manual_seed(run.seed))
    return models, report, image.to(run.device)


def _peak_rate(device: str, size: int = 2048, rounds: int = 15) -> float:
    """Multiply-accumulates a second of a square matrix product in float32: the best of several rounds."""
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return size**3 / best
