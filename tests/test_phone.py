"""A measurement from end to end on the test device and on this host; blocks, ratios, states of phones, energy."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shrinkbook import cli, notebooks
from shrinkbook.evidence import claims, store
from shrinkbook.experiments import catalogue, phone, run, work
from shrinkbook.experiments.experiment import Unit
from shrinkbook.experiments.networks import NETS
from shrinkbook.experiments.phone import tables as pages
from shrinkbook.experiments.phone.subjects import named
from shrinkbook.measure import conditions, host, wheel_runner
from shrinkbook.measure.adb import Adb
from shrinkbook.measure.blocks import Policy, Subject, measure, pack, plan, ratio, realised, unpack
from shrinkbook.measure.cost import cost
from shrinkbook.measure.energy import gauge_watts
from shrinkbook.measure.export import export, missing
from shrinkbook.measure.host import Host, TorchHost
from shrinkbook.measure.protocol import Ask, Block, PhoneError, parse
from shrinkbook.nets import initialize

ASK = Ask(loops=3, seconds=0, at_most=2, warmup=1, warmup_seconds=0, calibrate=2, slack=10)
needs_extra = pytest.mark.skipif(bool(missing()), reason=missing() or "installed")


# the rule of a measurement, on a device that says what it is told


class Told:
    """A device whose runs take the given milliseconds, and whose clock falls when told."""

    is_phone = True

    def __init__(self, ms: dict[str, float], calibrations: Sequence[int] = ()) -> None:
        self.ms, self.calibrations, self.order = ms, list(calibrations), list[str]()
        self.random = np.random.default_rng(0)

    def describe(self) -> dict[str, str]:
        return {"name": "told", "engine": "none"}

    def prepare(self, subjects: Sequence[Subject]) -> None:
        pass

    def block(self, subject: Subject, precision: str, ask: Ask) -> Block:
        self.order.append(subject.name)
        speed = self.calibrations.pop(0) if self.calibrations else 100
        ns = (1e6 * self.ms[subject.name] * self.random.normal(1, 0.01, 20)).astype(int).tolist()
        return Block(ns, [speed], [speed], 0, {"affinity": "3"}, {"vm_hwm_kb": 7, "finite": True}, [], 1e-6)

    def energy(self, subject: Subject, precision: str, ask: Ask) -> tuple[float | None, str]:
        return None, "told so"


def told_subjects() -> list[Subject]:
    return [Subject(name, nn.Identity(), torch.zeros(1), mac) for name, mac in (("base", 400), ("small", 100))]


def test_ratios_are_of_blocks_side_by_side_in_random_order() -> None:
    device = Told({"base": 4.0, "small": 2.0})
    base, small = measure(device, told_subjects(), Policy(blocks=6), seed=1, say=lambda text: None)
    assert small["ratio"]["low"] < 2.0 < small["ratio"]["high"] and small["ratio"]["high"] < 2.1
    assert (small["mac_ratio"], round(small["realised"], 1)) == (4.0, 0.7)  # half the time of three quarters possible
    assert base["ratio"]["median"] == 1.0 and base["realised"] is None
    rounds = {tuple(device.order[i : i + 2]) for i in range(0, 12, 2)}
    assert rounds == {("base", "small"), ("small", "base")}
    assert small["energy"] == {"joule": None, "reason": "told so"} and small["is_phone"] and small["device"] == "phone"
    assert len(small["raw"]) == 6 and small["runs"] == 120
    assert np.median(unpack(small["raw"][0])) / 1e6 == pytest.approx(small["blocks"][0])
    again = measure(Told({"base": 4.0, "small": 2.0}), told_subjects(), Policy(blocks=6), seed=1, say=lambda text: None)
    assert again == [base, small]


def test_a_fallen_clock_is_cooled_down_and_the_block_done_again() -> None:
    waits: list[float] = []
    said: list[str] = []
    device = Told({"base": 4.0, "small": 2.0}, [100, 120, 101])
    rows = measure(device, told_subjects(), Policy(blocks=1), say=said.append, wait=waits.append)
    assert waits == [10.0] and "the clock fell by 20 %" in said[1] and len(device.order) == 3
    assert [row["throttled"] for row in rows] == [0, 0] and sum(row["redone"] for row in rows) == 1
    hot = Told({"base": 4.0, "small": 2.0}, [100, 120, 120, 120])
    rows = measure(hot, told_subjects(), Policy(blocks=1), say=said.append, wait=waits.append)
    assert sum(row["throttled"] for row in rows) == 1  # kept after two more tries, and marked


def test_every_block_is_held_against_the_best_clock_of_the_whole_measurement() -> None:
    waits: list[float] = []
    late = [120, 121, 100, 101]  # the clock was down from the start; only the second turn tells
    device = Told({"base": 4.0, "small": 2.0}, [*late, 102, 103])
    rows = measure(device, told_subjects(), Policy(blocks=2), say=lambda text: None, wait=waits.append)
    assert len(device.order) == 6 and sorted(device.order[:2]) == sorted(device.order[4:]) and waits == [10.0, 10.0]
    assert [(row["throttled"], row["redone"], len(row["raw"])) for row in rows] == [(0, 1, 2), (0, 1, 2)]
    here = Told({"base": 4.0, "small": 2.0}, late)
    rows = measure(here, told_subjects(), Policy(blocks=2, redo=0), say=lambda text: None, wait=waits.append)
    assert [row["throttled"] for row in rows] == [1, 1] and len(here.order) == 4 and len(waits) == 2
    sinking = Told({"base": 4.0, "small": 2.0}, [106, 104, 100, 100, 95, 96, 96, 96])
    rows = measure(sinking, told_subjects(), Policy(blocks=2), say=lambda text: None, wait=waits.append)
    assert sinking.order == ["small", "base", "base", "small", "small", "small", "base", "base"]
    assert [row["redone"] for row in rows] == [2, 2], "what is done again sets a clock for those judged before it"


def test_no_ratio_is_claimed_of_blocks_far_apart() -> None:
    device, told = Told({"base": 4.0, "small": 2.0}), told_subjects()
    steady = device.block

    def slower(subject: Subject, precision: str, ask: Ask) -> Block:
        block = steady(subject, precision, ask)
        late = subject.name == "small" and len(device.order) > 18
        return replace(block, ns=[ns * (1.7 if late else 1.0) for ns in block.ns])

    device.block = slower  # type: ignore[method-assign]
    base, small = measure(device, told, Policy(blocks=10), say=lambda text: None)
    assert small["ms"]["p90"] < 2 * small["ms"]["p10"], "one block in ten: the tenths do not see it"
    assert (small["ratio"], small["realised"]) == (None, None) and base["ratio"]["median"] == 1.0
    assert small["doubt"] == "blocks of small over 50 % apart"
    stored = {**small, "doubt": "", "ratio": {"median": 2.0, "low": 1.9, "high": 2.1}, "realised": 0.7}
    table = pages.comparison([{"measurements": {"rows": [base, stored]}}]).reset_index()
    assert list(table["times faster"]) == ["", "blocks of small over 50 % apart"] and table["saving realised"][1] == ""


def test_no_ratio_is_claimed_of_unsteady_times() -> None:
    device = Told({"base": 4.0, "small": 2.0})
    steady = device.block

    def disturbed(subject: Subject, precision: str, ask: Ask) -> Block:
        block = steady(subject, precision, ask)
        return replace(
            block, ns=[ns * (3 if i < 5 and subject.name == "small" else 1) for i, ns in enumerate(block.ns)]
        )

    device.block = disturbed  # type: ignore[method-assign]
    base, small = measure(device, told_subjects(), Policy(blocks=2), say=lambda text: None)
    assert (small["ratio"], small["realised"], small["doubt"]) == (None, None, "unsteady times of small")
    assert base["doubt"] == "" and base["ratio"]["median"] == 1.0
    table = pages.comparison([{"measurements": {"rows": [base, small]}}]).reset_index()
    assert list(table["times faster"]) == ["", "unsteady times of small"]


def test_the_interval_holds_what_runs_alone_would_not() -> None:
    random = np.random.default_rng(0)
    base = [level * random.normal(1, 0.001, 200) for level in (1.0, 1.3, 0.8, 1.1, 0.9)]  # blocks differ, runs hardly
    other = [np.full(200, 0.5)] * 5
    found = ratio(base, other, seed=0)
    assert found["low"] < 1.9 and found["high"] > 2.1 and found["median"] == pytest.approx(2.0, rel=0.01)
    paired = ratio(base, [block / 2 for block in base], seed=0)
    assert paired["high"] - paired["low"] < 0.01  # a drift that both share leaves the ratio alone
    with pytest.raises(ValueError, match="as many blocks"):
        ratio(base, other[:2], seed=0)


def test_small_pieces() -> None:
    assert unpack(pack([1, 10**10])).tolist() == [1.0, 1e10]
    assert realised(2.0, 4.0) == pytest.approx(2 / 3) and realised(0.5, 4.0) == pytest.approx(-4 / 3)
    with pytest.raises(ValueError, match="unknown precision 'int8'"):
        ASK.arguments({}, (1, 8, 8), "int8")


# the runner's lines

LINES = [
    {"event": "env", "affinity": "f0", "ncnn": "1"},
    {"event": "load", "ns": 5, "rss_kb_before": 1, "rss_kb_after": 2},
    {"event": "calibration", "when": "before", "ns": [3]},
    *[{"event": "run", "i": i, "t_ns": i, "ns": 10} for i in range(3)],
    {"event": "end", "runs": 3, "finite": True},
]


def text(lines: Sequence[object]) -> str:
    return "WARNING: linker: a word of the system\n" + "".join(json.dumps(line) + "\n" for line in lines)


def test_only_a_whole_story_counts() -> None:
    block = parse(text(LINES), replace(ASK, cpus="F0"), "net")
    assert (block.ns, block.before, block.end["rss_kb_after"]) == ([10, 10, 10], [3], 2)
    wrong = {
        "lost after 3 runs": LINES[:-1],
        "2 of 3 runs arrived": [*LINES[:4], *LINES[5:]],
        "only 3 of 4 runs": LINES,
        "gave up: no room": [*LINES[:2], {"event": "error", "what": "memory", "message": "no room"}],
        "ran on processors f0, asked for 3": LINES,
    }
    asks = {"only 3 of 4 runs": replace(ASK, loops=4), "ran on processors f0, asked for 3": replace(ASK, cpus="3")}
    for message, lines in wrong.items():
        with pytest.raises(PhoneError, match=message):
            parse(text(lines), asks.get(message, ASK), "net")
    cut = text(LINES)[:-10]
    with pytest.raises(PhoneError, match="lost after 3 runs") as caught:
        parse(cut, ASK, "net")
    assert caught.value.kind == "link"


# a phone's state

PHONE = {
    "props": "ro.product.manufacturer=Maker\nro.product.model=Eight\nro.product.cpu.abi=arm64-v8a\n",
    "battery": "  AC powered: false\n  USB powered: false\n  status: 3\n  level: 64\n  temperature: 312\n",
    "thermal": "IsStatusOverride: false\nThermal Status: 0\n",
    "saver": "0\n",
    "memory": "MemTotal: 8 kB\nMemAvailable:    4000000 kB\n",
    "cpus": "".join(
        f"/sys/devices/system/cpu/cpu{i} {clock}\n" for i, clock in enumerate([1800000] * 4 + [2400000] * 3 + [2800000])
    ),
    "gauge": "current_now=-350000\nvoltage_now=4100000\nstatus=Discharging\n",
    "space": "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/block/dm-50 100 50 7000000 5% /data\n",
}


def test_a_state_is_read_and_what_is_missing_stays_unknown() -> None:
    state = conditions.parse("SERIAL", PHONE)
    assert (state.big, state.level, state.celsius, state.charging, state.free_kb) == ("f0", 64, 31.2, False, 7000000)
    assert state.obstacles() == [] and state.warmth() == "" and state.no_energy() == ""
    assert "SERIAL" not in state.key and state.key.startswith("Maker Eight ")
    assert state.key != conditions.parse("OTHER", PHONE).key
    blind = conditions.parse("SERIAL", {"props": "ro.product.cpu.abi=arm64-v8a\n"})
    assert (blind.thermal, blind.saver, blind.big, blind.charging) == (None, None, "", None)
    assert blind.obstacles() == [] and "thermal status may not be read on this phone" in blind.remarks()
    assert blind.no_energy() == "the battery gauge may not be read"
    plugged = conditions.parse(
        "S", {**PHONE, "battery": PHONE["battery"].replace("USB powered: false", "USB powered: true")}
    )
    assert plugged.no_energy().startswith("the phone is charging")


def test_energy_of_a_battery_in_any_sign_and_unit() -> None:
    def samples(*amperes: float, sign: int = 1, unit: float = 1e6, volt: float = 4e6) -> list[dict[str, str]]:
        return [{"current": str(round(sign * unit * a)), "voltage": str(round(volt))} for a in amperes]

    idle, load = (0.1, 0.11, 0.1), (0.6, 0.61, 0.59)
    for sign in (1, -1):
        for unit, volt in ((1e6, 4e6), (1e3, 4e3)):
            watts, _ = gauge_watts(samples(*idle, sign=sign, unit=unit, volt=volt),
                                   samples(*load, sign=sign, unit=unit, volt=volt))  # fmt: skip
            assert watts == pytest.approx(4.0 * (0.6 - 0.31 / 3), rel=1e-3)
    assert gauge_watts(samples(*load), samples(*idle)) == (None, "the battery gauge does not follow the load")
    assert gauge_watts(samples(0.3, 0.3), samples(0.3, 0.3))[0] is None
    assert (
        gauge_watts([{"current": None, "voltage": "4000000"}], samples(*load))[1]
        == "the battery gauge could not be read"
    )
    assert "is none of a phone's battery" in gauge_watts(samples(*idle, volt=1e7), samples(*load, volt=1e7))[1]


# end to end


def subject(folder: Path) -> Subject:
    net = initialize(NETS["digits ResNet"](), 0).eval()
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = export(net, image, "digits ResNet", folder)
    return Subject("digits ResNet", net, image, found.mac, found)


SMALL = {"blocks": 1, "seconds": 0.0, "warmup_seconds": 0.0, "warmup": 1, "loops": 3}


@needs_extra
def test_host_and_plain_torch_give_the_same_row(tmp_path: Path) -> None:
    one = subject(tmp_path)
    with Host() as host:
        (row,) = measure(host, [one], Policy(blocks=1, ask=ASK, redo=0), say=lambda text: None)
    with TorchHost() as plain:
        (other,) = measure(plain, [one], Policy(blocks=1, ask=ASK, redo=0), say=lambda text: None)
    assert row.keys() == other.keys()
    assert (row["device"], row["is_phone"], row["output_error"] < 1e-5) == ("host", False, True)
    assert "ncnn" in row["where"]["engine"] and "PyTorch" in other["where"]["engine"]
    with pytest.raises(ValueError, match="one table, one device"):
        pages.comparison([{"measurements": {"rows": [row, other]}}])
    with pytest.raises(ValueError, match="one table, one device"):
        pages.lookup_table([row], {"conv1": {"8x1": other}})
    table = pages.lookup_table([row], {"conv1": {"8x1": row, "4x1": row}})
    assert table["layers"]["conv1"]["4x1"] == table["rest"] == pytest.approx(row["ms"]["median"] / 1000)
    assert "this host" in table["where"] and json.loads(json.dumps(table)) == table


@needs_extra
def test_energy_is_that_of_the_runs_it_is_divided_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, joules, prices = subject(tmp_path), [0.0], {"load": 100.0, "calibrate": 50.0, "infer": 2.0}

    def costing(name: str) -> Callable[..., Any]:
        plain = getattr(wheel_runner, name)

        def call(*words: Any) -> Any:
            joules[0] += prices[name]
            return plain(*words)

        return call

    def fake(device: str) -> tuple[Callable[[], float], str]:
        started = joules[0]
        return lambda: joules[0] - started, ""

    def in_this_process(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, wheel_runner.main(command[3:]), capsys.readouterr().out, "")

    for name in prices:
        monkeypatch.setattr(wheel_runner, name, costing(name))
    monkeypatch.setattr(host, "meter", fake)
    monkeypatch.setattr(wheel_runner, "meter", fake)
    monkeypatch.setattr(subprocess, "run", in_this_process)
    with Host() as here:
        assert here.energy(one, "fp32", ASK) == (2.0, "")
        prices["infer"] = 0.0
        assert here.energy(one, "fp32", ASK) == (None, "the energy meter stood still while the work ran")
        monkeypatch.setattr(wheel_runner, "meter", lambda device: (None, "none there"))
        assert here.energy(one, "fp32", ASK) == (None, "this runner does not read the processor's energy meter")


def test_no_energy_no_ratio_of_energies() -> None:
    device = Told({"AlexNet": 4.0, "AlexNet*": 2.0})
    pair = [Subject(name, nn.Identity(), torch.zeros(1), 100) for name in device.ms]
    base, small = measure(device, pair, Policy(blocks=2), say=lambda text: None)

    def shown(before: float | None, after: float | None) -> list[str]:
        base["energy"], small["energy"] = ({"joule": one, "reason": "" if one else "why"} for one in (before, after))
        column = pages.printed_columns([{"measurements": {"rows": [base, small]}}])["this phone, mJ"]
        return [column[name] for name in ("AlexNet", "AlexNet*", "AlexNet change")]

    assert shown(0.3, 0.1) == ["300.0", "100.0", "x3.00"]
    assert shown(None, 0.1) == ["why", "100.0", "why"] and shown(0.3, None) == ["300.0", "why", "why"]
    assert shown(0.3, 0.0)[2] == "why"  # as an earlier version stored it


@needs_extra
def test_pinning_is_verified_where_the_system_can(tmp_path: Path) -> None:
    one = subject(tmp_path)
    mask = f"{1 << min(os.sched_getaffinity(0)):x}"
    with Host() as host:
        assert host.block(one, "fp32", replace(ASK, cpus=mask)).env["affinity"] == mask
        with pytest.raises(PhoneError, match="--cpus"):
            host.block(one, "fp32", replace(ASK, cpus="800000000000"))


@needs_extra
def test_quick_measures_this_host(scratch: Path) -> None:
    unit = run.unit(catalogue.EXPERIMENTS, "phone.resnet20", "quick", 0, SMALL)
    done = run.ensure(unit)
    assert "No phone: 2 networks measured on this host" in pages.one_line([done])
    table = pages.comparison([done]).reset_index()
    assert list(table["device"]) == ["host", "host"] and table["times faster"][1]
    assert "\x89PNG" in pages.forms_picture([done])._repr_png_()[:4].decode("latin-1")
    columns = pages.printed_columns([done])
    assert columns.shape[0] == 12 and "this host, ms" in columns


def test_the_record_has_host_rows_and_no_others() -> None:
    files = [json.loads(path.read_text()) for path in store.record_dir().glob("phone.*/*.json")]
    assert {run["config"]["where"] for run in files} == {"host"}
    assert not any(row["is_phone"] for run in files for row in run["measurements"].get("rows", []))
    found = phone.recorded()
    assert pages.one_line(found.values()).startswith("No phone: ")
    columns = pages.printed_columns([found[f"phone.{key}"] for key in ("alexnet", "vgg_s", "googlenet", "vgg16")])
    assert all(columns["this host, ms"])


def test_minutes_are_expected_as_the_plan_says_them() -> None:
    for name, profile in (("phone.resnet20", "quick"), ("phone.alexnet_layers", "standard")):
        config = catalogue.EXPERIMENTS[name].configs[profile]
        ask = Ask(seconds=config["seconds"], warmup_seconds=config["warmup_seconds"])
        told = plan(told_subjects()[:1] * config["networks"], Policy(blocks=config["blocks"], ask=ask, minutes=60))
        assert f"about {phone.expected_minutes(config):.1f} minutes" in told


def test_an_experiment_can_build_on_the_runs_of_a_phone(scratch: Path) -> None:
    name, experiments = "liu2019.resnet20_lookup", catalogue.EXPERIMENTS
    plain, alone = (run.unit(experiments, one, "standard", 0) for one in (name, "li2017.vgg16"))
    with pytest.raises(ValueError, match="phone.lookup of 'a phone' is not here: make reproduce PHONE=... PROFILE=sta"):
        phone.parents_on(experiments, plain, "a phone")
    with pytest.raises(ValueError, match="li2017.vgg16 builds on no run of a phone: leave --phone out"):
        phone.parents_on(experiments, alone, "a phone")
    for parent in experiments[name].parents:
        one = phone.on_phone(experiments, parent, "standard", "a phone")
        store.write({**phone.recorded()[parent], "run_id": one.run_id, "config": dict(one.config)}, store.runs_dir())
    parents = phone.parents_on(experiments, plain, "a phone")
    ours = run.unit(experiments, name, "standard", 0, parents=parents)
    assert [parent.config["where"] for parent in ours.parents] == ["a phone"] * 2
    assert [parent.config["where"] for parent in plain.parents] == ["host"] * 2
    assert ours.run_id != plain.run_id


@needs_extra
def test_a_look_up_table_has_every_layer_at_every_width(scratch: Path) -> None:
    budget = {**SMALL, "network": "digits ResNet", "shape": [1, 8, 8], "shares": [0.5, 1.0]}
    table = run.ensure(run.unit(catalogue.EXPERIMENTS, "phone.lookup", "standard", 0, budget))["measurements"]["table"]
    assert set(table) == {"where", "rest", "layers"} and table["rest"] > 0
    assert len(table["layers"]) == 18  # both convolutions of nine blocks
    assert set(table["layers"]["layer2.0.conv1"]) == {"8x8", "16x8"}  # output x input
    assert set(table["layers"]["layer2.0.conv2"]) == {"16x8", "16x16"}
    assert table["layers"]["layer1.0.conv1"] == table["layers"]["layer1.2.conv1"]  # alike: measured once


@needs_extra
def test_lccls_survive_the_export_and_cost_time_on_paper_too(scratch: Path) -> None:
    done = run.ensure(run.unit(catalogue.EXPERIMENTS, "phone.lccl", "standard", 0, SMALL))
    plain, gated = done["measurements"]["rows"]
    assert gated["mac_ratio"] < 1 and gated["output_error"] < 1e-4 and gated["realised"] is None


def test_mobilenets_are_the_printed_baselines() -> None:
    table = claims.load("liu2019").tables["table1"]
    printed = [cell.number for cell in table.cells if cell.column == "uniform_flops"]
    counted = [cost(model, shape).mac / 1e6 for model, shape in named("MobileNetV1", 0).values()]
    assert len(counted) == phone.SETS["mobilenet_v1"][1]
    assert counted == pytest.approx(printed, abs=1)
    model, shape = named("MobileNetV1", 0)["MobileNetV1, width 0.25"]
    with torch.no_grad():
        one, other = model(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
    assert (one - other).abs().max() > 0.1 * one.abs().max()  # an image makes a difference, or no check could fail


def test_without_the_extra_plain_torch_stands_in(scratch: Path) -> None:
    unit = run.unit(catalogue.EXPERIMENTS, "phone.resnet20", "quick", 0, {**SMALL, "engine": "torch"})
    assert "this host, PyTorch" in pages.one_line([run.ensure(unit)])


def test_a_plan_says_what_the_extra_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    assert catalogue.left_out(None, "quick", "cpu") == {"phone.resnet20": "needs `make phone-extra`"}
    assert "phone.resnet20" not in catalogue.left_out(["li2017"], "quick", "cpu")


@needs_extra
def test_reproduce_on_a_phone(
    adb_server: None, scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Export, push, run, parse, table, by the command line and the real adb client; a failure costs nothing."""
    from adb_device import AdbDevice, wheel_runner

    device = AdbDevice(scratch / "device")
    monkeypatch.setenv("RUNNER", str(wheel_runner(scratch)))
    small = phone.EXPERIMENTS["phone.resnet20"]
    small = replace(small, configs={profile: {**config, **SMALL} for profile, config in small.configs.items()})
    monkeypatch.setitem(catalogue.EXPERIMENTS, "phone.resnet20", small)
    monkeypatch.setattr(phone, "EXPERIMENTS", {"phone.resnet20": small})
    monkeypatch.setattr(catalogue, "PAPERS", {"li2017": {"li2017.cost": catalogue.EXPERIMENTS["li2017.cost"]}})
    monkeypatch.setattr(work, "compute", lambda units, *_: {})  # this host's own runs have tests of their own
    executed: dict[str, dict[str, object]] = {}
    monkeypatch.setattr(notebooks, "execute", lambda source, _, profile, given: executed.update({source.stem: given}))
    on_phone = phone.on_phone

    def quickly(*arguments: object) -> Unit:
        unit = on_phone(*arguments)  # type: ignore[arg-type]
        return replace(unit, config={**unit.config, "warmup_seconds": 0.0})

    monkeypatch.setattr(phone, "on_phone", quickly)
    monkeypatch.setattr(phone.measuring, "COOL", 0.0)
    try:
        assert cli.main(["phone", "bench", "--phone", device.serial]) == 0
        said = capsys.readouterr().out
        assert "on Test Loopback" in said and "ResNet-20 (1.1 MB)" in said
        assert "2 networks measured on a phone: Test Loopback" in said and "fp16" in said
        (path,) = (store.runs_dir() / "phone.resnet20").glob("*.json")
        found = store.read(path)
        rows = found["measurements"]["rows"]
        assert all(row["is_phone"] and row["output_error"] < 5e-2 for row in rows) and len(rows) == 4
        assert rows[0]["energy"]["reason"] == "the battery gauge may not be read"
        assert device.serial not in path.read_text()
        before = path.read_bytes()
        path.rename(scratch / "kept.json")
        device.faults.cut_output, device.faults.times = 300, 99
        assert cli.main(["phone", "bench", "--phone", device.serial]) == 2
        assert list((store.runs_dir() / "phone.resnet20").glob("*")) == []
        (scratch / "kept.json").rename(path)
        assert cli.main(["phone", "bench", "--phone", device.serial]) == 0  # stored: nothing is measured again
        assert path.read_bytes() == before
        assert cli.main(["reproduce", "--phone", device.serial, "--jobs", "1"]) == 0
        assert executed["09_mobile_latency"] == {"where": rows[0]["where"]["name"]}
        assert "nothing, all is stored" in capsys.readouterr().out  # the same budget in quick and standard
        assert cli.main(["phone", "doctor", "--phone", device.serial]) == 0
        assert "ready to measure" in capsys.readouterr().out
        assert cli.main(["phone", "clean", "--phone", device.serial]) == 0
        assert device.files() == []
    finally:
        device.close()
        Adb()("disconnect")


def test_mistakes_on_the_command_line(adb_server: None, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in {
        ("phone", "bench", "--phone", "auto", "vgg19"): "unknown experiment 'vgg19'; there are resnet20,",
        ("phone", "bench"): "the following arguments are required: --phone",
        ("phone", "clean", "--phone", "auto"): "no phone: plug it in",
        ("phone",): "the following arguments are required: ACTION",
    }.items():
        assert cli.main(words) == 2
        errors = capsys.readouterr().err
        assert message in errors and errors.count("\n") == 1, errors


def test_the_serial_number_reaches_make_as_a_variable_alone(tmp_path: Path) -> None:
    evil = f"x'; touch {tmp_path}/trap; \"$(touch {tmp_path}/trap)"
    command = ["make", "-o", ".venv/.ready", "-n", "reproduce", f"PHONE={evil.replace('$', '$$')}"]
    done = subprocess.run(command, cwd=store.root(), capture_output=True, text=True)
    assert '--phone "$PHONE"' in done.stdout and "trap" not in done.stdout, done.stderr


def test_measure_needs_no_torch_to_list_phones() -> None:
    code = "import sys; from shrinkbook import phone_cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
