"""The runner's contract: what is asked of it on its command line, and how its JSON lines are read and trusted.

The C++ program of ``measure/runner`` and :mod:`shrinkbook.measure.wheel_runner` both keep it. Lines, in order: ``env``
(ncnn version, processors, affinity as it is, threads, fp16), ``load`` (ns, resident kB before and after),
``calibration`` before, ``warmup``, one ``run`` each (t_ns since the first, ns), ``sample``, ``calibration`` after,
``end`` (runs, wall_ns, cpu_ns, vm_hwm_kb, on a host the joules of the runs, summary of the output); or ``error`` (what,
message) in place of the rest.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PRECISIONS = ("fp32", "fp16")


class PhoneError(ValueError):
    """Something between here and a measurement failed; the message says what to do.

    Attributes:
        kind: ``link`` and ``throttled`` may be tried again, anything else may not.
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Ask:
    """How one block of runs is done.

    Args:
        loops, seconds: runs and time that must both be reached.
        at_most: seconds after which the loop stops all the same.
        warmup, warmup_seconds: runs and time before it that do not count.
        threads, cpus: threads, and the processors they may use as a hexadecimal mask; empty leaves it to the system.
        calibrate: rounds of a fixed piece of arithmetic before and after, by which a falling clock is seen.
        slack: seconds for loading and for a slow start, before a block counts as hung.
        samples: name -> file that is read a few times a second beside the runs (battery gauge).
    """

    loops: int = 10
    seconds: float = 2.0
    at_most: float = 60.0
    warmup: int = 10
    warmup_seconds: float = 1.0
    threads: int = 1
    cpus: str = ""
    calibrate: int = 20
    slack: float = 30.0
    samples: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, files: Mapping[str, str], shape: tuple[int, int, int], precision: str) -> list[str]:
        """Words of the command line, unquoted.

        Args:
            files: ``param``, ``bin``, ``in``, ``out``, ``pid`` -> path where the runner is.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}; there are {', '.join(PRECISIONS)}")
        options: dict[str, Any] = {
            **files,
            "shape": ",".join(str(side) for side in shape),
            "threads": self.threads,
            "fp16": int(precision == "fp16"),
            "warmup": self.warmup,
            "warmup-s": self.warmup_seconds,
            "loops": self.loops,
            "min-s": self.seconds,
            "max-s": self.at_most,
            "calibrate": self.calibrate,
        }
        if self.cpus:
            options["cpus"] = self.cpus
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return words + [word for name, path in self.samples.items() for word in ("--sample", f"{name}={path}")]

    @property
    def limit(self) -> float:
        """Seconds that a block may take in all, loading and warm-up included; the device itself ends it then."""
        return 2 * self.at_most + self.warmup_seconds + self.slack


@dataclass(frozen=True)
class Block:
    """One block as it was measured: nanoseconds of every run, and what tells whether to trust them."""

    ns: list[int]
    before: list[int]
    after: list[int]
    load_ns: int
    env: dict[str, Any]
    end: dict[str, Any]
    samples: list[dict[str, Any]]
    error: float = float("nan")  # of the output against PyTorch's, filled in by who holds the expected one

    @property
    def finished(self) -> bool:
        """Whether the output is made of numbers."""
        return bool(self.end.get("finite"))


def parse(text: str, ask: Ask, name: str) -> Block:
    """Read a runner's output; success is its own end line, as many runs as it says, and as many as were asked for.

    Args:
        text: everything it wrote to stdout.
        name: the network, for messages.

    Raises:
        PhoneError: of kind ``runner`` where it reported an error, ``link`` where its words stop in the middle.
    """
    events: dict[str, list[dict[str, Any]]] = {}
    for line in text.splitlines():
        try:
            event = json.loads(line)
            events.setdefault(event["event"], []).append(event)
        except (ValueError, KeyError, TypeError):
            continue  # a line cut in the middle, or a warning of the system: an end line decides, not this one
    if wrong := events.get("error"):
        raise PhoneError(f"{name}: the runner gave up: {wrong[0]['message']} ({wrong[0]['what']})", "runner")
    runs = events.get("run", [])
    if len(events.get("end", [])) != 1:
        raise PhoneError(f"{name}: the connection was lost after {len(runs)} runs; the block is discarded", "link")
    (end,) = events["end"]
    if end["runs"] != len(runs):
        raise PhoneError(f"{name}: {len(runs)} of {end['runs']} runs arrived; the block is discarded", "link")
    if len(runs) < ask.loops:
        raise PhoneError(
            f"{name}: only {len(runs)} of {ask.loops} runs in {ask.at_most:g} s; allow more time or fewer runs", "slow"
        )
    env = events["env"][0]
    if ask.cpus and int(env["affinity"], 16) != int(ask.cpus, 16):
        raise PhoneError(f"{name}: ran on processors {env['affinity']}, asked for {ask.cpus}", "runner")
    calibration = {one["when"]: one["ns"] for one in events.get("calibration", [])}
    return Block(
        ns=[run["ns"] for run in runs],
        before=calibration.get("before", []),
        after=calibration.get("after", []),
        load_ns=events["load"][0]["ns"],
        env={key: value for key, value in env.items() if key != "event"},
        end={key: value for key, value in end.items() if key != "event"} | _memory(events["load"][0]),
        samples=[{k: v for k, v in one.items() if k != "event"} for one in events.get("sample", [])],
    )


def _memory(load: Mapping[str, Any]) -> dict[str, Any]:
    return {key: load.get(key) for key in ("rss_kb_before", "rss_kb_after")}
