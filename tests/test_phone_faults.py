"""Everything that goes wrong between here and a phone: the message a person sees, and nothing left behind."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shrinkbook.experiments.networks import NETS
from shrinkbook.measure import adb as adb_module
from shrinkbook.measure.adb import Adb, Device
from shrinkbook.measure.blocks import Policy, Subject, measure, plan
from shrinkbook.measure.export import Exported, export, missing
from shrinkbook.measure.phone import Phone, clean
from shrinkbook.measure.protocol import Ask, PhoneError
from shrinkbook.nets import initialize

if reason := missing():
    pytest.skip(reason, allow_module_level=True)

from adb_device import AdbDevice, wait_until, wheel_runner  # noqa: E402

ASK = Ask(loops=3, seconds=0, at_most=2, warmup=1, warmup_seconds=0, calibrate=2, slack=2)
POLICY = Policy(blocks=1, ask=ASK, redo=0)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A small network with its files."""
    net = initialize(NETS["digits ResNet"](), 0).eval()
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    exported = export(net, image, "digits ResNet", tmp_path_factory.mktemp("models"))
    return Subject("digits ResNet", net, image, exported.mac, exported)


@dataclass
class Bench:
    """A test device, what the driver said, and how to measure on it."""

    device: AdbDevice
    said: list[str]
    folder: Path

    def connected(self) -> Device:
        adb = Adb()
        return Device(adb, adb.choose(self.device.serial))

    def phone(self, wait: Callable[[float], None] | None = None) -> Phone:
        more = {} if wait is None else {"wait": wait}
        return Phone(self.connected(), wheel_runner(self.folder), self.said.append, **more)  # type: ignore[arg-type]

    def measure(self, *subjects: Subject, wait: Callable[[float], None] | None = None) -> list[dict]:
        with self.phone(wait) as phone:
            return measure(phone, subjects, POLICY, say=self.said.append)

    def message(self, subject: Subject, wait: Callable[[float], None] | None = None) -> str:
        """What the user reads when measuring fails; nothing may stay behind on the device."""
        with pytest.raises(PhoneError) as caught:
            self.measure(subject, wait=wait)
        assert "\n" not in str(caught.value)
        self.nothing_left()
        return str(caught.value)

    def nothing_left(self) -> None:
        assert wait_until(lambda: not self.device.running())
        assert not [name for name in self.device.files() if "run-" in name or name.endswith(".part")]


@pytest.fixture
def bench(adb_server: None, tmp_path: Path) -> Iterator[Bench]:
    device = AdbDevice(tmp_path / "device")
    yield Bench(device, [], tmp_path)
    device.close()
    Adb()("disconnect")


# before anything is measured


def test_no_adb_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("ADB", raising=False)
    monkeypatch.delenv("ANDROID_HOME", raising=False)
    monkeypatch.setattr(adb_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PhoneError, match="adb not found: apt install adb, or make phone-extra"):
        adb_module.find_adb()
    monkeypatch.setenv("ADB", "/no/such/adb")
    with pytest.raises(PhoneError, match="ADB=/no/such/adb is not a program"):
        adb_module.find_adb()


def test_no_phone_and_an_unknown_one(adb_server: None) -> None:
    with pytest.raises(PhoneError, match="no phone: plug it in, switch on USB debugging"):
        Adb().choose("auto")
    with pytest.raises(PhoneError, match="no phone with serial number R58M; adb sees none at all"):
        Adb().choose("R58M")


def test_several_phones(bench: Bench, tmp_path: Path) -> None:
    other = AdbDevice(tmp_path / "other")
    try:
        for one in (bench.device, other):
            Adb().connect(one.serial)
        with pytest.raises(PhoneError, match="several phones: .*; choose one with PHONE=SERIAL") as caught:
            Adb().choose("auto")
        assert bench.device.serial in str(caught.value) and other.serial in str(caught.value)
    finally:
        other.close()


def test_unauthorized(bench: Bench) -> None:
    bench.device.faults.unauthorized = True
    with pytest.raises(PhoneError, match='unlock the phone and tap "Allow USB debugging"'):
        Adb().choose(bench.device.serial)
    assert not bench.device.commands


def test_offline(bench: Bench) -> None:
    bench.device.faults.offline = True
    with pytest.raises(PhoneError, match="is offline: .*plug it in again|nothing answers at"):
        Adb().choose(bench.device.serial)


def test_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(PhoneError, match=f"nothing answers at {address} .*same network"):
        Adb().choose(address)


def test_wrong_processor(bench: Bench, subject: Subject) -> None:
    bench.device.set("props/ro.product.cpu.abi", "armeabi-v7a")
    assert "this phone is armeabi-v7a; the runner needs arm64-v8a" in bench.message(subject)
    assert not bench.device.files()


def test_battery_saver_and_low_battery(bench: Bench, subject: Subject) -> None:
    bench.device.set("settings/low_power", "1")
    bench.device.set("dumpsys/battery", "  level: 7\n  status: 3\n  temperature: 280\n")
    message = bench.message(subject)
    assert "battery saver is on and lowers the clocks" in message
    assert "the battery is at 7 %: charge it above 20 % first" in message


