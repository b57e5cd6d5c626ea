"""A device for the real adb client: its protocol on a loopback socket, a real shell, faults on demand.

The phone's folder and its /sys and /proc files are folders of this machine: their paths are replaced in commands.
Programs that only Android has (getprop, dumpsys, settings, cmd) are small scripts that print what the test set; the
runner is the program under test, run for real. Nothing a measurement says is made up here.
"""

import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

A_CNXN, A_AUTH, A_OPEN, A_OKAY, A_CLSE, A_WRTE = (int.from_bytes(word, "little") for word in (
    b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE"
))  # fmt: skip
VERSION, MAX_PAYLOAD = 0x01000001, 256 * 1024
SHELL_STDOUT, SHELL_STDERR, SHELL_EXIT = 1, 2, 3
SCRIPTS = {
    "getprop": 'cat "$STATE/props/$1" 2>/dev/null',
    "dumpsys": 'cat "$STATE/dumpsys/$1" 2>/dev/null',
    "settings": 'cat "$STATE/settings/$3" 2>/dev/null || echo null',
    "cmd": 'echo "$@" >> "$STATE/cmd.log"',
    "df": 'echo "Filesystem 1K-blocks Used Available Use% Mounted on"; '
    'echo "/dev/block/dm-5 9000000 1 $(cat "$STATE/free_kb") 1% /data"',
}
STATE = {
    "props/ro.product.manufacturer": "Test",
    "props/ro.product.model": "Loopback",
    "props/ro.product.cpu.abi": "x86_64",
    "props/ro.build.version.release": "15",
    "dumpsys/battery": "  USB powered: true\n  status: 2\n  level: 80\n  temperature: 291\n",
    "dumpsys/thermalservice": "Thermal Status: 0\n",
    "dumpsys/power": "  mWakefulness=Asleep\n",
    "settings/low_power": "0",
    "settings/airplane_mode_on": "1",
    "free_kb": "5000000",
}


@dataclass
class Faults:
    """What goes wrong. Byte counts are of one push or of one command's output; each fault with a count strikes
    ``times`` times.

    Args:
        unauthorized, offline: how the device greets.
        cut_push, cut_output: connection closed after so many bytes.
        cut_before: connection closed just before the chunk that holds these bytes is complete.
        full_after, read_only, corrupt: what happens to a pushed file.
        instead: word of a command -> shell text that runs in place of the program.
    """

    unauthorized: bool = False
    offline: bool = False
    cut_push: int | None = None
    cut_output: int | None = None
    cut_before: bytes | None = None
    full_after: int | None = None
    read_only: bool = False
    corrupt: bool = False
    times: int = 1
    instead: dict[str, str] = field(default_factory=dict)

    def strike(self) -> bool:
        """Whether a fault that was armed strikes once more."""
        self.times -= 1
        return self.times >= 0


class Cut(Exception):
    """The connection ends here."""


class AdbDevice:
    """A device listening on 127.0.0.1; ``serial`` is what adb calls it.

    Args:
        home: a folder of its own; ``home/data/local/tmp`` is the phone's /data/local/tmp.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.faults, self.commands = home, Faults(), list[str]()
        for name, text in STATE.items():
            self.set(name, text)
        (home / "data/local/tmp").mkdir(parents=True)
        (home / "bin").mkdir()
        for name, text in SCRIPTS.items():
            path = home / "bin" / name
            path.write_text(f"#!/bin/sh\nSTATE={home}/state\n{text}\n")
            path.chmod(0o755)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.serial = f"127.0.0.1:{self.port}"
        self._children: list[subprocess.Popen[bytes]] = []
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, name: str, text: str) -> None:
        """Change a piece of the phone's state, a key of ``STATE`` or a path below /sys or /proc."""
        path = self.home / ("fs" if name.startswith(("sys/", "proc/")) else "state") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def path(self, remote: str) -> Path:
        """Where a path of the phone lies on this machine."""
        return Path(self._here(remote))

    def files(self) -> list[str]:
        """Everything under /data/local/tmp, by its path there."""
        root = self.home / "data/local/tmp"
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def running(self) -> list[int]:
        """Process groups that commands started here and that are still alive."""
        return [child.pid for child in self._children if child.poll() is None]

    def cut(self) -> None:
        """Close every connection, as when the cable is pulled; a new one is accepted."""
        for one in self._connections:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._connections.clear()

    def close(self) -> None:
        """End everything that was started here."""
        self.socket.close()
        self.cut()
        for child in self._children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()

    def _here(self, text: str) -> str:
        text = re.sub(r"/data/local/tmp(?=[/\s'\";)]|$)", f"{self.home}/data/local/tmp", text)
        text = re.sub(r"(?<![\w/])/sys/", f"{self.home}/fs/sys/", text)
        return text.replace("/proc/meminfo", f"{self.home}/fs/proc/meminfo")

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=_Session(self, connection).serve, daemon=True).start()


