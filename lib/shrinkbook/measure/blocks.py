"""How a comparison is measured: short blocks of runs, networks in turns, in random order, on whatever device.

A device is a :class:`Target`: this host or a phone. What comes out is a row a network and precision, in one form for
every device; rows of different devices never meet in one call, so a ratio is always of one device and one hour.
"""

import base64
import math
import random
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from shrinkbook.measure.export import TOLERANCE, Exported, difference
from shrinkbook.measure.protocol import Ask, Block, PhoneError
from shrinkbook.measure.steady import Clock, doubt

Say = Callable[[str], None]
Key = tuple[str, str]  # name and precision of a network
FILES = {"param": "model.param", "bin": "model.bin", "in": "input.f32"}
MINUTES, MEGABYTES = 10.0, 100.0
"""What a measurement may take of a phone, and a network of its storage, unless more is asked for."""
PUSH_BYTES_PER_SECOND = 5e6
OVERHEAD = 3.0  # seconds of a block besides its runs: loading, checks, fetching the output


@dataclass(frozen=True)
class Subject:
    """A network to be measured: the module and an image for it, and its files where they could be exported."""

    name: str
    module: nn.Module
    example: Tensor
    mac: int
    exported: Exported | None = None

    @property
    def megabytes(self) -> float:
        """What a phone must store, 10^6 bytes."""
        return self.exported.file_bytes / 1e6 if self.exported else 0.0


class Target(Protocol):
    """A device that runs blocks, used as a context."""

    is_phone: bool

    def describe(self) -> dict[str, Any]:
        """What it is: device, engine, processors."""

    def prepare(self, subjects: Sequence[Subject]) -> None:
        """Bring the networks to the device."""

    def block(self, subject: Subject, precision: str, ask: Ask) -> Block:
        """One block of runs with a checked output."""

    def energy(self, subject: Subject, precision: str, ask: Ask) -> tuple[float | None, str]:
        """Joules of one run, or None and the reason."""


@dataclass(frozen=True)
class Policy:
    """How much is measured and when a block is thrown away.

    Args:
        blocks: of each network and precision; ``ask`` is one of them.
        precisions: ``fp32``, and ``fp16`` as a second row.
        drift: share by which the calibration may be slower than the best of the measurement before a block counts as
            throttled.
        redo: how often a throttled block is done again, after ``cool`` seconds; then it stays and is marked.
        minutes, megabytes: limits, see :func:`plan`.
    """

    blocks: int = 5
    ask: Ask = Ask()
    precisions: tuple[str, ...] = ("fp32",)
    drift: float = 0.05
    redo: int = 2
    cool: float = 10.0
    minutes: float = MINUTES
    megabytes: float = MEGABYTES


def plan(subjects: Sequence[Subject], policy: Policy) -> str:
    """What a measurement will take, for the person whose phone it is.

    Raises:
        PhoneError: more than the policy allows; the message says what would allow it.
    """
    each = policy.ask.seconds + policy.ask.warmup_seconds + OVERHEAD
    pushed = sum(subject.megabytes for subject in subjects)
    seconds = len(subjects) * len(policy.precisions) * policy.blocks * each + 1e6 * pushed / PUSH_BYTES_PER_SECOND
    for subject in subjects:
        if subject.megabytes > policy.megabytes:
            raise PhoneError(
                f"{subject.name} takes {subject.megabytes:.0f} MB on the phone, the limit is {policy.megabytes:g}; "
                f"MEGABYTES={np.ceil(subject.megabytes):.0f} allows it", "limit"
            )  # fmt: skip
    if seconds > 60 * policy.minutes:
        raise PhoneError(
            f"this takes about {seconds / 60:.0f} minutes, the limit is {policy.minutes:g}; "
            f"MINUTES={np.ceil(seconds / 60):.0f} allows it", "limit"
        )  # fmt: skip
    names = ", ".join(f"{subject.name} ({subject.megabytes:.1f} MB)" for subject in subjects)
    return f"{names}: about {seconds / 60:.1f} minutes and {pushed:.1f} MB"


