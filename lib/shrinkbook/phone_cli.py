"""``shrinkbook phone doctor | list | bench | clean``, and the phone's part of ``reproduce``."""

import argparse
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shrinkbook.evidence import store
from shrinkbook.measure.adb import STATES, Adb, Device, find_adb
from shrinkbook.measure.protocol import PhoneError

Say = Callable[[str], None]


def doctor(options: argparse.Namespace) -> int:
    """What is here to measure a phone with; with --phone, the state of that phone too."""
    found: list[tuple[str, str]] = []
    for package in ("ncnn", "pnnx"):
        here = importlib.util.find_spec(package) is not None
        found.append((package, "installed" if here else "MISSING: make phone-extra (networks cannot be exported)"))
    try:
        found.append(("adb", find_adb()))
    except PhoneError as error:
        found.append(("adb", f"MISSING: {error}"))
    found.append(("runner", _runner_line()))
    for name, what in found:
        print(f"{name:10} {what}")
    if "MISSING" in dict(found)["adb"]:
        return 1
    adb = Adb()
    for one in adb.devices():
        print(f"{'device':10} {one.serial}: {STATES.get(one.state, one.state)}")
    if options.phone is None:
        print("no phone was touched; --phone auto or --phone SERIAL looks at one")
        return int("MISSING" in str(found))
    from shrinkbook.measure import conditions
    from shrinkbook.measure.phone import FOLDER

    state = conditions.look(Device(adb, adb.choose(options.phone)), FOLDER)
    facts: dict[str, Any] = {
        "phone": state.key, "processor": f"{state.abi} {state.chip}".strip(), "android": state.android,
        "free": _megabytes(state.free_kb), "memory": _megabytes(state.available_kb),
        "battery": f"{state.level} %, {state.celsius} C, {'charging' if state.charging else 'not charging'}",
        "thermal": state.thermal, "big cores": state.big or "unknown or all alike",
        "energy": state.no_energy() or "can be measured",
    }  # fmt: skip
    for name, what in facts.items():
        print(f"{name:10} {'may not be read' if what is None else what}")
    obstacles = state.obstacles() + ([f"too warm: {state.warmth()}"] if state.warmth() else [])
    for line in state.remarks():
        print(f"{'remark':10} {line}")
    for line in obstacles:
        print(f"{'OBSTACLE':10} {line}")
    print("ready to measure" if not obstacles else "not ready")
    return int(bool(obstacles))


def listing(options: argparse.Namespace) -> int:
    """Every device adb sees, with what to do where one is not ready; none is touched."""
    seen = Adb().devices()
    for one in seen:
        state = "ready" if one.state == "device" else STATES.get(one.state, one.state)
        print(f"{one.serial:28} {one.model or '?':20} {state}")
    if not seen:
        print("no device; plug a phone in, switch on USB debugging and accept the dialog on it")
    return 0


def bench(options: argparse.Namespace) -> int:
    """Measure the networks of one experiment on a phone: table on the screen, run in the build folder."""
    from shrinkbook.experiments import catalogue, phone
    from shrinkbook.experiments.phone import tables

    name = options.experiment if "." in options.experiment else f"phone.{options.experiment}"
    if name not in catalogue.EXPERIMENTS or not name.startswith("phone."):
        known = ", ".join(one.removeprefix("phone.") for one in phone.EXPERIMENTS)
        raise ValueError(f"unknown experiment {options.experiment!r}; there are {known}")
    done, failed, _ = measured(options.phone, "standard", [name], print)
    for run in done:
        print(tables.one_line([run]))
        table = tables.layer_columns(run) if "layers" in run["measurements"] else tables.comparison([run])
        print(table.to_string())
    for line in failed:
        raise PhoneError(line)
    return 0


def clean(options: argparse.Namespace) -> int:
    """Remove everything the suite put on a phone."""
    from shrinkbook.measure import phone

    adb = Adb()
    print(phone.clean(Device(adb, adb.choose(options.phone))))
    return 0


def measured(
    wanted: str, profile: str, names: list[str] | None, say: Say
) -> tuple[list[dict[str, Any]], list[str], str]:
    """Measure a profile's networks on a phone, or only the named experiments; what is stored is not measured again.

    Returns:
        The runs, one line for each that failed, the phone's name in the settings of its runs.

    Raises:
        PhoneError: no phone to be had, or more time than allowed; nothing was done then.
    """
    from shrinkbook.experiments import catalogue, phone, run
    from shrinkbook.measure import export
    from shrinkbook.measure.blocks import MINUTES

    if reason := export.missing():
        raise PhoneError(reason)
    serial, where = phone.identify(wanted)
    names = names or [name for name, one in phone.EXPERIMENTS.items() if profile in one.configs]
    units = [phone.on_phone(catalogue.EXPERIMENTS, name, profile, where) for name in names]
    todo = [unit for unit in units if unit.find(store.runs_dir()) is None]
    minutes, most = (
        sum(phone.expected_minutes(unit.config) for unit in todo),
        float(os.environ.get("MINUTES") or MINUTES),
    )
    what = ", ".join(str(unit.config["net"]) for unit in todo) or "nothing, all is stored"
    say(f"on {where}: {what}; about {minutes:.0f} minutes and the transfers")
    if minutes > most:
        raise PhoneError(
            f"this takes about {minutes:.0f} minutes, the limit is {most:g}; MINUTES={minutes + 1:.0f} allows it"
        )
    os.environ[phone.SERIAL] = serial
    done, failed = [], []
    try:
        for unit in units:
            try:
                done.append(run.ensure(unit, "cpu", say))
            except ValueError as error:
                if getattr(error, "kind", "") == "limit":
                    say(f"left out: {error}")
                else:
                    failed.append(f"{unit.experiment.name}: {error}")
    finally:
        del os.environ[phone.SERIAL]
    return done, failed, where


def add(commands: Any) -> None:
    """Add ``phone`` and what it can do to the command line."""
    group = commands.add_parser("phone", help="measure a phone over adb", description=__doc__)
    actions = group.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, function: Callable[[argparse.Namespace], int], phone: bool | None) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = actions.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        added.set_defaults(function=function)
        if phone is not None:
            added.add_argument("--phone", required=phone, help="serial number, ADDRESS:PORT, or auto for the only one")
        return added

    action("doctor", doctor, phone=False)
    action("list", listing, phone=None)
    action("bench", bench, phone=True).add_argument("experiment", nargs="?", default="resnet20", help="resnet20, ...")
    action("clean", clean, phone=True)


def _runner_line() -> str:
    if given := os.environ.get("RUNNER"):
        return given if Path(given).exists() else f"MISSING: RUNNER={given} does not exist"
    built = sorted((store.build_dir() / "phone").glob("runner-*"))
    if built:
        return str(built[-1])
    compilers = [name for name in ("aarch64-linux-gnu-g++", os.environ.get("CXX") or "") if name and shutil.which(name)]
    if importlib.util.find_spec("ziglang"):
        compilers.append("zig")
    if compilers and shutil.which("cmake"):
        return f"not built yet; make phone-runner builds it with {compilers[0]} (about ten minutes, once)"
    return (
        "not built; make phone-runner needs cmake and g++-aarch64-linux-gnu or ziglang, or give a binary with RUNNER="
    )


def _megabytes(kilobytes: int | None) -> str | None:
    return None if kilobytes is None else f"{kilobytes / 1e3:.0f} MB"
