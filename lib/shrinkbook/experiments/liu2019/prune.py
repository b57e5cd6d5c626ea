"""The whole of the paper on one data set: train a PruningNet, search below several budgets, train what was found."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
from shrinkbook.experiments.liu2019.spaces import (
    SPACES,
    load_search,
    load_vector,
    save_vector,
    saving,
    uniform_vector,
)
from shrinkbook.experiments.liu2019.spread import spreading
from shrinkbook.experiments.run import Context
from shrinkbook.experiments.steps import Proxy, rounded
from shrinkbook.measure.cost import cost
from shrinkbook.methods.metapruning import PruningNet
from shrinkbook.methods.metapruning_candidates import Constraint, Evolution
from shrinkbook.methods.metapruning_search import evolve, random_search
from shrinkbook.methods.metapruning_space import Genes, MacCount, SearchSpace
from shrinkbook.nets import initialize
from shrinkbook.training.batches import split_validation
from shrinkbook.training.data import DataSet


def searched(run: Context) -> None:
    """PruningNet and its control, proxies at uniform widths, searches, training from scratch, and ranks."""
    config, full = run.config, run.load_data()
    net, place = config["net"], run.unit.checkpoint
    space = SPACES[net].space()
    keep, held = split_validation(len(full.y_train), config["val_fraction"], run.seed)
    held = held[: config["val_images"]]
    part = dataclasses.replace(full.tested_on(held), x_train=full.x_train[keep], y_train=full.y_train[keep])
    networks: dict[str, PruningNet] = {}
    for kind in ("generated", "shared"):
        run.data = part
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            networks[kind] = PruningNet(space, SPACES[net].hidden, kind)
        run.train(networks[kind], run.recipe(config["recipe"]), kind, resume=run.unit.part(kind))
        networks[kind].eval()
        run.data = full
    proxy = Proxy(networks["generated"], part, config["images"], run.device)
    unseen = {k: dataclasses.replace(proxy, net=one, data=_tested(part, full)) for k, one in networks.items()}
    uniform_proxies(run, space, unseen)
    run.measurements["tied"] = tied(run, space)
    found = searches(run, space, proxy, unseen["generated"], net, place)
    trained = Trained(run, space, net, place)
    gains(run, trained, found)
    ranks(run, trained, proxy, found)


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


@dataclass
class Trained:
    """Networks of chosen widths trained from scratch, all by the same recipe on the whole training set."""

    run: Context
    space: SearchSpace
    net: str
    place: Path

    def accuracy(self, widths: dict[str, int], label: str, seed: int | None = None) -> float:
        """Test accuracy in percent; the seed, by default the run's, decides initial weights and order of the images."""
        seed = self.run.seed if seed is None else seed
        model = initialize(self.space.network(widths).to_empty(device="cpu"), seed)
        recipe = self.run.recipe(self.run.config["final"])
        self.run.train(model, recipe, label, resume=self.run.unit.part(label), seed=seed, replay=True)
        return self.run.stage(label, model)


def gains(run: Context, trained: Trained, found: dict[str, dict[str, Any]]) -> None:
    """Every winner, read from the vector file, against uniform widths of its own cost, trained from the same seed."""
    differences: dict[str, float] = {}
    for label, one in found.items():
        widths = load_vector(trained.place.with_name(one["vector"]), trained.net, trained.space)
        searched = trained.accuracy(widths, f"searched {label}")
        uniform = trained.accuracy(one["control"]["widths"], f"uniform {label}")
        differences[label] = searched - uniform
        run.progress(f"{label}: searched {searched:.2f} %, uniform {uniform:.2f} %")
    run.measurements["gain"] = differences
    by_unit = {
        unit: [g for label, g in differences.items() if label.startswith(unit)] for unit in run.config["constraints"]
    }
    run.measurements["gaps"]["searched"] = by_unit["mac"]
    run.measurements["gaps"]["smallest_budget"] = by_unit["mac"][0] - by_unit["mac"][-1]
    if "latency" in by_unit:
        run.measurements["gaps"]["latency_over_mac"] = float(np.mean(by_unit["latency"]) - np.mean(by_unit["mac"]))
    trained.accuracy(trained.space.base, "full")
    last = {row["phase"]: row["train_accuracy"] for row in run.history}
    written, plain = last["generated"], last["full"]
    run.measurements["reach"] = {"PruningNet": written, "full": plain, "share": written / plain}
    run.measurements["gaps"]["half"] = 100 * (written / plain - 0.5)


def ranks(run: Context, trained: Trained, proxy: Proxy, found: dict[str, dict[str, Any]]) -> None:
    """Random vectors below the smallest budget, trained: does accuracy with generated weights rank them?

    The premise of a verdict, fixed beforehand: the standard deviation over random widths exceeds twice that over
    seeds of one network; else the task cannot tell widths apart.
    """
    label, first = next(iter(found.items()))
    control = random_search(
        trained.space, lambda genes: 0.0, first["constraint"], run.config["random_widths"], run.seed + 1
    )
    rows: list[dict[str, Any]] = []
    for number, one in enumerate(control.candidates):
        accuracy = trained.accuracy(trained.space.widths(one.genes), f"random {number}")
        rows.append({"genes": list(one.genes), "mac": one.cost, "proxy": proxy(one.genes), "trained": accuracy})
    again = [run.stages[f"uniform {label}"]["accuracy"]["last"]]
    for seed in range(1, run.config["reseeds"]):
        widths = first["control"]["widths"]
        again.append(trained.accuracy(widths, f"uniform again {seed}", run.seed + 1000 * seed))
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
