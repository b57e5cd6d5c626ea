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
from shrinkbook.measure.latency import MODES, OnItsInput, in_mode, latency, usable_modes
from shrinkbook.methods.tucker import Report
from shrinkbook.nets import initialize

GOAL = 0.6  # realised share of the reduction in multiply-accumulates
NOISY = 2  # slow over fast tenth of the rounds from which a median is not to be trusted


def whole_network(run: Context) -> None:
    """Time the network and its compressed form in every mode, all in turns; each counts where it is fastest.

    Weights do not matter for time: both have random ones. Where a median is worth little, because the slow tenth of
    the rounds takes twice the time of the fast one, no ratio is claimed.
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
    if any(one["high"] > NOISY * one["low"] for one in chosen.values()):
        run.measurements["noise"] = f"the slow tenth of the rounds takes {NOISY} times the fast one: no gap is claimed"
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
    with torch.inference_mode():
        for _ in range(3):
            for name, model in models.items():
                watt, reason = power(lambda model=model: once(model), run.device)  # type: ignore[misc]
                watts[name].append(watt)
    medians = {name: None if None in found else float(np.median(found)) for name, found in watts.items()}  # type: ignore[arg-type]
    return {"watt": medians, "reason": reason}


def layer_by_layer(run: Context) -> None:
    """Time every decomposed layer and its factors on what they read, all in turns, each in the faster of two layouts.

    Rates of convolutions are given as shares of the peak, the rate of a large matrix product on this machine.
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

    def seconds(which: str, name: str) -> float:
        return min(timed[f"{mode} {which} {name}"].median for mode in MODES[:2])

    peak = _peak_rate(run.device)
    layers: dict[str, dict[str, float]] = {}
    rates: dict[str, list[float]] = {"core": [], "1x1": []}
    for row in rows:
        layers[row.name] = {which: seconds(which, row.name) for which in models}
        for part in row.parts:
            short = part.name.rsplit(".", 1)[1]
            layers[row.name][short] = seconds("compressed", part.name)
            if row.name.startswith("conv"):
                rate = part.mac * run.config["batch"] / layers[row.name][short]
                rates["core" if short == "core" else "1x1"].append(100 * rate / peak)
        layers[row.name]["mac_ratio"] = row.mac / row.mac_after
    run.measurements["layers"] = layers
    run.measurements["left_whole"] = {name: seconds("original", name) for name in whole}
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
    """Milliseconds of the networks in every mode (10 to 90 % of the rounds), and the ratios; medians over the runs.

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
                for name in ("original", "compressed"):
                    low, middle, high = (
                        1000 * float(np.median([one["seconds"][mode][name][key] for one in measured]))
                        for key in ("low", "median", "high")
                    )
                    row[f"{name}, {mode}, ms"] = f"{middle:.1f} ({low:.1f} to {high:.1f})"
            ratios = {name: [one["ratio"][name] for one in measured] for name in ("mac", "measured", "realised")}
            row |= {"MAC ratio": np.median(ratios["mac"]), "time ratio": np.median(ratios["measured"])}
            low, realised, high = np.quantile(ratios["realised"], [0, 0.5, 1])
            rows[net, batch, found[0]["config"]["ranks"]] = {
                **{name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()},
                "realised": f"{realised:.2f} ({low:.2f} to {high:.2f})",
                f"goal of {GOAL}": "met" if realised >= GOAL else "missed" if row["time ratio"] > 1 else "slower",
                "runs": len(found),
            }
    return pd.DataFrame(rows).T.rename_axis(["network", "batch", "ranks"])


def layer_table(run: Mapping[str, Any]) -> pd.DataFrame:
    """Milliseconds of a run of :func:`layer_by_layer`: layer, chain, factors, ratios; layers left whole last."""
    table = pd.DataFrame(run["measurements"]["layers"]).T
    for name, seconds in run["measurements"]["left_whole"].items():
        table.loc[name, ["original", "compressed", "mac_ratio"]] = [seconds, seconds, 1.0]
    table.loc["sum"] = table[["original", "compressed"]].sum()
    ratio = table.pop("mac_ratio")
    return (1000 * table).round(3).assign(**{
        "time ratio": (table["original"] / table["compressed"]).round(2), "MAC ratio": ratio.round(2)
    })  # fmt: skip


def host_columns(timed: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> pd.DataFrame:
    """This machine beside table 1: milliseconds of one image, original, compressed and their ratio, by printed row."""
    rows: dict[str, dict[str, str]] = {}
    for net, batches in timed.items():
        if not (found := batches[1]):
            continue
        best = [run["measurements"] for run in found]
        pair = {
            name: 1000 * float(np.median([one["seconds"][one["fastest"][name]][name]["median"] for one in best]))
            for name in ("original", "compressed")
        }
        ratio = float(np.median([one["ratio"]["measured"] for one in best]))
        column = "this machine, ms" if found[0]["config"]["ranks"] == "printed" else "at a common share of ranks, ms"
        values = (f"{pair['original']:.1f}", f"{pair['compressed']:.1f}", f"x{ratio:.2f}")
        for row, value in zip((net, f"{net}*", f"{net} change"), values, strict=True):
            rows[row] = {column: value}
    return pd.DataFrame(rows).T


def host_layer_columns(run: Mapping[str, Any]) -> pd.DataFrame:
    """This machine beside table 2: milliseconds of every layer, of its chain with the parts, and their ratio."""
    rows: dict[str, dict[str, str]] = {}
    for name, row in run["measurements"]["layers"].items():
        parts = [f"{1000 * row[part]:.3f}" for part in ("first", "core", "last") if part in row]
        rows[name] = {"this machine, ms": f"{1000 * row['original']:.3f}"}
        rows[f"{name}*"] = {"this machine, ms": f"{1000 * row['compressed']:.3f} (= {' + '.join(parts)})"}
        rows[f"{name} change"] = {"this machine, ms": f"x{row['original'] / row['compressed']:.2f}"}
    return pd.DataFrame(rows).T
