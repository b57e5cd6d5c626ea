"""The adb client as a child process: where it is, which devices it sees, and what its complaints mean for a person.

Exit codes of adb are not to be trusted (a failed ``connect`` is 0, a cut ``shell`` may be), so its words are read too.
Whatever reaches the device's shell is quoted by :func:`script`; serial numbers are arguments, never part of a script.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shrinkbook.measure.protocol import PhoneError

SERIAL = re.compile(r"[A-Za-z0-9_.\[\]%][A-Za-z0-9_.:\[\]%-]*")
NETWORK = re.compile(r"(\[[0-9A-Fa-f:%a-z]+\]|[A-Za-z0-9_.-]+):\d{1,5}")
NONE = (
    "no phone: plug it in, switch on USB debugging (Settings, Developer options) and accept the dialog on it; over "
    "Wi-Fi, PHONE=ADDRESS:PORT"
)
LOST = re.compile(
    r"^(adb: )?error: .*(device .*not found|device offline|no devices|unauthorized|closed|protocol fault|"
    r"reset by peer|failed to read|couldn't read from device|EOF).*$",
    re.MULTILINE,
)
STATES = {
    "unauthorized": 'unlock the phone and tap "Allow USB debugging" for this computer, then run again',
    "authorizing": 'unlock the phone and tap "Allow USB debugging" for this computer, then run again',
    "offline": "plug it in again, or `adb reconnect`; over Wi-Fi, is it the same network?",
    "no permissions": "this user may not open the USB device: apt install android-sdk-platform-tools-common, join the "
    "group plugdev, plug it in again",
    "recovery": "the phone is in recovery mode; start it normally",
    "bootloader": "the phone is in its boot loader; start it normally",
    "sideload": "the phone is in sideload mode; start it normally",
}


@dataclass(frozen=True)
class Seen:
    """One line of ``adb devices -l``."""

    serial: str
    state: str
    model: str


@dataclass(frozen=True)
class Done:
    """What a command gave."""

    status: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """Both streams, for recognising complaints: versions of adb differ in which one they use."""
        return f"{self.out}\n{self.err}".strip()


def find_adb() -> str:
    """The adb to use: ``$ADB``, the one on PATH, the SDK's, or the one inside the package adbutils.

    Raises:
        PhoneError: there is none.
    """
    if given := os.environ.get("ADB"):
        if not shutil.which(given):
            raise PhoneError(f"ADB={given} is not a program that can be run")
        return given
    package = importlib.util.find_spec("adbutils")
    bundled = [Path(place) / "binaries" / "adb" for place in (package and package.submodule_search_locations) or ()]
    homes = [Path(os.environ[name]) / "platform-tools" / "adb" for name in ("ANDROID_HOME",) if os.environ.get(name)]
    for candidate in (shutil.which("adb"), *homes, *bundled):
        if candidate and os.access(candidate, os.X_OK):
            return str(candidate)
    raise PhoneError(
        "adb not found: apt install adb, or make phone-extra (brings one), or set ADB=...; without a phone the host is "
        "measured instead"
    )


def script(*words: str) -> str:
    """Words as one command for the device's shell, each quoted."""
    return shlex.join(words)


