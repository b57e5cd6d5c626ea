"""The whole of the paper on one data set: train a PruningNet, search below several budgets, train what was found."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shrinkbook.evidence import store
from shrinkbook.experiments.liu2019.latency import seconds_of
from shrinkbook.experiments.liu2019.spaces import SPACES, downsampling, load_vector, save_vector
from shrinkbook.experiments.run import Context
from shrinkbook.experiments.steps import Proxy, rounded
from shrinkbook.measure.cost import cost
from shrinkbook.methods.metapruning import PruningNet
from shrinkbook.methods.metapruning_candidates import Constraint, Evolution, Search
from shrinkbook.methods.metapruning_search import Spread, evolve, random_search
from shrinkbook.methods.metapruning_space import Genes, MacCount, SearchSpace
from shrinkbook.nets import initialize
from shrinkbook.training.batches import split_validation
from shrinkbook.training.data import DataSet

TOP = 10  # vectors of a search whose widths are looked at


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
    proxies = {
        kind: Proxy(one, part, config["images"], run.device, config["threads"]) for kind, one in networks.items()
    }
    uniform_proxies(run, space, {k: dataclasses.replace(p, data=_tested(part, full)) for k, p in proxies.items()})
    run.measurements["tied"] = tied(run, space)
    found = searches(run, space, proxies["generated"], net, place)
    trained = Trained(run, space, net, place)
    gains(run, trained, found)
    ranks(run, trained, proxies["generated"], found)


def _tested(part: DataSet, full: DataSet) -> DataSet:
    """Training images of the one, test images of the other: for figures, nothing is chosen by them."""
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


def searches(run: Context, space: SearchSpace, proxy: Proxy, net: str, place: Path) -> dict[str, dict[str, Any]]:
    """Below the cost of each uniform network: the evolutionary search, for the first also a random one as long."""
    config = run.config
    found: dict[str, dict[str, Any]] = {}
    settings = Evolution(**config["evolution"])
    count = MacCount(space, SPACES[net].shape)
    costs: dict[str, Any] = {"mac": count}
    if "latency" in config["constraints"]:
        costs["latency"] = seconds_of(run, space, net)
    with spreading(proxy, config["workers"]) as spread:
        for unit in config["constraints"]:
            for ratio in config["uniform"]:
                label = f"{unit} {ratio:g}"
                nearest = min(range(len(space.ratios)), key=lambda gene: abs(space.ratios[gene] - ratio))  # noqa: B023
                uniform = (nearest,) * len(space.names)
                limit = Constraint(costs[unit], costs[unit](uniform), unit={"mac": "MAC", "latency": "seconds"}[unit])
                search = _resumed(place.with_suffix(f".{label}.json"), space, proxy, limit, settings, run.seed, spread)
                best = search.best
                vector = save_vector(place.with_suffix(f".{label}.widths.json"), net, space, best.genes)
                found[label] = {
                    "genes": list(best.genes), "widths": space.widths(best.genes), "uniform": list(uniform),
                    "cost": best.cost, "budget": limit.most, "mac": count(best.genes), "uniform mac": count(uniform),
                    "fitness": best.fitness, "uniform fitness": proxy(uniform), "progress": rounded(search.progress()),
                    "top": [list(one.genes) for one in search.top(TOP)], "evaluations": len(search.candidates),
                    "vector": vector.name,
                }  # fmt: skip
                if len(found) == 1:
                    control = random_search(space, proxy, limit, len(search.candidates), run.seed, settings, spread)
                    found[label]["random progress"] = rounded(control.progress())
                    run.measurements["gaps"]["evolution"] = best.fitness - control.best.fitness
                    found[label]["constraint"] = limit
                run.progress(f"{label}: {best.fitness:.1f} % after {len(search.candidates)} evaluations")
    run.measurements["gaps"]["budgets"] = [one["fitness"] - one["uniform fitness"] for one in found.values()]
    run.measurements["widths"] = {
        label: {"names": list(space.names), "ratios": rounded(_mean_ratios(space, one["top"])), "base": space.base}
        for label, one in found.items()
    }
    strided = downsampling(space)
    means = _mean_ratios(space, next(iter(found.values()))["top"])
    inside = [value for name, value in zip(space.names, means, strict=True) if name in strided]
    others = [value for name, value in zip(space.names, means, strict=True) if name not in strided]
    late = len(means) // 2
    run.measurements["gaps"]["downsampling"] = 100 * float(np.mean(inside) - np.mean(others))
    run.measurements["gaps"]["late"] = 100 * float(np.mean(means[late:]) - np.mean(means[:late]))
    run.measurements["search"] = {
        label: {key: value for key, value in one.items() if key != "constraint"} for label, one in found.items()
    }
    return found


def _mean_ratios(space: SearchSpace, vectors: Sequence[Sequence[int]]) -> list[float]:
    """Mean ratio of each free width."""
    return [float(np.mean([space.ratios[gene] for gene in column])) for column in zip(*vectors, strict=True)]


def _resumed(
    path: Path, space: SearchSpace, proxy: Proxy, limit: Constraint, settings: Evolution, seed: int, spread: Spread
) -> Search:
    """The search, continued from what its file holds and saved to it after every generation."""
    before = Search.restored(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def save(search: Search) -> None:
        store.write_text(path, json.dumps(search.plain()) + "\n")

    return evolve(space, proxy, limit, settings, seed, before, save, spread)


_PROXY: list[Proxy] = []


def _begin(proxy: Proxy) -> None:
    torch.set_num_threads(proxy.threads)
    _PROXY[:] = [proxy]


def _evaluated(genes: Genes) -> float:
    return _PROXY[0](genes)


@contextmanager
def spreading(proxy: Proxy, workers: int) -> Iterator[Spread]:
    """Evaluations on so many processes, each with the run's threads: the same numbers for any count."""
    if workers == 1:
        yield map
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(proxy,)) as pool:
        yield lambda _, vectors: pool.map(_evaluated, vectors)


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
        self.run.train(model, recipe, label, resume=self.run.unit.part(label), seed=seed)
        return self.run.stage(label, model)


def gains(run: Context, trained: Trained, found: dict[str, dict[str, Any]]) -> None:
    """Every winner against uniform widths at the same cost: read from the vector file, trained from the same seed."""
    differences: dict[str, float] = {}
    for label, one in found.items():
        widths = load_vector(trained.place.with_name(one["vector"]), trained.net, trained.space)
        searched = trained.accuracy(widths, f"searched {label}")
        uniform = trained.accuracy(trained.space.widths(one["uniform"]), f"uniform {label}")
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
    seeds of one of them; else the task cannot tell widths apart.
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
        widths = trained.space.widths(first["uniform"])
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