def measure(
    target: Target, subjects: Sequence[Subject], policy: Policy, seed: int = 0, say: Say = print,
    wait: Callable[[float], None] = time.sleep,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure all subjects in turns; the first one is the base of the ratios.

    Every round runs a block of each network and precision, in an order drawn by the seed.

    Returns:
        A row for each network and precision, in that order: ``device, is_phone, where, model, precision, threads, ms``
        (median, p10, p90, p99, mad), ``runs, blocks, raw, load_ms, peak_kb, output_error, ratio`` (to the first row of
        the same precision, with a 90 % interval), ``mac, mac_ratio, realised, energy, doubt``. Where there is a doubt
        (see :func:`~shrinkbook.measure.steady.doubt`), no ratio is claimed.

    Raises:
        PhoneError: a subject could not be measured, or it would take more of a phone than was allowed.
    """
    if target.is_phone:
        say(plan(subjects, policy))
    target.prepare(subjects)
    by_name = {subject.name: subject for subject in subjects}
    keys = [(subject.name, precision) for precision in policy.precisions for subject in subjects]
    kept = turns(lambda key: target.block(by_name[key[0]], key[1], policy.ask), keys, policy, seed, say, wait)
    energy = {key: target.energy(by_name[key[0]], key[1], policy.ask) for key in keys}
    rows = [_row(target, by_name[name], precision, kept[name, precision], policy) for name, precision in keys]
    for row, key in zip(rows, keys, strict=True):
        joule, reason = energy[key]
        row["energy"] = {"joule": joule, "reason": reason}
        base = next(one for one in rows if one["precision"] == row["precision"])
        row["base"] = base["model"]
        row["mac_ratio"], row["ratio"], row["realised"] = base["mac"] / row["mac"], None, None
        row["doubt"] = doubt(base, row)
        if not row["doubt"]:
            row["ratio"] = ratio([unpack(raw) for raw in base["raw"]], [unpack(raw) for raw in row["raw"]], seed)
            row["realised"] = realised(row["ratio"]["median"], row["mac_ratio"])
    return rows


def turns(
    one_block: Callable[[Key], Block], keys: Sequence[Key], policy: Policy, seed: int, say: Say,
    wait: Callable[[float], None],
) -> dict[Key, list[dict[str, Any]]]:  # fmt: skip
    """Blocks of all keys in turns, each turn in an order drawn by the seed; what the clock spoilt is done again.

    Every block is held against the best clock of the whole measurement: at once against the best so far, and at the
    end, when the best is known, once more.

    Returns:
        Key -> a ``block`` for each turn, whether it stayed ``throttled``, and how often it was ``redone``.
    """
    shuffle, clock = random.Random(seed), Clock()
    kept: dict[Key, list[dict[str, Any]]] = {key: [] for key in keys}

    def spoilt(one: Mapping[str, Any]) -> bool:
        return clock.behind(one["block"]) > policy.drift

    def settled(key: Key, one: dict[str, Any]) -> dict[str, Any]:
        while spoilt(one) and one["redone"] < policy.redo:
            fell = 100 * clock.behind(one["block"])
            say(f"{key[0]}: the clock fell by {fell:.0f} %, cooling down, block again")
            wait(policy.cool)
            one = {"block": one_block(key), "redone": one["redone"] + 1}
        return one

    for number in range(policy.blocks):
        for key in shuffle.sample(keys, len(keys)):
            kept[key].append(settled(key, {"block": one_block(key), "redone": 0}))
        say(f"block {number + 1} of {policy.blocks}")
    best = math.inf
    while clock.best < best:  # a block done again may set a better clock, by which the others are judged once more
        best = clock.best
        kept = {key: [settled(key, one) for one in blocks] for key, blocks in kept.items()}
    return {key: [one | {"throttled": spoilt(one)} for one in blocks] for key, blocks in kept.items()}


def checked(block: Block, output: np.ndarray, subject: Subject, precision: str) -> Block:
    """The block with its output's difference from PyTorch's; a time whose output is wrong is not handed out.

    Raises:
        PhoneError: of kind ``output``.
    """
    assert subject.exported
    expected = subject.exported.expected()
    error = difference(output, expected)
    if error > TOLERANCE[precision] or (precision == "fp32" and output.argmax() != expected.argmax()):
        raise PhoneError(
            f"{subject.name} ({precision}): the output differs from PyTorch's by {error:.2g} of its largest value; "
            "its time is withheld", "output"
        )  # fmt: skip
    return replace(block, error=error)


def ratio(base: Sequence[np.ndarray], other: Sequence[np.ndarray], seed: int, draws: int = 1000) -> dict[str, float]:
    """How many times faster `other` is: median over paired blocks, and a 90 % bootstrap interval.

    Blocks are drawn with replacement in pairs, then runs within each; runs of one block share its clock and are no
    independent sample.
    """
    if len(base) != len(other) or not base:
        raise ValueError(f"ratio needs as many blocks on either side, got {len(base)} and {len(other)}")
    generator = np.random.default_rng(seed)

    def medians(blocks: Sequence[np.ndarray]) -> np.ndarray:
        """(blocks, draws) medians of runs drawn again."""
        return np.stack([
            np.median(block[generator.integers(0, len(block), (draws, len(block)))], axis=1) for block in blocks
        ])  # fmt: skip

    per_block = medians(base) / medians(other)
    chosen = generator.integers(0, len(base), (len(base), draws))
    drawn = np.median(np.take_along_axis(per_block, chosen, axis=0), axis=0)
    low, high = np.quantile(drawn, [0.05, 0.95])
    middle = float(np.median([np.median(a) / np.median(b) for a, b in zip(base, other, strict=True)]))
    return {"median": middle, "low": float(low), "high": float(high)}


def realised(measured: float, possible: float) -> float | None:
    """Share of the theoretical saving of time that was measured: (1 - 1/measured) / (1 - 1/possible)."""
    return None if possible <= 1 else (1 - 1 / measured) / (1 - 1 / possible)


def pack(ns: Sequence[int]) -> str:
    """Nanoseconds of every run, for a result file."""
    return base64.b64encode(zlib.compress(np.asarray(ns, np.uint64).astype("<u8").tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    """What :func:`pack` packed."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u8").astype(float)


