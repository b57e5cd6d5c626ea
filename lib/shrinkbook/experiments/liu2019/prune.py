"""The whole of the paper on one data set: train a PruningNet, search below several budgets, train what was found."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.liu2019.controls import (
    TOP,
    Cost,
    blind_preferences,
    mean_ratios,
    preferences,
    uniform_of_cost,
    uniform_ratios,
)
from shrinkbook.experiments.liu2019.latency import seconds_of
from shrinkbook.experiments.liu2019.scratch import accuracies, planned
from shrinkbook.experiments.liu2019.spaces import SPACES, load_search, save_vector, saving, uniform_vector
from shrinkbook.experiments.liu2019.spread import spreading, train_ahead
from shrinkbook.experiments.steps import Proxy, rounded
from shrinkbook.measure.cost import cost
from shrinkbook.methods.metapruning import Kind, PruningNet
from shrinkbook.methods.metapruning_candidates import Candidate, Constraint, Evolution
from shrinkbook.methods.metapruning_search import evolve, random_search
from shrinkbook.methods.metapruning_space import Genes, MacCount, SearchSpace
from shrinkbook.training.batches import split_validation
from shrinkbook.training.data import DataSet

KINDS: tuple[Kind, ...] = ("generated", "shared")  # the paper's, and plain shared weights as the control


def searched(run: Context) -> None:
    """PruningNet and its control, proxies at uniform widths, searches, training from scratch, and ranks."""
    config, full = run.config, run.load_data()
    net, place = config["net"], run.unit.checkpoint
    space = SPACES[net].space()
    part = searching_part(run, full)
    train_ahead(run, _pruning_net, dict.fromkeys(KINDS, net))
    networks: dict[str, PruningNet] = {kind: pruning_net(run, part, kind, space) for kind in KINDS}
    run.data = full
    proxy = Proxy(networks["generated"], part, config["images"], run.device)
    unseen = {k: dataclasses.replace(proxy, net=one, data=_tested(part, full)) for k, one in networks.items()}
    uniform_proxies(run, space, unseen)
    run.measurements["tied"] = tied(run, space)
    found = searches(run, space, proxy, unseen["generated"], net, place)
    first = next(iter(found))
    drawn = random_search(
        space, lambda genes: 0.0, found[first]["constraint"], config["random_widths"], run.seed + 1
    ).candidates
    trained = accuracies(run, space, planned(run, space, found, [one.genes for one in drawn], place))
    gains(run, trained, found)
    ranks(run, trained, proxy, drawn, first)


def searching_part(run: Context, full: DataSet) -> DataSet:
    """What a search may see: training images without a held-out slice, and of that the images it looks at as test."""
    keep, held = split_validation(len(full.y_train), run.config["val_fraction"], run.seed)
    held = held[: run.config["val_images"]]
    return dataclasses.replace(full.tested_on(held), x_train=full.x_train[keep], y_train=full.y_train[keep])


def pruning_net(run: Context, part: DataSet, kind: Kind, space: SearchSpace) -> PruningNet:
    """A trained PruningNet, or its control; training sees the searching part alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        network = PruningNet(space, SPACES[run.config["net"]].hidden, kind)
    run.data = part
    run.train(network, run.recipe(run.config["recipe"]), kind, resume=run.unit.part(kind))
    return network.eval()


def _pruning_net(run: Context, kind: Kind, net: str) -> None:
    pruning_net(run, searching_part(run, run.load_data()), kind, SPACES[net].space())


def _tested(part: DataSet, full: DataSet) -> DataSet:
    """Training images of the one, test images of the other: nothing is chosen by them."""
    return dataclasses.replace(part, x_test=full.x_test, y_test=full.y_test)


