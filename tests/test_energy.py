"""Energy meters: counters are read, summed and unwrapped; without one there is a reason."""

from pathlib import Path

import pytest

from shrinkbook.measure import energy
from shrinkbook.measure.energy import meter, power


def package(folder: Path, name: str, energy: int, largest: int = 1_000_000_000) -> Path:
    path = folder / name
    path.mkdir()
    (path / "name").write_text(
        "core\n" if name.count(":") > 1 else "psys\n" if name.endswith("9") else f"package-{name[-1]}\n"
    )
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text(f"{largest}\n")
    return path


def test_rapl_sums_packages_and_leaves_out_what_they_contain(tmp_path: Path) -> None:
    first, second = package(tmp_path, "intel-rapl:0", 5_000_000), package(tmp_path, "intel-rapl:1", 100)
    core = package(tmp_path, "intel-rapl:0:0", 0)  # the cores are part of package 0
    package(tmp_path, "intel-rapl:9", 77_000_000)  # the whole platform, packages included
    joules, reason = meter("cpu", tmp_path)
    assert joules is not None and not reason
    assert joules() == 0
    (first / "energy_uj").write_text("7000000\n")
    (second / "energy_uj").write_text("500100\n")
    (core / "energy_uj").write_text("1900000\n")
    assert joules() == pytest.approx(2.5)
    (first / "energy_uj").write_text("8000000\n")
    assert joules() == pytest.approx(3.5)


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    path = package(tmp_path, "intel-rapl:0", 9_999_000, largest=9_999_999)
    joules, _ = meter("cpu", tmp_path)
    assert joules is not None
    (path / "energy_uj").write_text("1000\n")
    assert joules() == pytest.approx(0.002)


def test_without_a_meter_there_is_a_reason(tmp_path: Path) -> None:
    assert meter("cpu", tmp_path) == (None, f"no RAPL counter under {tmp_path}")
    path = package(tmp_path, "intel-rapl:0", 0) / "max_energy_range_uj"
    path.unlink()
    joules, reason = meter("cpu", tmp_path)
    assert joules is None and str(path) in reason


def test_power_of_a_meter_that_stands_still_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = [0.0, 0.0]
    monkeypatch.setattr(energy, "meter", lambda device: (lambda: readings.pop(0), ""))
    assert power(lambda: None, "cpu", seconds=0) == (None, "the energy meter stood still while the work ran")
    readings[:] = [1.0, 3.0]
    watts, reason = power(lambda: None, "cpu", seconds=0.01)
    assert watts is not None and 0 < watts <= 2 / 0.01 and not reason