def _row(
    target: Target, subject: Subject, precision: str, kept: Sequence[Mapping[str, Any]], policy: Policy
) -> dict[str, Any]:
    blocks: list[Block] = [one["block"] for one in kept]
    ms = np.concatenate([np.asarray(block.ns, float) for block in blocks]) / 1e6
    low, median, high, slow = (float(value) for value in np.quantile(ms, [0.1, 0.5, 0.9, 0.99]))
    medians = [float(np.median(block.ns)) / 1e6 for block in blocks]
    return {
        "device": "phone" if target.is_phone else "host",
        "is_phone": target.is_phone,
        "where": target.describe(),
        "model": subject.name,
        "precision": precision,
        "threads": policy.ask.threads,
        "cpus": blocks[0].env.get("affinity", ""),
        "ms": {"median": median, "p10": low, "p90": high, "p99": slow, "mad": float(np.median(np.abs(ms - median)))},
        "runs": len(ms),
        "blocks": medians,
        "spread_percent": 100 * (max(medians) / min(medians) - 1),
        "throttled": sum(one["throttled"] for one in kept),
        "redone": sum(one["redone"] for one in kept),
        "raw": [pack(block.ns) for block in blocks],
        "load_ms": float(np.median([block.load_ns for block in blocks])) / 1e6,
        "peak_kb": max((block.end.get("vm_hwm_kb") or 0 for block in blocks), default=0) or None,
        "output_error": max(block.error for block in blocks),
        "file_bytes": subject.exported.file_bytes if subject.exported else None,
        "mac": subject.mac,
    }
