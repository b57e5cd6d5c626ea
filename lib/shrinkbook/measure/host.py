"""This host as a device: the same blocks by the ncnn package or our own runner, or by plain PyTorch without either.

Nothing here is a phone's number; every row says so.
"""

import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shrinkbook.measure import wheel_runner
from shrinkbook.measure.blocks import FILES, Subject, checked
from shrinkbook.measure.energy import meter, moved
from shrinkbook.measure.protocol import Ask, Block, PhoneError, parse
from shrinkbook.training.evaluate import evaluating


class Host:
    """The host by a runner of its own: by default the ncnn package behind the runner's command line.

    Args:
        runner: a program that keeps the contract of :mod:`shrinkbook.measure.protocol`.
    """

    is_phone = False

    def __init__(self, runner: Sequence[str] | None = None) -> None:
        self.runner = list(runner or (sys.executable, "-m", "shrinkbook.measure.wheel_runner"))
        self._env: dict[str, Any] = {}

    def __enter__(self) -> "Host":
        self._folder = Path(tempfile.mkdtemp(prefix="shrinkbook-host-"))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def describe(self) -> dict[str, Any]:
        """Engine and processor of the host."""
        engine = f"ncnn {self._env.get('ncnn', '?')} ({self._env.get('runner', '?')})"
        return {"name": "this host", "engine": engine, "machine": platform.machine(), "cpus": self._env.get("cpus")}

    def prepare(self, subjects: Sequence[Subject]) -> None:
        """The files are here already."""

    def block(self, subject: Subject, precision: str, ask: Ask) -> Block:
        """One block in a process of its own, its output compared with PyTorch's.

        Raises:
            PhoneError: the runner failed, took too long, or computed something else.
        """
        assert subject.exported, f"{subject.name} was not exported"
        out = self._folder / "out.f32"
        files = {name: str(subject.exported.path(file)) for name, file in FILES.items()} | {"out": str(out)}
        command = [*self.runner, *ask.arguments(files, subject.exported.shape, precision)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=ask.limit)
        except subprocess.TimeoutExpired as error:
            raise PhoneError(f"{subject.name} did not finish in {ask.limit:g} s on this host", "timeout") from error
        if done.returncode and '"error"' not in done.stdout:
            last = (done.stderr.strip() or "no word").splitlines()[-1]
            raise PhoneError(f"{subject.name}: the runner ended with status {done.returncode}: {last}", "runner")
        block = parse(done.stdout, ask, subject.name)
        self._env = block.env
        return checked(block, np.fromfile(out, np.float32), subject, precision)

    def energy(self, subject: Subject, precision: str, ask: Ask) -> tuple[float | None, str]:
        """Joules of one run by the processor's own meter, which the runner reads around the runs of one block."""
        joules, reason = meter("cpu")
        if joules is None:
            return None, reason
        block = self.block(subject, precision, ask)
        if block.end.get("joule") is None:
            return None, "this runner does not read the processor's energy meter"
        joule, reason = moved(block.end["joule"])
        return joule and joule / len(block.ns), reason


class TorchHost:
    """The host by plain PyTorch, where the packages of the extra ``phone`` are missing; fp32 only."""

    is_phone = False

    def __enter__(self) -> "TorchHost":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        """Engine and processor of the host."""
        return {"name": "this host", "engine": f"PyTorch {torch.__version__} (eager)", "machine": platform.machine()}

    def prepare(self, subjects: Sequence[Subject]) -> None:
        """The modules are here already."""

    def block(self, subject: Subject, precision: str, ask: Ask) -> Block:
        """One block in this process."""
        if precision != "fp32":
            raise PhoneError(f"plain PyTorch measures fp32 only, not {precision}; make phone-extra brings ncnn")
        ns: list[int] = []
        with evaluating(subject.module), torch.inference_mode():
            before = wheel_runner.calibrate(ask.calibrate)
            started, count = time.perf_counter(), 0
            while count < ask.warmup or time.perf_counter() - started < ask.warmup_seconds:
                subject.module(subject.example)
                count += 1
            started = time.perf_counter()
            while len(ns) < ask.loops or time.perf_counter() - started < ask.seconds:
                begun = time.perf_counter_ns()
                subject.module(subject.example)
                ns.append(time.perf_counter_ns() - begun)
        return Block(ns, before, wheel_runner.calibrate(ask.calibrate), 0, {}, {"finite": True}, [], 0.0)

    def energy(self, subject: Subject, precision: str, ask: Ask) -> tuple[float | None, str]:
        """Not measured this way."""
        return None, "plain PyTorch stands in; energy is measured with the extra `phone`"