class Adb:
    """One adb client program and the server it talks to.

    Args:
        binary: path of adb.
        timeout: seconds for commands that should take a moment.
    """

    def __init__(self, binary: str | None = None, timeout: float = 30) -> None:
        self.binary, self.timeout = binary or find_adb(), timeout
        self._restarted = False

    def __call__(self, *arguments: str, timeout: float | None = None) -> Done:
        """Run adb; once in its life, restart a server that does not answer.

        Raises:
            PhoneError: of kind ``timeout``, or ``server`` when the server cannot be started.
        """
        done = self._run(arguments, timeout or self.timeout)
        if done.status and re.search(r"cannot connect to daemon|failed to (check|start) (server|daemon)|"
                                     r"cannot start server|could not install \*smartsocket\*", done.words):  # fmt: skip
            if not self._restarted:
                self._restarted = True
                self._run(("start-server",), self.timeout)
                return self(*arguments, timeout=timeout)
            last = done.words.splitlines()[-1]
            raise PhoneError(f"adb's server does not answer, restarted once ({last}); try `adb kill-server`", "server")
        return done

    def devices(self) -> list[Seen]:
        """Every device in any state; nothing on them is touched."""
        found = []
        for line in self("devices", "-l").out.splitlines():
            match = re.match(r"(\S+)\s+(no permissions|\S+)(.*)", line)
            if match and not line.startswith(("List of", "*")):
                model = re.search(r"model:(\S+)", match[3])
                found.append(Seen(match[1], match[2], model[1] if model else ""))
        return found

    def choose(self, wanted: str) -> str:
        """The serial number of the device to use.

        Args:
            wanted: a serial number, ADDRESS:PORT (connected if need be), or ``auto`` for the only one.

        Raises:
            PhoneError: none, several, or one that is not ready.
        """
        if wanted != "auto" and not SERIAL.fullmatch(wanted):
            raise PhoneError(f"{wanted!r} is no serial number; `shrinkbook phone list` shows them")
        seen = {one.serial: one for one in self.devices()}
        if wanted == "auto":
            ready = [serial for serial, one in seen.items() if one.state == "device"]
            if len(ready) > 1:
                raise PhoneError(f"several phones: {', '.join(ready)}; choose one with PHONE=SERIAL")
            if not seen:
                raise PhoneError(NONE)
            wanted = ready[0] if ready else next(iter(seen))
        if NETWORK.fullmatch(wanted) and (wanted not in seen or seen[wanted].state == "offline"):
            self.connect(wanted)
            seen = {one.serial: one for one in self.devices()}
        if wanted not in seen:
            known = ", ".join(seen) or "none at all"
            raise PhoneError(f"no phone with serial number {wanted}; adb sees {known}")
        self._ready(seen[wanted])
        return wanted

    def connect(self, address: str) -> None:
        """Connect to ADDRESS:PORT; adb's exit code says nothing, its words do.

        Raises:
            PhoneError: nothing answers, or the phone wants to be asked first.
        """
        words = self("connect", address, timeout=max(self.timeout, 20)).words
        if "failed to authenticate" in words:
            raise PhoneError(f"{address}: {STATES['unauthorized']}")
        if "connected to" not in words:
            why = words.splitlines()[-1] if words else "no word"
            raise PhoneError(f"nothing answers at {address} ({why}); is wireless debugging on, the same network?")

    def _ready(self, one: Seen) -> None:
        if one.state != "device":
            remedy = next((text for state, text in STATES.items() if one.state.startswith(state)), "start it again")
            raise PhoneError(f"{one.serial} is {one.state}: {remedy}")

    def _run(self, arguments: Sequence[str], timeout: float) -> Done:
        try:
            done = subprocess.run(
                [self.binary, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout
            )
        except subprocess.TimeoutExpired as error:
            raise PhoneError(f"adb {arguments[0]} did not end within {timeout:g} s", "timeout") from error
        except OSError as error:
            raise PhoneError(f"{self.binary} cannot be run ({error.strerror})") from error
        return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


class Device:
    """One chosen device."""

    def __init__(self, adb: Adb, serial: str) -> None:
        self.adb, self.serial = adb, serial

    def shell(self, command: str, timeout: float | None = None) -> Done:
        """Run one command line on the device; build it with :func:`script`.

        Raises:
            PhoneError: of kind ``link`` where the device is gone, ``timeout``.
        """
        return self._link(self.adb("-s", self.serial, "shell", command, timeout=timeout))

    def push(self, local: Path, remote: str, timeout: float) -> Done:
        """Copy a file to the device; judge by the hash there, not by this."""
        return self._link(self.adb("-s", self.serial, "push", str(local), remote, timeout=timeout))

    def pull(self, remote: str, local: Path, timeout: float = 60) -> None:
        """Copy a file from the device."""
        done = self._link(self.adb("-s", self.serial, "pull", remote, str(local), timeout=timeout))
        if done.status or not local.exists():
            raise PhoneError(f"{remote} could not be fetched: {done.words.splitlines()[-1]}", "link")

    def alive(self) -> bool:
        """Whether adb has the device ready."""
        return self.adb("-s", self.serial, "get-state").out.strip() == "device"

    def back(self, seconds: float = 15, wait: Callable[[float], None] = time.sleep) -> bool:
        """Wait for a device that went away, connecting again where it is on a network."""
        deadline = time.monotonic() + seconds
        while True:
            if self.alive():
                return True
            if time.monotonic() > deadline:
                return False
            wait(0.5)
            if NETWORK.fullmatch(self.serial):
                self.adb("connect", self.serial, timeout=max(self.adb.timeout, 20))

    def _link(self, done: Done) -> Done:
        if done.status and (lost := LOST.search(done.err)):
            raise PhoneError(f"the connection to {self.serial} was lost ({lost[0]})", "link")
        return done