def uniform_proxies(run: Context, space: SearchSpace, proxies: dict[str, Proxy]) -> None:
    """Figure 4: uniform widths with generated and with shared weights, before and after batch norm is measured."""
    genes = range(0, len(space.ratios), run.config["step"])
    curves: dict[str, list[float]] = {"ratio": [space.ratios[gene] for gene in genes]}
    for kind, proxy in proxies.items():
        pairs = [proxy.both((gene,) * len(space.names)) for gene in genes]
        curves[f"{kind}, not measured afresh"], curves[kind] = (rounded(c) for c in zip(*pairs, strict=True))
        run.progress(f"{kind}: {np.mean(curves[kind]):.1f} % over uniform widths")
    assert run.data is not None
    chance, raw = 100 / run.data.classes, float(np.mean(curves["generated, not measured afresh"]))
    run.measurements["proxy"] = curves
    run.measurements["gaps"] = {
        "prediction": float(np.mean(curves["generated"]) - np.mean(curves["shared"])),
        "recalibration": float(np.mean(curves["generated"])) - raw,
        "near_chance": 2 * chance - raw,
    }


def tied(run: Context, space: SearchSpace) -> dict[str, int]:
    """Of random vectors, how many give a network that does not run, or costs something else than the closed form."""
    draws = np.random.default_rng(run.seed)
    shape = SPACES[run.config["net"]].shape
    count, failures = MacCount(space, shape), 0
    for _ in range(run.config["structures"]):
        genes = tuple(int(gene) for gene in draws.integers(0, len(space.ratios), len(space.names)))
        try:
            failures += cost(space.network(space.widths(genes)), shape).mac != count(genes)
        except (RuntimeError, ValueError):  # shapes that do not fit
            failures += 1
    return {"vectors": run.config["structures"], "minus_failures": -failures}


def searches(
    run: Context, space: SearchSpace, proxy: Proxy, unseen: Proxy, net: str, place: Path
) -> dict[str, dict[str, Any]]:
    """Below the cost of each uniform network: the evolutionary search, for the first also a random one as long.

    Args:
        proxy: accuracy on the images that the search may use.
        unseen: accuracy on images that it never saw: its best of many noisy numbers is too high on its own.
    """
    config = run.config
    found: dict[str, dict[str, Any]] = {}
    settings = Evolution(**config["evolution"])
    count = MacCount(space, SPACES[net].shape)
    costs: dict[str, Cost] = {"mac": count.of}
    ratios: dict[str, Sequence[float]] = {"mac": uniform_ratios(space)}
    if "latency" in config["constraints"]:
        costs["latency"], ratios["latency"] = seconds_of(run, space, net), space.ratios  # a table has no others
    with spreading(proxy) as spread:
        for unit in config["constraints"]:
            for ratio in config["uniform"]:
                label, cost_of = f"{unit} {ratio:g}", costs[unit]
                uniform = uniform_vector(space, ratio)
                limit = Constraint(
                    lambda genes, cost_of=cost_of: cost_of(space.widths(genes)),  # type: ignore[misc]
                    cost_of(space.widths(uniform)), unit={"mac": "MAC", "latency": "seconds"}[unit],
                )  # fmt: skip
                state = place.with_suffix(f".{label}.json")
                before, save = load_search(state, limit), saving(state)
                search = evolve(space, proxy, limit, settings, run.seed, before, save, spread)
                best = search.best
                vector = save_vector(place.with_suffix(f".{label}.widths.json"), net, space, best.genes)
                control = uniform_of_cost(space, cost_of, best.cost, ratios[unit])
                found[label] = {
                    "genes": list(best.genes), "widths": space.widths(best.genes), "cost": best.cost,
                    "unit": limit.unit, "budget": limit.most, "mac": count(best.genes), "fitness": best.fitness,
                    "control": {**control, "mac": count.of(control["widths"])},
                    "unseen": {"searched": unseen(best.genes), "uniform of the budget": unseen(uniform)},
                    "progress": rounded(search.progress()), "top": [list(one.genes) for one in search.top(TOP)],
                    "evaluations": len(search.candidates), "vector": vector.name,
                }  # fmt: skip
                if len(found) == 1:
                    drawn = random_search(space, proxy, limit, len(search.candidates), run.seed, settings, spread)
                    found[label]["random progress"] = rounded(drawn.progress())
                    run.measurements["gaps"]["evolution"] = best.fitness - drawn.best.fitness
                    found[label]["constraint"] = limit
                    kept(run, space, limit, settings, [one.genes for one in search.top(TOP)])
                run.progress(f"{label}: {best.fitness:.1f} % after {len(search.candidates)} evaluations")
    run.measurements["gaps"]["budgets"] = [
        one["unseen"]["searched"] - one["unseen"]["uniform of the budget"] for one in found.values()
    ]
    run.measurements["widths"] = {
        label: {"names": list(means), "ratios": rounded(list(means.values())), "base": space.base}
        for label, one in found.items()
        for means in [mean_ratios(space, one["top"])]
    }
    run.measurements["search"] = {
        label: {key: value for key, value in one.items() if key != "constraint"} for label, one in found.items()
    }
    return found