def test_a_runner_for_another_processor(bench: Bench, subject: Subject) -> None:
    foreign = bench.folder / "foreign"
    foreign.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(11) + b"\xb7\x00" + bytes(44))
    with pytest.raises(PhoneError, match=r"the runner does not start on this phone \(x86_64\).*make phone-runner"):
        Phone(bench.connected(), foreign, bench.said.append).__enter__()
    bench.nothing_left()


def test_more_than_was_allowed(subject: Subject) -> None:
    assert subject.exported
    big = replace(subject, exported=replace(subject.exported, file_bytes=553_000_000))
    with pytest.raises(PhoneError, match="takes 553 MB on the phone, the limit is 100; MEGABYTES=553 allows it"):
        plan([big], POLICY)
    with pytest.raises(PhoneError, match=r"about \d+ minutes, the limit is 10; MINUTES=\d+ allows it"):
        plan([subject] * 40, Policy())
    assert "about 0.1 minutes and 0.5 MB" in plan([subject] * 2, replace(POLICY, ask=replace(ASK, seconds=1)))


# pushing


def test_too_little_space_is_seen_beforehand(bench: Bench, subject: Subject) -> None:
    bench.device.set("free_kb", "1000")
    assert "the phone has 1 MB free, 2 MB are needed" in bench.message(subject)


def test_too_little_memory_is_seen_beforehand(bench: Bench, subject: Subject) -> None:
    bench.device.set("proc/meminfo", "MemTotal: 900 kB\nMemAvailable:    100 kB\n")
    assert "digits ResNet may need 1 MB of memory, the phone has 0" in bench.message(subject)


def test_disk_full_while_pushing(bench: Bench, subject: Subject) -> None:
    bench.device.faults.full_after = 20_000
    assert "model.bin (0.3 MB) could not be stored on the phone: No space left on device" in bench.message(subject)


def test_read_only(bench: Bench, subject: Subject) -> None:
    bench.device.faults.read_only = True
    assert "could not be stored on the phone: Read-only file system" in bench.message(subject)


def test_a_damaged_push_is_repeated_once(bench: Bench, subject: Subject) -> None:
    bench.device.faults.corrupt = True
    assert bench.measure(subject)[0]["runs"] >= 3
    assert "runner: the transfer was damaged, pushed again" in bench.said
    bench.nothing_left()


def test_a_push_that_is_always_damaged(bench: Bench, subject: Subject) -> None:
    bench.device.faults.corrupt, bench.device.faults.times = True, 99
    assert "runner was damaged twice on its way to the phone; try another cable" in bench.message(subject)


def test_connection_cut_while_pushing(bench: Bench, subject: Subject) -> None:
    bench.device.faults.cut_push = 60_000
    row = bench.measure(subject)[0]
    assert row["where"]["connections_lost"] == 1
    assert any("pushing digits ResNet: the connection" in line and "retry 1/2" in line for line in bench.said)
    bench.nothing_left()


# running


def test_connection_cut_in_a_run_starts_the_block_again(bench: Bench, subject: Subject) -> None:
    bench.device.faults.cut_output = 300
    row = bench.measure(subject)[0]
    assert row["where"]["connections_lost"] == 1 and row["runs"] >= 3
    bench.nothing_left()


def test_connection_cut_inside_the_last_line(bench: Bench, subject: Subject) -> None:
    bench.device.faults.cut_before = b'"event": "end", "runs"'
    row = bench.measure(subject)[0]
    assert row["where"]["connections_lost"] == 1
    bench.nothing_left()


def test_a_connection_that_is_lost_again_and_again(bench: Bench, subject: Subject) -> None:
    bench.device.faults.cut_output, bench.device.faults.times = 300, 99
    message = bench.message(subject)
    assert "the block is discarded" in message or "was lost" in message
    assert sum("retry" in line for line in bench.said) == 2


def test_a_phone_that_goes_away_for_good(bench: Bench, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "back", lambda self, seconds=15, wait=None: False)
    bench.device.faults.cut_output = 300
    with pytest.raises(PhoneError, match="the block is discarded|was lost"):
        bench.measure(subject)
    assert any("is gone and could not be cleaned up; later: shrinkbook phone clean" in line for line in bench.said)


def test_a_runner_that_hangs_is_ended_on_the_device(bench: Bench, subject: Subject) -> None:
    bench.device.faults.instead = {"--param": "sleep 60"}
    assert "digits ResNet did not finish in 6 s on the phone" in bench.message(subject)


def test_killed_for_want_of_memory(bench: Bench, subject: Subject) -> None:
    bench.device.set("proc/meminfo", "MemAvailable:    90000 kB\n")
    bench.device.faults.instead = {"--param": "kill -9 $$"}
    message = bench.message(subject)
    assert "was killed by the phone, most likely for want of memory: it may need 1 MB, 90 MB were available" in message