class _Session:
    """One connection: messages in, streams out."""

    def __init__(self, device: AdbDevice, connection: socket.socket) -> None:
        self.device, self.connection = device, connection
        self.lock, self.streams, self.next_id = threading.Lock(), dict[int, "_Stream"](), 1

    def serve(self) -> None:
        try:
            while True:
                command, first, second, payload = self._receive()
                if command in (A_CNXN, A_AUTH):
                    self._greet()
                elif command == A_OPEN:
                    stream = _Stream(self, self.next_id, first, payload.rstrip(b"\0").decode())
                    self.streams[self.next_id] = stream
                    self.next_id += 1
                    threading.Thread(target=stream.run, daemon=True).start()
                elif command == A_WRTE and second in self.streams:
                    self.send(A_OKAY, second, first)
                    self.streams[second].feed(payload)
                elif command == A_OKAY and second in self.streams:
                    self.streams[second].acknowledged.release()
                elif command == A_CLSE and second in self.streams:
                    self.streams.pop(second).end()
        except (OSError, Cut):
            pass
        finally:
            for stream in list(self.streams.values()):
                stream.end()
            self.connection.close()

    def send(self, command: int, first: int, second: int, payload: bytes = b"") -> None:
        header = struct.pack(
            "<6I", command, first, second, len(payload), sum(payload) & 0xFFFFFFFF, command ^ 0xFFFFFFFF
        )
        with self.lock:
            self.connection.sendall(header + payload)

    def drop(self) -> None:
        """Pull the cable."""
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        raise Cut

    def _greet(self) -> None:
        if self.device.faults.offline:
            return
        if self.device.faults.unauthorized:
            self.send(A_AUTH, 1, 0, os.urandom(20))
            return
        banner = (
            b"device::ro.product.name=loopback;ro.product.model=Loopback;ro.product.device=loop;features=shell_v2,cmd"
        )
        self.send(A_CNXN, VERSION, MAX_PAYLOAD, banner)

    def _receive(self) -> tuple[int, int, int, bytes]:
        command, first, second, length, _, _ = struct.unpack("<6I", self._exactly(24))
        return command, first, second, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = self.connection.recv(count - len(data))
            if not chunk:
                raise Cut
            data += chunk
        return data


