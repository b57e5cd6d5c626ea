"""The state a phone is in: what it is, and whether a measurement on it would mean anything.

Everything is read in one command without root. What a phone does not let an ordinary shell read stays None and is
reported as unknown, never guessed.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from shrinkbook.measure.adb import Device, script
from shrinkbook.measure.protocol import PhoneError

ABIS = {"arm64-v8a": "aarch64", "x86_64": "x86_64"}
WARM_CELSIUS, LOW_PERCENT = 35.0, 20
GAUGE = "/sys/class/power_supply/battery"
_SECTIONS = {
    "props": "for p in ro.product.manufacturer ro.product.model ro.product.cpu.abi ro.build.version.release "
    "ro.soc.model; do echo $p=$(getprop $p); done",
    "battery": "dumpsys battery",
    "thermal": "dumpsys thermalservice",
    "saver": "settings get global low_power",
    "airplane": "settings get global airplane_mode_on",
    "power": "dumpsys power | grep -E 'mWakefulness='",
    "memory": "cat /proc/meminfo",
    "cpus": "for c in /sys/devices/system/cpu/cpu[0-9]*; do echo $c $(cat $c/cpufreq/cpuinfo_max_freq); done",
    "gauge": f"for f in current_now voltage_now status; do echo $f=$(cat {GAUGE}/$f); done",
}


@dataclass(frozen=True)
class State:
    """One look at a phone.

    Args:
        serial: not for result files; ``key`` is.
        free_kb: space left in the working folder; available_kb: memory that may be taken.
        level, celsius, charging: of the battery.
        thermal: Android's thermal status, 0 is none of it.
        saver: battery saver on. awake: screen on.
        cpus: maximum clock of each processor in kHz; empty where it may not be read.
        gauge: whether current and voltage of the battery can be read.
    """

    serial: str
    maker: str
    model: str
    abi: str
    android: str
    chip: str
    free_kb: int | None
    available_kb: int | None
    level: int | None
    celsius: float | None
    charging: bool | None
    thermal: int | None
    saver: bool | None
    awake: bool | None
    airplane: bool | None
    cpus: tuple[int, ...]
    gauge: bool

    @property
    def key(self) -> str:
        """The phone in a run's identity: its model, and a hash in place of its serial number."""
        digest = hashlib.sha256(self.serial.encode()).hexdigest()[:6]
        return f"{' '.join(word for word in (self.maker, self.model) if word) or 'phone'} {digest}"

    @property
    def big(self) -> str:
        """Mask of the processors that clock higher than the slowest kind; all of one kind, or unknown: empty."""
        if len(set(self.cpus)) < 2:
            return ""
        return f"{sum(1 << cpu for cpu, clock in enumerate(self.cpus) if clock > min(self.cpus)):x}"

    def obstacles(self) -> list[str]:
        """Why nothing may be measured now; empty if all is well. What is unknown is no obstacle."""
        found = []
        if self.abi not in ABIS:
            found.append(f"this phone is {self.abi or 'of an unknown kind'}; the runner needs {' or '.join(ABIS)}")
        if self.saver:
            found.append("battery saver is on and lowers the clocks: switch it off")
        if self.level is not None and self.level < LOW_PERCENT:
            found.append(f"the battery is at {self.level} %: charge it above {LOW_PERCENT} % first")
        return found

    def warmth(self) -> str:
        """Why the phone is too warm to be measured, empty if it is not."""
        if self.thermal:
            return f"thermal status {self.thermal}"
        if self.celsius is not None and self.celsius >= WARM_CELSIUS:
            return f"battery at {self.celsius:g} C"
        return ""

    def remarks(self) -> list[str]:
        """What a reader of the numbers should know, and what to change if they can."""
        found = ["measured from a shell, which the system may schedule otherwise than an app in the foreground"]
        if self.awake:
            found.append("the screen is on: switch it off for steadier times")
        if self.airplane is False:
            found.append("airplane mode is off: radios may wake the processor")
        unknown = [
            name for name, value in (("thermal status", self.thermal), ("clocks", self.cpus or None)) if value is None
        ]
        return found + [f"{name} may not be read on this phone" for name in unknown]

    def no_energy(self) -> str:
        """Why energy cannot be measured, empty if it can."""
        if not self.gauge:
            return "the battery gauge may not be read"
        if self.charging or self.charging is None:
            return "the phone is charging: unplug it and use adb over Wi-Fi"
        return ""


def look(device: Device, folder: str) -> State:
    """Read the state of a phone.

    Args:
        folder: where the runner works; its free space is looked up.
    """
    parts = {**_SECTIONS, "space": script("df", "-k", folder.rsplit("/", 1)[0])}
    command = "; ".join(f"echo; echo '@@ {name}'; {{ {part}; }} 2>/dev/null" for name, part in parts.items())
    done = device.shell(command)
    texts = dict(re.findall(r"^@@ (\w+)\n(.*?)(?=^@@ |\Z)", done.out, re.DOTALL | re.MULTILINE))
    if not texts:
        raise PhoneError(f"{device.serial} does not answer a simple command ({done.words[:80] or 'no word'})", "link")
    return parse(device.serial, texts)


def parse(serial: str, texts: Mapping[str, str]) -> State:
    """A state from the texts of the commands."""
    props = dict(re.findall(r"^([\w.]+)=(.*?)\s*$", texts.get("props", ""), re.MULTILINE))
    battery, cpus = texts.get("battery", ""), re.findall(r"cpu(\d+) (\d+)", texts.get("cpus", ""))
    clocks = {int(cpu): int(clock) for cpu, clock in cpus}
    known = bool(clocks) and sorted(clocks) == list(range(len(clocks)))
    tenths = _number(r"^\s*temperature: (-?\d+)", battery)
    status = _number(r"^\s*status: (\d+)", battery)
    gauge = dict(re.findall(r"^(\w+)=(.+)$", texts.get("gauge", ""), re.MULTILINE))
    powered = re.findall(r"^\s*\w+ powered: (true|false)", battery, re.MULTILINE)
    charging = None if status is None else status in (2, 5) or "true" in powered
    wake = re.search(r"mWakefulness=(\w+)", texts.get("power", ""))
    space = re.findall(r"^\S.*?\s(\d+)\s+(\d+)\s+(\d+)\s+\d+%", texts.get("space", ""), re.MULTILINE)
    return State(
        serial=serial,
        maker=props.get("ro.product.manufacturer", ""),
        model=props.get("ro.product.model", ""),
        abi=props.get("ro.product.cpu.abi", ""),
        android=props.get("ro.build.version.release", ""),
        chip=props.get("ro.soc.model", ""),
        free_kb=int(space[-1][2]) if space else None,
        available_kb=_number(r"^MemAvailable:\s+(\d+)", texts.get("memory", "")),
        level=_number(r"^\s*level: (\d+)", battery),
        celsius=None if tenths is None else tenths / 10,
        charging=charging,
        thermal=_number(r"Thermal Status: (\d+)", texts.get("thermal", "")),
        saver=_flag(texts.get("saver", "")),
        awake=wake and wake[1] == "Awake",
        airplane=_flag(texts.get("airplane", "")),
        cpus=tuple(clocks[cpu] for cpu in range(len(clocks))) if known else (),
        gauge=all(re.fullmatch(r"-?\d+", gauge.get(name, "")) for name in ("current_now", "voltage_now")),
    )


def _number(pattern: str, text: str) -> int | None:
    match = re.search(pattern, text, re.MULTILINE)
    return int(match[1]) if match else None


def _flag(text: str) -> bool | None:
    return {"0": False, "1": True}.get(text.strip())
