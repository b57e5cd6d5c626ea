"""Energy from a machine's own meters: RAPL of the processor packages, the counter of an NVIDIA GPU, a phone's battery.

The first two are a rising number of joules; what a piece of work took is the difference of two readings. A battery
gauge gives current and voltage. All count the whole device, so other work on it is counted too. Where no meter can be
read there is a reason instead of a number.
"""

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")

Meter = Callable[[], float]
"""Joules since the meter was made."""


def meter(device: str, powercap: Path = POWERCAP) -> tuple[Meter | None, str]:
    """The meter of ``cpu`` or ``cuda``, or None and why there is none."""
    return _nvidia() if device == "cuda" else _rapl(powercap)


def moved(joules: float) -> tuple[float | None, str]:
    """Joules between two readings, or None and the reason where the meter stood still: no work takes nothing."""
    return (joules, "") if joules > 0 else (None, "the energy meter stood still while the work ran")


def power(work: Callable[[], object], device: str, seconds: float = 2.0) -> tuple[float | None, str]:
    """Mean watts while ``work`` is repeated for at least so many seconds, or None and the reason."""
    joules, reason = meter(device)
    if joules is None:
        return None, reason
    before, started = joules(), time.perf_counter()
    while time.perf_counter() - started < seconds:
        work()
    took = time.perf_counter() - started
    joule, reason = moved(joules() - before)
    return joule and joule / took, reason


def gauge_watts(idle: Sequence[Mapping[str, Any]], load: Sequence[Mapping[str, Any]]) -> tuple[float | None, str]:
    """Watts that work adds to a phone's idle power, from samples of its battery gauge; or None and the reason.

    Phones disagree about the sign of the current and about units. Discharging is taken as positive either way;
    magnitudes tell microvolts from millivolts (a battery has 3 to 5 V) and microamperes from milliamperes (an idle
    phone draws tens, a busy one thousands of milliamperes).

    Args:
        idle, load: samples with ``current`` and ``voltage``, numbers or their text; unreadable ones are left out.
    """
    resting, working = _gauge(idle), _gauge(load)
    if not resting or not working:
        return None, "the battery gauge could not be read"
    volts = [_volts(voltage) for _, voltage in resting + working]
    if not all(2.5 < volt < 5.5 for volt in volts):
        return None, f"the gauge's voltage of {volts[0]:g} V is none of a phone's battery"
    currents = [abs(current) for current, _ in resting + working]
    ampere = 1e-6 if max(currents) > 20_000 else 1e-3
    watts = [volt * abs(current) * ampere for volt, (current, _) in zip(volts, resting + working, strict=True)]
    before, after = watts[: len(resting)], watts[len(resting) :]
    rise = sum(after) / len(after) - sum(before) / len(before)
    if rise <= 0 or len(set(currents)) < 3:
        return None, "the battery gauge does not follow the load"
    return rise, ""


def _gauge(samples: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    pairs = [(str(one.get("current", "")), str(one.get("voltage", ""))) for one in samples]
    return [(int(a), int(b)) for a, b in pairs if a.lstrip("-").isdigit() and b.isdigit()]


def _volts(value: int) -> float:
    return value * (1e-6 if value > 100_000 else 1e-3)


def _rapl(powercap: Path) -> tuple[Meter | None, str]:
    """Sum over the packages (``intel-rapl:0``, ..., the name AMD processors have too); counters wrap around."""
    domains = (path.parent for path in powercap.glob("intel-rapl:*/energy_uj"))
    packages = sorted(path for path in domains if (path / "name").read_text().startswith("package"))
    if not packages:
        return None, f"no RAPL counter under {powercap}"
    try:
        ranges = [int((package / "max_energy_range_uj").read_text()) for package in packages]
        last = [int((package / "energy_uj").read_text()) for package in packages]
    except OSError as error:
        return None, f"the RAPL counter {error.filename} cannot be read ({error.strerror}); it usually takes root"
    total = [0]

    def joules() -> float:
        for index, package in enumerate(packages):
            now = int((package / "energy_uj").read_text())
            total[0] += (now - last[index]) % (ranges[index] + 1)
            last[index] = now
        return total[0] / 1e6

    return joules, ""


def _nvidia() -> tuple[Meter | None, str]:
    """The energy counter of the first GPU (millijoules since the driver was loaded)."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None, "NVIDIA's management library (libnvidia-ml.so.1) is not installed"
    handle, counter = ctypes.c_void_p(), ctypes.c_ulonglong()

    def read() -> int:
        return nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(counter))

    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) or read():
        return None, "this GPU has no energy counter that may be read"
    start = counter.value

    def joules() -> float:
        read()
        return (counter.value - start) / 1e3

    return joules, ""