class _Stream:
    """One service: a shell command or a file transfer."""

    def __init__(self, session: _Session, ours: int, theirs: int, service: str) -> None:
        self.session, self.ours, self.theirs, self.service = session, ours, theirs, service
        self.device, self.faults = session.device, session.device.faults
        self.acknowledged, self.arrived = threading.Semaphore(0), threading.Condition()
        self.incoming, self.over = b"", False

    def run(self) -> None:
        kind, _, rest = self.service.partition(":")
        self.session.send(A_OKAY, self.ours, self.theirs)
        try:
            if kind.startswith(("shell", "exec")):
                self._shell(rest, ",v2" in kind)
            elif kind == "sync":
                self._sync()
            self.session.send(A_CLSE, self.ours, self.theirs)
        except (OSError, Cut):
            pass

    def feed(self, payload: bytes) -> None:
        with self.arrived:
            self.incoming += payload
            self.arrived.notify_all()

    def end(self) -> None:
        with self.arrived:
            self.over = True
            self.arrived.notify_all()
        self.acknowledged.release()

    def _write(self, payload: bytes) -> None:
        for start in range(0, len(payload), MAX_PAYLOAD):
            self.session.send(A_WRTE, self.ours, self.theirs, payload[start : start + MAX_PAYLOAD])
            self.acknowledged.acquire()
            if self.over:
                raise Cut

    def _read(self, count: int) -> bytes:
        with self.arrived:
            while len(self.incoming) < count:
                if self.over:
                    raise Cut
                self.arrived.wait()
            data, self.incoming = self.incoming[:count], self.incoming[count:]
            return data

    def _shell(self, command: str, packets: bool) -> None:
        self.device.commands.append(command)
        real = self.device._here(command)
        for word, text in self.faults.instead.items():
            if word in command:
                real = text if "timeout" not in command else f"timeout -s KILL {self._seconds(command)} sh -c '{text}'"
        path = f"{self.device.home / 'bin'}:{os.environ['PATH']}"
        child = subprocess.Popen(
            ["/bin/sh", "-c", real], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, cwd=self.device.home, env={**os.environ, "PATH": path},
        )  # fmt: skip
        self.device._children.append(child)
        errors: list[bytes] = []
        reader = threading.Thread(target=lambda: errors.append(child.stderr.read() if child.stderr else b""))
        reader.start()
        sent = 0
        while chunk := os.read(child.stdout.fileno(), 16384):  # type: ignore[union-attr]
            sent += len(chunk)
            limit, mark = self.faults.cut_output, self.faults.cut_before
            if limit is not None and "--param" in command and sent > limit and self.faults.strike():
                self._write(_packet(SHELL_STDOUT, chunk[: max(0, len(chunk) - (sent - limit))]))
                self.session.drop()
            if mark and "--param" in command and mark in chunk and self.faults.strike():
                self._write(_packet(SHELL_STDOUT, chunk[: chunk.index(mark) + len(mark) // 2]))
                self.session.drop()
            self._write(_packet(SHELL_STDOUT, chunk) if packets else chunk)
        reader.join()
        status = child.wait()
        if errors[0]:
            self._write(_packet(SHELL_STDERR, errors[0]) if packets else errors[0])
        if packets:
            self._write(_packet(SHELL_EXIT, bytes([status if status >= 0 else 128 - status])))

    def _seconds(self, command: str) -> str:
        found = re.search(r"timeout -s KILL (\d+)", command)
        return found[1] if found else "20"

    def _sync(self) -> None:
        while True:
            word, length = struct.unpack("<4sI", self._read(8))
            if word == b"QUIT":
                return
            name = self._read(length).decode()
            if word == b"STAT":
                path = self.device.path(name)
                found = path.stat() if path.exists() else None
                values = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
                self._write(struct.pack("<4s3I", b"STAT", *values))
            elif word == b"RECV":
                self._give(self.device.path(name))
            elif word == b"SEND":
                self._take(self.device.path(name.rsplit(",", 1)[0]))

    def _give(self, path: Path) -> None:
        if not path.is_file():
            self._fail(b"No such file or directory")
            return
        data = path.read_bytes()
        for start in range(0, len(data), 65536):
            chunk = data[start : start + 65536]
            self._write(struct.pack("<4sI", b"DATA", len(chunk)) + chunk)
        self._write(struct.pack("<4sI", b"DONE", 0))

    def _take(self, path: Path) -> None:
        data, failed = b"", b"Read-only file system" if self.faults.read_only else b""
        while True:
            word, length = struct.unpack("<4sI", self._read(8))
            if word == b"DONE":
                break
            data += self._read(length)
            if self.faults.cut_push is not None and len(data) > self.faults.cut_push and self.faults.strike():
                path.write_bytes(data)
                self.session.drop()
            if self.faults.full_after is not None and len(data) > self.faults.full_after:
                failed, data = b"No space left on device", data[: self.faults.full_after]
        if self.faults.corrupt and self.faults.strike():
            data = data[:-1] + bytes([data[-1] ^ 1])
        if not self.faults.read_only:
            path.write_bytes(data)
            path.chmod(path.stat().st_mode | stat.S_IRUSR)
        if failed:
            self._fail(failed)
        else:
            self._write(struct.pack("<4sI", b"OKAY", 0))

    def _fail(self, why: bytes) -> None:
        self._write(struct.pack("<4sI", b"FAIL", len(why)) + why)


def _packet(kind: int, data: bytes) -> bytes:
    return struct.pack("<BI", kind, len(data)) + data


def wheel_runner(folder: Path) -> Path:
    """A program that keeps the runner's contract by the ncnn package, to be pushed like the real one."""
    path = folder / "runner"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m shrinkbook.measure.wheel_runner "$@"\n')
    path.chmod(0o755)
    return path


def wait_until(true: object, seconds: float = 10) -> bool:
    """Whether a callable becomes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False
