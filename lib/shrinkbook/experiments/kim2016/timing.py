"""Tables 1 and 2 in time: a full-size network against its compressed form, and every layer against its factors."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from shrinkbook.experiments.kim2016.cost import ORIGINALS, RANKS, compressed
from shrinkbook.experiments.run import Context
from shrinkbook.experiments.steps import layer_inputs
from shrinkbook.measure.energy import power
from shrinkbook.measure.latency import in_mode, latency, usable_modes
from shrinkbook.methods.tucker import Report
from shrinkbook.nets import initialize


def whole_network(run: Context) -> None:
    """Time the network and its compressed form in every mode; each counts in the mode in which it is fastest.

    Weights do not matter for time: both have random ones.
    """
    models, report, image = _prepared(run)
    seconds: dict[str, dict[str, dict[str, float]]] = {}
    for mode in usable_modes(run.device):
        ready = {name: in_mode(model, mode) for name, model in models.items()}
        timed = latency(ready, image, run.config["rounds"], run.config["warmup"], run.seed)
        seconds[mode] = {name: {"median": t.median, "low": t.low, "high": t.high} for name, t in timed.items()}
        torch.compiler.reset()  # compiled networks hold their weights for as long as the cache does
        run.progress(f"{run.config['net']} {mode}: " + ", ".join(f"{n} {t.median:.4f} s" for n, t in timed.items()))
    fastest = {name: min(of[name]["median"] for of in seconds.values()) for name in models}
    mac = report.total("mac") / report.total("mac_after")
    measured = fastest["original"] / fastest["compressed"]
    by_mode = {mode: of["original"]["median"] / of["compressed"]["median"] for mode, of in seconds.items()}
    run.measurements["seconds"] = seconds
    run.measurements["size"] = {"mac_after": report.total("mac_after"), "weights_after": report.total("weights_after")}
    run.measurements["ratio"] = {"mac": mac, "measured": measured, "realised": measured / mac, **by_mode}
    run.measurements["gaps"] = {"mac_ratio_over_measured": mac - measured}
    watts, reasons = {}, set()
    for name, model in models.items():
        with torch.inference_mode():
            watts[name], reason = power(lambda model=model: model(image), run.device)  # type: ignore[misc]
        reasons.add(reason)
    run.measurements["power"] = {"watt": watts, "reason": reasons.pop()}
    if watts["original"] is not None and watts["compressed"] is not None:
        run.measurements["gaps"]["watt_saved"] = watts["original"] - watts["compressed"]


def layer_by_layer(run: Context) -> None:
    """Time every decomposed layer and its factors on maps of the size they read, each in the faster of two layouts.

    Their rates are given as fractions of the peak, the rate of a large matrix product on this machine.
    """
    models, report, image = _prepared(run)
    inputs = {which: layer_inputs(model, image) for which, model in models.items()}
    peak = _peak_rate(run.device)
    layers: dict[str, dict[str, float]] = {}
    rates: dict[str, list[float]] = {"core": [], "1x1": []}
    for row in (row for row in report.layers if row.ranks):
        times = {which: _fastest(run, model, row.name, inputs[which]) for which, model in models.items()}
        parts = {}
        for part in row.parts:
            short = part.name.rsplit(".", 1)[1]
            parts[short] = _fastest(run, models["compressed"], part.name, inputs["compressed"])
            rate = part.mac * run.config["batch"] / parts[short]
            rates["core" if short == "core" else "1x1"].append(100 * rate / peak)
        layers[row.name] = {**times, **parts, "mac_ratio": row.mac / row.mac_after}
        run.progress(f"{row.name} timed")
    run.measurements["layers"] = layers
    run.measurements["peak_gmac_per_second"] = peak / 1e9
    run.measurements["percent_of_peak"] = rates
    realised = {name: row["original"] / row["compressed"] / row["mac_ratio"] for name, row in layers.items()}
    fc = [value for name, value in realised.items() if name.startswith("fc")]
    conv = [value for name, value in realised.items() if name.startswith("conv")]
    run.measurements["gaps"] = {"core_over_1x1": float(np.median(rates["core"]) - np.median(rates["1x1"]))}
    if fc:
        run.measurements["gaps"]["fc_over_conv_realised"] = 100 * float(np.median(fc) - np.median(conv))


def _prepared(run: Context) -> tuple[Mapping[str, nn.Module], Report, Tensor]:
    """Original and compressed network with random weights, the report, and a batch of random images."""
    net = run.config["net"]
    model, smaller, report = compressed(net, RANKS[run.config["ranks"]](net))
    models = {"original": model, "compressed": smaller}
    models = {n: initialize(m.to_empty(device="cpu"), run.seed).eval().to(run.device) for n, m in models.items()}
    side = ORIGINALS[net][1]
    image = torch.randn(run.config["batch"], 3, side, side, generator=torch.Generator().manual_seed(run.seed))
    return models, report, image.to(run.device)


def _fastest(run: Context, model: nn.Module, name: str, inputs: Mapping[str, Tensor]) -> float:
    """Median seconds of one module in the faster of the two layouts."""
    times = []
    for mode in ("eager", "channels_last"):
        seen = inputs[name]
        if mode == "channels_last" and seen.ndim == 4:
            seen = seen.contiguous(memory_format=torch.channels_last)
        module = {name: in_mode(model.get_submodule(name), mode)}
        times.append(latency(module, seen, run.config["rounds"], run.config["warmup"], run.seed)[name].median)
    return min(times)


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


def speed_table(timed: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> pd.DataFrame:
    """Milliseconds of the networks in every mode, as ``original / compressed``, and the ratios, medians over the runs.

    Args:
        timed: network -> batch -> runs of :func:`whole_network`.
    """
    rows: dict[tuple[str, int, str], dict[str, Any]] = {}
    for net, batches in timed.items():
        for batch, found in batches.items():
            if not found:
                continue
            measured = [run["measurements"] for run in found]
            row: dict[str, Any] = {}
            for mode in measured[0]["seconds"]:
                pair = [
                    1000 * float(np.median([one["seconds"][mode][name]["median"] for one in measured]))
                    for name in ("original", "compressed")
                ]
                row[f"{mode}, ms"] = " / ".join(f"{milliseconds:.1f}" for milliseconds in pair)
            for name, column in (("mac", "MAC ratio"), ("measured", "time ratio"), ("realised", "realised")):
                values = [one["ratio"][name] for one in measured]
                row[column] = round(float(np.median(values)), 2)
            row["lowest to highest"] = f"{min(values):.2f} to {max(values):.2f}"
            rows[net, batch, found[0]["config"]["ranks"]] = {**row, "runs": len(found)}
    return pd.DataFrame(rows).T.rename_axis(["network", "batch", "ranks"])


def layer_table(run: Mapping[str, Any]) -> pd.DataFrame:
    """Milliseconds of a run of :func:`layer_by_layer`: layer, chain, factors; and the two ratios."""
    table = pd.DataFrame(run["measurements"]["layers"]).T
    ratio = table.pop("mac_ratio")
    return (1000 * table).round(3).assign(**{
        "time ratio": (table["original"] / table["compressed"]).round(2), "MAC ratio": ratio.round(2)
    })  # fmt: skip
