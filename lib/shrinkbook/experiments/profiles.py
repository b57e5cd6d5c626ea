"""The three budgets. A profile fixes threads, seeds and device, and with them everything a result may depend on."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

AVX2_PINS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2,STRICT"}
"""Instruction set of `quick`: without it, small-data accuracies differ by points between processors."""

MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""Bytes up to which glibc keeps the memory that tensors leave, instead of fetching fresh pages for every batch: the
same numbers, and with large batches far sooner. Other C libraries do not read them."""

PROCESSES = "SHRINKBOOK_JOBS"
"""How many processes one run is spread over where its parts do not wait for one another (evaluations of a search,
networks trained from scratch); `shrinkbook run --jobs` sets it. No result, and so no run's identity, depends on it."""


@dataclass(frozen=True)
class Profile:
    """One budget.

    Args:
        threads: threads of one process; part of a run's identity, since sums depend on it.
        seeds: how many seeds every trained experiment gets.
        device: ``cpu``, or ``auto`` for a GPU where there is one.
        environment: set before Python starts.
        note: one line for the person who chooses.
    """

    name: str
    threads: int
    seeds: int
    device: str
    note: str
    environment: Mapping[str, str] = field(default_factory=dict)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "quick",
            threads=1,
            seeds=5,
            device="cpu",
            note="embedded digits, full-size networks only where nothing is trained; two CPU cores, minutes",
            environment=AVX2_PINS,
        ),
        Profile(
            "standard",
            threads=2,
            seeds=5,
            device="auto",
            note="MNIST and CIFAR at the papers' recipes or at named shorter budgets; one GPU, hours",
        ),
        Profile(
            "paper",
            threads=8,
            seeds=5,
            device="auto",
            note="ImageNet too where a paper used it; GPUs, days; prints its cost and needs CONFIRM=1",
        ),
    )
}


def profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; there are {', '.join(PROFILES)}")
    return PROFILES[name]


def environment(name: str) -> dict[str, str]:
    """Variables a process of this profile is started with."""
    return {**MEMORY, **_pins(name)}


def pinned(name: str) -> bool:
    """Whether this process was started as the profile demands; results are comparable with the record only then."""
    return all(os.environ.get(key) == value for key, value in _pins(name).items())


def _pins(name: str) -> dict[str, str]:
    """The variables that results depend on."""
    chosen = profile(name)
    threads = {key: str(chosen.threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**chosen.environment, **threads}