def test_an_instruction_the_processor_lacks(bench: Bench, subject: Subject) -> None:
    bench.device.faults.instead = {"--param": "kill -ILL $$"}
    assert "the processor lacks an instruction" in bench.message(subject)


def changed(subject: Subject, folder: Path, change: Callable[[Exported], Exported]) -> Subject:
    """The subject with files of its own, changed."""
    assert subject.exported
    shutil.copytree(subject.exported.folder, folder / "model")
    return replace(subject, exported=change(replace(subject.exported, folder=folder / "model")))


def test_a_truncated_model(bench: Bench, subject: Subject) -> None:
    def cut(exported: Exported) -> Exported:
        path = exported.path("model.bin")
        path.write_bytes(path.read_bytes()[:-1000])
        return exported

    message = bench.message(changed(subject, bench.folder, cut))
    assert "the runner gave up: " in message and "the weights do not fit the network (truncated?)" in message


def test_an_input_of_the_wrong_shape(bench: Bench, subject: Subject) -> None:
    def widen(exported: Exported) -> Exported:
        np.zeros((3, 8, 8), np.float32).tofile(exported.path("input.f32"))
        return replace(exported, shape=(3, 8, 8))

    message = bench.message(changed(subject, bench.folder, widen))
    assert "the network reads 1 channels, the input has 3" in message


def test_one_altered_weight_withholds_the_time(bench: Bench, subject: Subject) -> None:
    def alter(exported: Exported) -> Exported:
        weights = np.fromfile(exported.path("model.bin"), np.float32)
        weights[-5] += 1.0  # a weight or bias of the last layer
        weights.tofile(exported.path("model.bin"))
        return exported

    message = bench.message(changed(subject, bench.folder, alter))
    assert "the output differs from PyTorch's by" in message and "its time is withheld" in message


def test_a_hot_phone_is_waited_for_and_then_given_up(bench: Bench, subject: Subject) -> None:
    bench.device.set("dumpsys/thermalservice", "Thermal Status: 3\n")
    waits: list[float] = []
    message = bench.message(subject, wait=waits.append)
    assert "the phone is warm (thermal status 3): waited 5 minutes, let it cool" in message
    assert sum(waits) >= 300


def test_a_hot_phone_that_cools_down_is_measured(bench: Bench, subject: Subject) -> None:
    bench.device.set("dumpsys/battery", "  level: 80\n  temperature: 390\n  status: 3\n")
    cool = "  level: 80\n  temperature: 300\n  status: 3\n"
    rows = bench.measure(subject, wait=lambda seconds: bench.device.set("dumpsys/battery", cool))
    assert rows[0]["runs"] >= 3
    assert "the phone is warm (battery at 39 C), waiting" in bench.said


def test_adb_server_gone_in_the_middle(bench: Bench, subject: Subject) -> None:
    with bench.phone() as phone:
        phone.prepare([subject])
        Adb()("kill-server")
        rows = measure(phone, [subject], POLICY, say=bench.said.append)
    assert rows[0]["runs"] >= 3
    bench.nothing_left()


def test_no_adb_server_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # something else sits on adb's port and says nothing
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(PhoneError, match="adb's server does not answer|adb devices did not end within 5 s"):
            Adb(timeout=5).devices()


# what must not happen


def test_nothing_reaches_a_shell_unquoted(bench: Bench, subject: Subject) -> None:
    trap = bench.folder / "trap"
    evil = f"x'; touch {trap}; $(touch {trap}) `touch {trap}` \" & #"
    with pytest.raises(PhoneError, match="is no serial number"):
        Adb().choose(evil)
    with pytest.raises(PhoneError, match="is no serial number"):
        Adb().choose("-P5038")
    assert subject.exported
    folder = bench.folder / "a 'b' $(touch trap); &"
    shutil.copytree(subject.exported.folder, folder)
    named = replace(subject, name=evil, exported=replace(subject.exported, name=evil, folder=folder))
    bench.device.set("props/ro.product.model", evil)
    rows = bench.measure(named)
    assert rows[0]["model"] == evil
    assert not trap.exists() and not (bench.device.home / "trap").exists() and not Path("trap").exists()


def test_a_phone_that_was_not_asked_for_is_not_touched(bench: Bench, tmp_path: Path) -> None:
    Adb().connect(bench.device.serial)
    environment = {key: value for key, value in os.environ.items() if key != "PHONE"}
    for words in (["phone", "list"], ["phone", "doctor"]):
        command = [sys.executable, "-m", "shrinkbook.cli", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert bench.device.serial in done.stdout, done.stderr
    assert bench.device.commands == []


def test_clean_removes_all_of_it(bench: Bench, subject: Subject) -> None:
    bench.measure(subject)
    assert len(bench.device.files()) == 4  # the runner and three files of the network, kept for the next time
    before = len(bench.device.commands)
    bench.measure(subject)
    assert not any("mv" in command for command in bench.device.commands[before:])  # nothing was pushed again
    device = bench.connected()
    assert "removed /data/local/tmp/shrinkbook (" in clean(device)
    assert bench.device.files() == []
    assert "was not there" in clean(device)
