"""A phone as a device: networks pushed and checked by hash, blocks of runs, everything put back at the end.

Nothing happens on a phone that was not asked for by name or by ``auto``. Files live in one folder that any shell user
may write; networks stay there under their hash for the next time, until ``shrinkbook phone clean``.
"""

import hashlib
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shrinkbook.measure import conditions
from shrinkbook.measure.adb import Device, Done, script
from shrinkbook.measure.blocks import FILES, Say, Subject, checked
from shrinkbook.measure.energy import gauge_watts
from shrinkbook.measure.protocol import Ask, Block, PhoneError, parse

FOLDER = "/data/local/tmp/shrinkbook"
WARM_WAIT = 300.0  # seconds to wait for a warm phone
RETRIES = 2
MEMORY_FACTOR = 3  # memory a network may need, in sizes of its weights: they are laid out again when loaded
ENERGY_SECONDS = 60.0  # gauges are slow: below a minute they say nothing


class Phone:
    """One phone, used as a context: prepared on entering, cleaned up on leaving, however that comes about.

    Args:
        device: the chosen device.
        runner: the runner's program for its processor.
        say: told what is waited for or tried again.
        fixed_clocks: ask Android 11 or newer for its steady-clock mode while measuring.
        wait: how to wait, in seconds.
    """

    is_phone = True

    def __init__(
        self, device: Device, runner: Path, say: Say = print, fixed_clocks: bool = False,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.device, self.runner, self.say, self.wait, self.fixed_clocks = device, runner, say, wait, fixed_clocks
        self.session = f"{FOLDER}/run-{uuid.uuid4().hex[:12]}"
        self.state = conditions.look(device, FOLDER)
        self._places: dict[Path, str] = {}
        self._env: dict[str, Any] = {}
        self._lost = 0  # connections, each of which cost a block or a push

    def __enter__(self) -> "Phone":
        if obstacles := self.state.obstacles():
            raise PhoneError("; ".join(obstacles), "state")
        try:
            self._must(script("mkdir", "-p", FOLDER, self.session))
            self._place(self.runner)
            self._must(script("chmod", "755", self._places[self.runner]))
            self._about()
            if self.fixed_clocks:
                self._must(script("cmd", "power", "set-fixed-performance-mode-enabled", "true"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End a runner left behind, remove the session's folder, restore the clocks; a lost phone gets a moment."""
        commands = [
            self._end_leftover(),
            script("rm", "-rf", self.session) + f"; rm -f {script(FOLDER)}/*.part",
        ]
        if self.fixed_clocks:
            commands.append(script("cmd", "power", "set-fixed-performance-mode-enabled", "false"))
        try:
            if self.device.back(wait=self.wait):
                self.device.shell("; ".join(commands))
                return
        except PhoneError:
            pass
        self.say(f"{self.device.serial} is gone and could not be cleaned up; later: shrinkbook phone clean")

    def describe(self) -> dict[str, Any]:
        """The phone as result files name it, without its serial number."""
        state = self.state
        return {
            "name": state.key, "model": state.model, "chip": state.chip, "android": state.android, "abi": state.abi,
            "engine": f"ncnn {self._env.get('ncnn', '?')} ({self._env.get('runner', '?')})",
            "cpus": self._env.get("cpus"), "remarks": state.remarks(),
            "connections_lost": self._lost,
        }  # fmt: skip

    def prepare(self, subjects: Sequence[Subject]) -> None:
        """Check space and memory for all networks, then push what is not there yet.

        Raises:
            PhoneError: too little of either, or a push that failed twice.
        """
        state = self._look()
        needed = 2e-3 * max(sum(1e6 * subject.megabytes for subject in subjects), 1e6)
        if state.free_kb is not None and state.free_kb < needed:
            raise PhoneError(
                f"the phone has {state.free_kb / 1e3:.0f} MB free, {needed / 1e3:.0f} MB are needed", "space"
            )
        for subject in subjects:
            memory, there = MEMORY_FACTOR * subject.megabytes, (state.available_kb or 0) / 1e3
            if state.available_kb is not None and there < memory:
                raise PhoneError(
                    f"{subject.name} may need {memory:.0f} MB of memory, the phone has {there:.0f}", "memory"
                )
            self._retried(partial(self._push, subject), f"pushing {subject.name}")

    def block(self, subject: Subject, precision: str, ask: Ask) -> Block:
        """One block of runs, begun again when the connection breaks.

        Raises:
            PhoneError: the message says what happened; nothing half-measured is handed out.
        """
        self._settle()
        ask = replace(ask, cpus=ask.cpus or self.state.big)
        block, output = self._retried(partial(self._run, subject, precision, ask), subject.name)
        self._env = block.env
        return checked(block, output, subject, precision)

    def energy(self, subject: Subject, precision: str, ask: Ask) -> tuple[float | None, str]:
        """Joules of one run by the battery gauge, above what the phone takes when idle."""
        self.state = self._look()
        if reason := self.state.no_energy():
            return None, reason
        files = {name: f"{conditions.GAUGE}/{name}_now" for name in ("current", "voltage")}
        loop = f"while :; do echo $(cat {files['current']}) $(cat {files['voltage']}); sleep 0.2; done"
        idle = self.device.shell(f"timeout {ENERGY_SECONDS / 2:g} sh -c {script(loop)}", timeout=ENERGY_SECONDS)
        resting = [dict(zip(files, line.split(), strict=False)) for line in idle.out.splitlines()]
        block = self.block(subject, precision, replace(ask, seconds=ENERGY_SECONDS, at_most=90, samples=files))
        watts, reason = gauge_watts(resting, block.samples)
        return (None, reason) if watts is None else (watts * float(np.mean(block.ns)) / 1e9, "")

    def _push(self, subject: Subject) -> None:
        assert subject.exported, f"{subject.name} was not exported"
        for file in FILES.values():
            self._place(subject.exported.path(file))

    def _run(self, subject: Subject, precision: str, ask: Ask) -> tuple[Block, np.ndarray]:
        assert subject.exported
        out = f"{self.session}/out.f32"
        files = {name: self._places[subject.exported.path(file)] for name, file in FILES.items()}
        files |= {"out": out, "pid": f"{self.session}/pid"}
        arguments = ask.arguments(files, subject.exported.shape, precision)
        limit = round(ask.limit)
        command = script("timeout", "-s", "KILL", str(limit), self._places[self.runner], *arguments)
        started = time.monotonic()
        try:
            done = self.device.shell(command, timeout=limit + 20)
        except PhoneError as error:
            if error.kind == "timeout":
                raise PhoneError(f"{subject.name} did not finish in {limit} s on the phone", "timeout") from error
            raise
        if '"end"' not in done.out and '"error"' not in done.out:
            self._explain(done, subject, time.monotonic() - started >= limit - 1, limit)
        block = parse(done.out, ask, subject.name)
        with tempfile.TemporaryDirectory() as folder:
            self.device.pull(out, Path(folder) / "out.f32")
            return block, np.fromfile(Path(folder) / "out.f32", np.float32)

    def _explain(self, done: Done, subject: Subject, late: bool, limit: int) -> None:
        """Say what a status and a few words of the phone's shell mean; returns where they mean nothing."""
        memory = f"it may need {MEMORY_FACTOR * subject.megabytes:.0f} MB"
        meanings = {
            124: f"{subject.name} did not finish in {limit} s on the phone",
            132: f"{subject.name}: the processor lacks an instruction the runner uses; try without fp16, and tell us "
            f"the phone: {self.state.model}",
            137: f"{subject.name} did not finish in {limit} s on the phone"
            if late
            else f"{subject.name} was killed by the phone, most likely for want of memory: {memory}, "
            f"{(self.state.available_kb or 0) / 1e3:.0f} MB were available",
        }
        if done.status in meanings:
            raise PhoneError(meanings[done.status], "timeout" if late or done.status == 124 else "killed")
        self._not_executable(done)

    def _not_executable(self, done: Done) -> None:
        if re.search(r"[Pp]ermission denied", done.err):
            raise PhoneError(f"{FOLDER} does not allow programs to run ({done.err.strip()[-80:]})", "runner")
        if done.status in (1, 126, 127) and re.search(r"not executable|[Ee]xec format|not found|No such", done.err):
            raise PhoneError(
                f"the runner does not start on this phone ({self.state.abi}): {done.err.strip()[-80:]}; "
                "build one for it: make phone-runner", "runner"
            )  # fmt: skip

    def _about(self) -> None:
        done = self.device.shell(script("timeout", "20", self._places[self.runner], "--about"))
        if '"env"' not in done.out:
            self._not_executable(done)
            raise PhoneError(f"the runner does not start on this phone: {done.words[-120:] or done.status}", "runner")

    def _look(self) -> conditions.State:
        found: conditions.State = self._retried(partial(conditions.look, self.device, FOLDER), "looking at the phone")
        return found

    def _settle(self) -> None:
        """Wait for a warm phone, not for ever."""
        started = time.monotonic()
        waited = 0.0
        while why := self._look().warmth():
            if waited >= WARM_WAIT or time.monotonic() - started >= WARM_WAIT:
                raise PhoneError(f"the phone is warm ({why}): waited {WARM_WAIT / 60:.0f} minutes, let it cool", "warm")
            self.say(f"the phone is warm ({why}), waiting")
            self.wait(15)
            waited += 15

    def _place(self, local: Path) -> None:
        """Have a file on the phone under its hash; pushed at most twice, verified there, never half there."""
        wanted = hashlib.sha256(local.read_bytes()).hexdigest()
        remote, part = f"{FOLDER}/{wanted[:20]}", f"{FOLDER}/{wanted[:20]}.part"
        self._places[local] = remote
        if self._hash(remote) == wanted:
            return
        for attempt in (1, 2):
            megabytes = local.stat().st_size / 1e6
            done = self.device.push(local, part, timeout=60 + 2 * megabytes)
            if re.search(r"No space left|Read-only file system|Permission denied", done.words):
                self.device.shell(script("rm", "-f", part))
                why = re.search(r"No space left on device|Read-only file system|Permission denied", done.words)
                raise PhoneError(
                    f"{local.name} ({megabytes:.1f} MB) could not be stored on the phone: {why and why[0]}; "
                    f"{(self.state.free_kb or 0) / 1e3:.0f} MB were free", "space"
                )  # fmt: skip
            if self._hash(part) == wanted:
                self._must(script("mv", "-f", part, remote))
                return
            self.device.shell(script("rm", "-f", part))
            self.say(f"{local.name}: the transfer was damaged" + (", pushed again" if attempt == 1 else ""))
        raise PhoneError(f"{local.name} was damaged twice on its way to the phone; try another cable", "push")

    def _hash(self, remote: str) -> str:
        words = self.device.shell(script("sha256sum", remote), timeout=120).out.split()
        return words[0] if words else ""

    def _must(self, command: str) -> None:
        done = self.device.shell(command)
        if done.status:
            raise PhoneError(f"the phone refused `{command[:60]}`: {done.words[-120:]}", "state")

    def _retried(self, work: Callable[[], Any], what: str) -> Any:
        for attempt in range(RETRIES + 1):
            try:
                return work()
            except PhoneError as error:
                if error.kind != "link" or attempt == RETRIES:
                    raise
                self._lost += 1
                self.say(f"{what}: {error}; retry {attempt + 1}/{RETRIES}")
                if not self.device.back(wait=self.wait):
                    raise
                self.device.shell(self._end_leftover())

    def _end_leftover(self) -> str:
        """Command that ends this session's runner, found by its own process number, and nobody else."""
        pid, session = script(f"{self.session}/pid"), script(self.session.rsplit("/", 1)[1])
        ours = f"p=$(cat {pid}) && grep -q {session} /proc/$p/cmdline && kill -9 $p"
        return f"{{ {ours}; rm -f {pid}; }} 2>/dev/null"


def clean(device: Device) -> str:
    """Remove everything the suite ever put on a phone; what is still running there is ended by its own time limit."""
    kept = device.shell(f"du -sk {script(FOLDER)} 2>/dev/null").out.split()
    done = device.shell(script("rm", "-rf", FOLDER))
    if done.status:
        raise PhoneError(f"{FOLDER} could not be removed: {done.words[-120:]}")
    return f"removed {FOLDER} ({int(kept[0]) / 1e3:.1f} MB)" if kept else f"{FOLDER} was not there"
