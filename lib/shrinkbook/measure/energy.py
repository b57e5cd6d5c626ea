"""Energy from a machine's own meters: RAPL of the processor packages, or the counter of an NVIDIA GPU.

Either is a rising number of joules; what a piece of work took is the difference of two readings. Both meters count
the whole device, so other work on it is counted too. Where no meter can be read there is a reason instead of a number.
"""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")

Meter = Callable[[], float]
"""Joules since the meter was made."""


def meter(device: str, powercap: Path = POWERCAP) -> tuple[Meter | None, str]:
    """The meter of ``cpu`` or ``cuda``, or None and why there is none."""
    return _nvidia() if device == "cuda" else _rapl(powercap)


def power(work: Callable[[], object], device: str, seconds: float = 2.0) -> tuple[float | None, str]:
    """Mean watts while ``work`` is repeated for at least so many seconds, or None and the reason."""
    joules, reason = meter(device)
    if joules is None:
        return None, reason
    before, started = joules(), time.perf_counter()
    while time.perf_counter() - started < seconds:
        work()
    return (joules() - before) / (time.perf_counter() - started), ""


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
