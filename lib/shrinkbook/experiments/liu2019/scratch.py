"""Networks of chosen widths trained from scratch, all by one recipe: winners, uniform widths, random ones, seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.liu2019.spaces import SPACES, load_vector
from shrinkbook.experiments.liu2019.spread import train_ahead
from shrinkbook.methods.metapruning_space import Genes, MacCount, SearchSpace
from shrinkbook.nets import initialize


@dataclass(frozen=True)
class Planned:
    """One network: its widths, and the seed that decides initial weights and order of the images."""

    widths: Mapping[str, int]
    seed: int


def planned(
    run: Context, space: SearchSpace, found: Mapping[str, Mapping[str, Any]], drawn: Sequence[Genes], place: Path
) -> dict[str, Planned]:
    """By label: every winner, read from its vector file, before the uniform network of its own cost; the full network;
    random vectors; the first winner's uniform network again from other seeds."""
    widths: dict[str, Mapping[str, int]] = {}
    for label, one in found.items():
        widths[f"searched {label}"] = load_vector(place.with_name(one["vector"]), run.config["net"], space)
        widths[f"uniform {label}"] = one["control"]["widths"]
    widths["full"] = space.base
    widths |= {f"random {number}": space.widths(genes) for number, genes in enumerate(drawn)}
    networks = {label: Planned(one, run.seed) for label, one in widths.items()}
    again = next(iter(found.values()))["control"]["widths"]
    for seed in range(1, run.config["reseeds"]):
        networks[f"uniform again {seed}"] = Planned(again, run.seed + 1000 * seed)
    return networks


def accuracies(run: Context, space: SearchSpace, networks: Mapping[str, Planned]) -> dict[str, float]:
    """Test accuracy in percent of every network, trained on the whole training set."""
    mac = MacCount(space, SPACES[run.config["net"]].shape)
    train_ahead(run, _trained, dict(sorted(networks.items(), key=lambda one: -mac.of(one[1].widths))))
    found = {}
    for label, one in networks.items():
        found[label] = run.stage(label, _train(run, space, label, one))
        run.progress(f"{label}: {found[label]:.2f} % of the test images")
    return found


def _trained(run: Context, label: str, one: Planned) -> None:
    run.load_data()
    _train(run, SPACES[run.config["net"]].space(), label, one)


def _train(run: Context, space: SearchSpace, label: str, one: Planned) -> nn.Module:
    model = initialize(space.network(one.widths).to_empty(device="cpu"), one.seed)
    recipe = run.recipe(run.config["final"])
    return run.train(model, recipe, label, resume=run.unit.part(label), seed=one.seed, replay=True)
