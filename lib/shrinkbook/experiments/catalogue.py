"""Every paper's experiments in one place, and those of no paper: seven papers, seven imports."""

from collections.abc import Sequence

from shrinkbook.experiments import (
    chen2019,
    dong2017,
    head_to_head,
    kim2016,
    li2017,
    liu2019,
    peng2019,
    phone,
    profiles,
    son2018,
)
from shrinkbook.experiments.experiment import Experiment, Unit
from shrinkbook.experiments.run import obstacle, offered, seeds_of, unit

PAPERS: dict[str, dict[str, Experiment]] = {
    "li2017": li2017.EXPERIMENTS,
    "son2018": son2018.EXPERIMENTS,
    "kim2016": kim2016.EXPERIMENTS,
    "dong2017": dong2017.EXPERIMENTS,
    "liu2019": liu2019.EXPERIMENTS,
    "chen2019": chen2019.EXPERIMENTS,
    "peng2019": peng2019.EXPERIMENTS,
}
NOTEBOOKS = {
    "li2017": "01_filter_pruning",
    "son2018": "02_kernel_clustering",
    "kim2016": "03_tucker_vbmf",
    "dong2017": "04_lccl",
    "liu2019": "05_metapruning",
    "chen2019": "06_dafl",
    "peng2019": "07_correlation_congruence",
}
OTHERS: dict[str, dict[str, Experiment]] = {  # no paper's: they have no claims of their own
    "head_to_head": head_to_head.EXPERIMENTS,
    "phone": phone.EXPERIMENTS,
}
EXPERIMENTS: dict[str, Experiment] = {
    name: one for group in [*PAPERS.values(), *OTHERS.values()] for name, one in group.items()
}


def papers(wanted: Sequence[str] | None = None) -> list[str]:
    """The papers asked for, or all.

    Raises:
        ValueError: a paper that is not in the suite.
    """
    for key in wanted or ():
        if key not in PAPERS:
            raise ValueError(f"unknown paper {key!r}; there are {', '.join(PAPERS)}")
    return list(wanted or PAPERS)


def units(
    wanted: Sequence[str] | None, profile: str, seeds: Sequence[int] | None = None, device: str | None = None
) -> list[Unit]:
    """Every run of the papers in a profile, parents before children.

    Args:
        wanted: keys of papers; without any, all of them and what no paper owns.
        device: ``cpu`` or ``cuda`` of this machine, without what it cannot run (see :func:`obstacle`); None for all.

    Raises:
        ValueError: an unknown paper or profile.
    """
    profiles.profile(profile)
    chosen = _experiments(wanted)
    return offered(
        unit(EXPERIMENTS, experiment.name, profile, seed)
        for experiment in chosen
        if profile in experiment.configs and (device is None or not obstacle(experiment, device))
        for seed in seeds_of(experiment, profile, seeds)
    )


def left_out(wanted: Sequence[str] | None, profile: str, device: str) -> dict[str, str]:
    """Experiments of the profile that this machine cannot run, and why."""
    found = {e.name: obstacle(e, device) for e in _experiments(wanted) if profile in e.configs}
    return {name: why for name, why in found.items() if why}


def _experiments(wanted: Sequence[str] | None) -> list[Experiment]:
    chosen = [experiment for key in papers(wanted) for experiment in PAPERS[key].values()]
    return chosen if wanted else [*chosen, *(one for group in OTHERS.values() for one in group.values())]