def kept(run: Context, space: SearchSpace, limit: Constraint, settings: Evolution, top: Sequence[Genes]) -> None:
    """Which widths the best vectors below the smallest budget keep, less what blind searches keep there."""
    found, blind = preferences(space, top), blind_preferences(space, limit, settings, run.seed)
    run.measurements["kept"] = {
        key: {"searched": value, "blind": rounded([one[key] for one in blind])} for key, value in found.items()
    }
    run.measurements["gaps"] |= {
        key: value - float(np.mean([one[key] for one in blind])) for key, value in found.items()
    }


def gains(run: Context, trained: Mapping[str, float], found: Mapping[str, Mapping[str, Any]]) -> None:
    """Every winner against uniform widths of its own cost, trained from the same seed; PruningNet against the full."""
    differences = {label: trained[f"searched {label}"] - trained[f"uniform {label}"] for label in found}
    run.measurements["gain"] = differences
    by_unit = {
        unit: [g for label, g in differences.items() if label.startswith(unit)] for unit in run.config["constraints"]
    }
    run.measurements["gaps"]["searched"] = by_unit["mac"]
    run.measurements["gaps"]["smallest_budget"] = by_unit["mac"][0] - by_unit["mac"][-1]
    if "latency" in by_unit:
        run.measurements["gaps"]["latency_over_mac"] = float(np.mean(by_unit["latency"]) - np.mean(by_unit["mac"]))
    last = {row["phase"]: row["train_accuracy"] for row in run.history}
    written, plain = last["generated"], last["full"]
    run.measurements["reach"] = {"PruningNet": written, "full": plain, "share": written / plain}
    run.measurements["gaps"]["half"] = 100 * (written / plain - 0.5)


def ranks(run: Context, trained: Mapping[str, float], proxy: Proxy, drawn: Sequence[Candidate], label: str) -> None:
    """Random vectors below the smallest budget, trained: does accuracy with generated weights rank them?

    The premise of a verdict, fixed beforehand: the standard deviation over random widths exceeds twice that over
    seeds of one network; else the task cannot tell widths apart.
    """
    rows: list[dict[str, Any]] = [
        {"genes": list(one.genes), "mac": one.cost, "proxy": proxy(one.genes), "trained": trained[f"random {number}"]}
        for number, one in enumerate(drawn)
    ]
    again = [trained[f"uniform {label}"]]
    again += [trained[f"uniform again {seed}"] for seed in range(1, run.config["reseeds"])]
    columns = {key: [row[key] for row in rows] for key in ("proxy", "trained", "mac")}
    run.measurements["ranks"] = {
        "rows": rows,
        "seeds": again,
        "tau": _tau(columns["proxy"], columns["trained"]),
        "tau of MAC": _tau(columns["mac"], columns["trained"]),
    }
    spread, noise = float(np.std(columns["trained"], ddof=1)), float(np.std(again, ddof=1))
    run.measurements["premise"] = {"spread": spread, "seed_sd": noise, "hard_enough": spread - 2 * noise}


def _tau(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Kendall's rank correlation, None where one side is constant."""
    from scipy import stats  # here: importing it takes as long as many a command

    value = float(stats.kendalltau(one, other).statistic)
    return None if math.isnan(value) else value
