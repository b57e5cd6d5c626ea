"""Runs that measure: on this host by default, on a phone where the settings name one."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from shrinkbook.evidence import store
from shrinkbook.experiments.experiment import Context, Unit
from shrinkbook.experiments.kim2016.cost import ORIGINALS
from shrinkbook.experiments.phone.subjects import kim2016, named, part, subject
from shrinkbook.experiments.run import stored_runs, unit
from shrinkbook.experiments.steps import layer_inputs
from shrinkbook.measure import conditions, export, runner_build
from shrinkbook.measure.adb import Adb, Device
from shrinkbook.measure.blocks import MEGABYTES, MINUTES, OVERHEAD, Policy, Target, measure
from shrinkbook.measure.host import Host, TorchHost
from shrinkbook.measure.phone import FOLDER, Phone
from shrinkbook.measure.protocol import Ask, PhoneError

SERIAL = "SHRINKBOOK_PHONE"
"""Environment variable with the serial number, which never enters a file."""
COOL = 10.0  # seconds of rest after a block in which the clock fell
LIMITS = {"minutes": MINUTES, "megabytes": MEGABYTES}


def engine_here() -> str:
    """``ncnn`` where the extra ``phone`` is installed, else ``torch``: plain PyTorch stands in on this host."""
    return "torch" if export.missing() else "ncnn"


def identify(wanted: str) -> tuple[str, str]:
    """Choose a phone: its serial number, and the name that its runs carry.

    Raises:
        PhoneError: none, several, not ready.
    """
    adb = Adb()
    serial = adb.choose(wanted)
    return serial, conditions.look(Device(adb, serial), FOLDER).key


def on_phone(experiments: Mapping[str, Any], name: str, profile: str, where: str) -> Unit:
    """The run of an experiment on a phone of that name: with fp16 as a second row, and a longer warm-up."""
    changes = {"where": where, "precisions": ["fp32", "fp16"], "warmup_seconds": 1.0}
    return unit(experiments, name, profile, 0, changes)


def stored(experiments: Mapping[str, Any], profile: str, where: str) -> dict[str, dict[str, Any]]:
    """Runs of a phone that this machine holds, by experiment; nothing is measured."""
    wanted = [
        on_phone(experiments, name, profile, where)
        for name, one in experiments.items()
        if name.startswith("phone.") and profile in one.configs
    ]
    return {run["experiment"]: run for run in stored_runs(wanted, store.runs_dir())}


def parents_on(experiments: Mapping[str, Any], wanted: Unit, where: str) -> dict[str, Unit]:
    """The parents of a run that measure, as a phone of that name measured them.

    Raises:
        ValueError: it has no such parent, or the phone's runs are not here.
    """
    names = [parent.experiment.name for parent in wanted.parents if parent.experiment.name.startswith("phone.")]
    if not names:
        raise ValueError(f"{wanted.experiment.name} builds on no run of a phone: leave --phone out")
    found = {name: on_phone(experiments, name, wanted.profile, where) for name in names}
    for name, one in found.items():
        if one.find(store.runs_dir()) is None:
            measure = f"make reproduce PHONE=... PROFILE={wanted.profile} measures it"
            raise ValueError(f"{name} of {where!r} is not here: {measure}")
    return found


def expected_minutes(config: Mapping[str, Any]) -> float:
    """About how long a run keeps a phone busy, transfers not counted."""
    each = config["seconds"] + config["warmup_seconds"] + OVERHEAD
    return config["networks"] * len(config["precisions"]) * config["blocks"] * each / 60


def networks(run: Context) -> None:
    """Measure the networks of a set in turns; ratios are to the first one."""
    with target_of(run) as target:
        exported = run.config["engine"] == "ncnn"
        subjects = [subject(name, *one, run.seed, exported) for name, one in named(run.config["net"], run.seed).items()]
        run.measurements["rows"] = measure(target, subjects, policy(run), run.seed, run.progress)


def layer_by_layer(run: Context) -> None:
    """Table 2 of Kim et al. 2016: each decomposed layer, its chain and the factors, on what they read there."""
    net = run.config["net"]
    model, smaller, report = kim2016(net, run.seed)
    side = ORIGINALS[net][1]
    image = subject(net, model, (3, side, side), run.seed, exported=False).example
    seen = {"": layer_inputs(model, image), "*": layer_inputs(smaller, image)}
    rows = run.measurements.setdefault("layers", {})
    with target_of(run) as target:
        for row in report.layers:
            if not row.ranks:
                continue
            parts = {row.name: part(model.get_submodule(row.name), seen[""][row.name])}
            parts[f"{row.name}*"] = part(smaller.get_submodule(row.name), seen["*"][row.name])
            for factor in row.parts:
                parts[factor.name] = part(smaller.get_submodule(factor.name), seen["*"][factor.name])
            exported = run.config["engine"] == "ncnn"
            subjects = [subject(name, *one, run.seed, exported) for name, one in parts.items()]
            rows[row.name] = measure(target, subjects, policy(run), run.seed, run.progress)


def policy(run: Context) -> Policy:
    """How much the settings measure; the limits are those of the environment, or the suite's own."""
    config = run.config
    ask = Ask(
        loops=config["loops"], seconds=config["seconds"], warmup=config["warmup"],
        warmup_seconds=config["warmup_seconds"], threads=config["threads"],
    )  # fmt: skip
    limits = {name: float(os.environ.get(name.upper()) or most) for name, most in LIMITS.items()}
    redo = 2 if config["where"] != "host" else 0  # this host has other work; its unsteady blocks are marked, not redone
    return Policy(
        blocks=config["blocks"], ask=ask, precisions=tuple(config["precisions"]), redo=redo, cool=COOL, **limits
    )


def target_of(run: Context) -> AbstractContextManager[Target]:
    """The device that the settings name.

    Raises:
        PhoneError: a phone that was not asked for, or another one than before.
    """
    if run.config["where"] == "host":
        return TorchHost() if run.config["engine"] == "torch" else Host()
    serial = os.environ.get(SERIAL, "")
    if not serial:
        raise PhoneError("a phone is measured only by make reproduce PHONE=..., or shrinkbook phone bench --phone ...")
    device = Device(Adb(), serial)
    state = conditions.look(device, FOLDER)
    if state.key != run.config["where"]:
        raise PhoneError(f"this is {state.key}, the run is of {run.config['where']}; start again")
    return Phone(device, program(state), run.progress)


def program(state: conditions.State) -> Path:
    """The runner for a phone, built if need be.

    Raises:
        PhoneError: its processor is none that the runner is built for.
    """
    machine = conditions.ABIS.get(state.abi)
    if machine is None:
        raise PhoneError("; ".join(state.obstacles()))
    return runner_build.runner(machine, store.build_dir() / "phone")
