"""Strangers' code runs in a box: bubblewrap's namespaces, limits on what it takes, and a keeper that ends it.

Inside are the interpreter with its packages and a laid-out library, read-only, an empty home in memory, and the folder
of the kernel's sockets; no network, no other process, no file of the host's user. ``python -m
shrinkbook.course.sandbox REQUEST`` is the keeper of one kernel: it starts the box and watches it from outside.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

import shrinkbook
from shrinkbook.experiments import profiles

HOME = "/home/student"
LAUNCHER = Path(__file__).with_name("launch.py")
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/fonts")
UIDS = range(60_000, 65_000)  # one of these runs the kernel where the grader is root
MIB = 1 << 20
PERIOD = 0.1  # seconds between two looks of the keeper
FLOOR = 256 * MIB  # of the machine's free memory; below it the box goes, whoever took the rest
SOCKETS = 64  # files the kernel may have beside its sockets, and as many KiB
SHARED = "/dev/shm"  # where the folder of the sockets lies: what is hidden in it is memory, which has a limit, not disk


@dataclass(frozen=True)
class Limits:
    """What a submission may take.

    Args:
        cell: seconds a cell may run before it is interrupted.
        notebook: seconds from the start of the kernel to its end; also the CPU seconds of each of its processes.
        memory: MiB of all its processes together; what one of them asks beyond that fails as MemoryError.
        processes: processes and threads at one time.
        files: MiB of a file, and of the home, of /tmp and of /dev/shm.
        printed: MiB of output that are kept.
    """

    cell: int = 60
    notebook: int = 600
    memory: int = 3072
    processes: int = 96
    files: int = 64
    printed: int = 2


def missing() -> str:
    """Why no box can be made here, empty if one can: one line with the remedy."""
    if shutil.which("bwrap") is None:
        return (
            "grading runs strangers' code and needs bubblewrap for it: install the system's package `bubblewrap` "
            "(Linux only), or grade with UNSAFE=1, unprotected"
        )
    with tempfile.TemporaryDirectory(prefix="shrinkbook-box-") as folder:
        words = [*_walls(Path(folder), Path(folder)), sys.executable, "-c", "pass"]
        done = subprocess.run(words, env=_path(), capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    return (
        f"bubblewrap cannot make a sandbox here ({(done.stderr.strip().splitlines() or ['no reason given'])[-1]}): "
        "allow unprivileged user namespaces (or, in a container, run it with them), or grade with UNSAFE=1, unprotected"
    )


def inside(library: Path, sockets: Path, limits: Limits, safe: bool, uid: int) -> list[str]:
    """The command that runs a kernel in a box.

    Args:
        library: laid out by :mod:`shrinkbook.course.layout`.
        sockets: folder of ``kernel.json`` and of the sockets; the only one outside the box that the kernel can
            write to.
        safe: False runs it without walls, under the limits only.
        uid: who it runs as, or -1 for whoever runs this.
    """
    megabytes = {"DATA": limits.memory * MIB, "FSIZE": limits.files * MIB}
    counts = {"NPROC": limits.processes, "CPU": limits.notebook, "NOFILE": 512, "CORE": 0}
    rules = [f"{name}={value}" for name, value in {**megabytes, **counts}.items()]
    where = ["/launch.py" if safe else str(LAUNCHER), str(uid), "5", str(sockets / "kernel.json"), *rules]
    return [*(_walls(library, sockets) if safe else []), sys.executable, *where]


def environment(library: Path, home: str) -> dict[str, str]:
    """All variables that a student's code sees."""
    return {
        **profiles.environment("quick"),
        **_path(),
        "HOME": home,
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(library),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",  # nbgrader takes a warning for a failed check
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "IPYTHONDIR": f"{home}/.ipython",
        "JUPYTER_NO_CONFIG": "1",
    }


def _path() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin"}


def _walls(library: Path, sockets: Path) -> list[str]:
    """bwrap and its options: what is to be seen, and nothing else."""
    words = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--die-with-parent", "--new-session", "--hostname", "course", "--clearenv"]
    if os.getuid() == 0:  # no user namespace: the launcher becomes another user, whose processes are counted
        words += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        words += ["--unshare-user", "--disable-userns"]
    for name, value in environment(Path("/library"), HOME).items():
        words += ["--setenv", name, value]
    for place in SYSTEM:
        words += ["--ro-bind-try", place, place]
    words += ["--proc", "/proc", "--dev", "/dev"]
    for place in ("/dev/shm", "/tmp", HOME):
        words += ["--perms", "1777", "--size", str(Limits.files * MIB), "--tmpfs", place]
    for folder in _interpreter():
        words += [*_way_to(folder), "--ro-bind", str(folder), str(folder)]
    own = Path(shrinkbook.__file__).parent
    if any(own.is_relative_to(place) for place in _interpreter()):  # installed among the packages: answers and all
        words += ["--tmpfs", str(own)]
    words += ["--ro-bind", str(LAUNCHER), "/launch.py", "--ro-bind", str(library), "/library"]
    return [*words, *_way_to(sockets), "--bind", str(sockets), str(sockets), "--remount-ro", "/", "--chdir", HOME]


def _way_to(place: Path) -> list[str]:
    """Folders above a mount, which bwrap would make for root alone."""
    return [word for parent in reversed(place.parents[:-1]) for word in ("--perms", "0755", "--dir", str(parent))]


def _interpreter() -> list[Path]:
    """Folders of this interpreter and of its packages, without those of the library itself."""
    own = Path(shrinkbook.__file__).parent.parent
    asked = [
        sys.base_prefix,
        sys.prefix,
        *(one for one in sys.path if "site-packages" in one or "dist-packages" in one),
    ]
    places = dict.fromkeys(Path(one).resolve() for one in asked if one and Path(one).is_dir())
    return [one for one in places if one != own and not any(one.is_relative_to(system) for system in SYSTEM)]


def shown(place: Path) -> bool:
    """Whether a file or folder lies in what every box shows."""
    return any(place.resolve().is_relative_to(one) for one in [*map(Path, SYSTEM), *_interpreter()])


@dataclass
class Request:
    """What the keeper is asked: paths as text."""

    folder: str
    library: str
    safe: bool
    limits: Limits

    def write(self) -> Path:
        """Put it where the keeper reads it, beside the folder of the sockets."""
        path = Path(self.folder) / "request.json"
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> "Request":
        """The request in a file."""
        asked = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**asked, "limits": Limits(**asked["limits"])})


def keep(request: Request) -> int:
    """Run one kernel to its end, or end it; why it was ended stands in ``ended`` in the request's folder."""
    folder, limits = Path(request.folder), request.limits
    sockets, home = folder / "sockets", folder / "home"
    uid = UIDS[os.getpid() % len(UIDS)] if os.getuid() == 0 and request.safe else -1
    for place in (sockets, sockets / "kernel.json"):
        os.chown(place, uid, uid, follow_symlinks=False)
    variables = _path()
    if not request.safe:
        home.mkdir()
        variables = environment(Path(request.library), str(home))
    with (folder / "errors").open("wb") as errors:
        box = subprocess.Popen(
            inside(Path(request.library), sockets, limits, request.safe, uid),
            env=variables,
            cwd=home if not request.safe else "/",
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
        )
        end, shared = time.monotonic() + limits.notebook, psutil.virtual_memory().shared
        while box.poll() is None:
            reason = "time" if time.monotonic() > end else _excess(box.pid, sockets, limits, shared)
            if reason:
                (folder / "ended").write_text(reason, encoding="utf-8")
                for one in _family(box.pid):
                    with suppress(psutil.Error):
                        one.kill()
            time.sleep(PERIOD)
    return box.returncode


def _excess(pid: int, sockets: Path, limits: Limits, shared: int) -> str:
    """What the box takes too much of, or nothing; ``shared`` is the machine's shared memory when it began."""
    memory = psutil.virtual_memory()
    if memory.available < FLOOR or memory.shared - shared > limits.memory * MIB:  # files in memory are no process's own
        return "memory"
    if _memory(pid, "rss") > limits.memory * MIB and _memory(pid, "pss") > limits.memory * MIB:
        return "memory"  # by pss a page that several share counts once; it takes longer to read
    size = 0
    try:
        for count, entry in enumerate(os.scandir(sockets)):
            with suppress(FileNotFoundError):
                size += entry.stat(follow_symlinks=False).st_size
            if count > SOCKETS or size > SOCKETS * 1024 or entry.is_dir(follow_symlinks=False):
                return "files"  # what a folder holds would be counted nowhere
    except PermissionError:  # taken away by the kernel, which runs as the keeper does
        return "files"
    return ""


def _memory(pid: int, kind: str) -> int:
    """Bytes of a process and its descendants; of one that hides its ``pss``, which it may, all of its ``rss``."""
    taken = 0
    for one in _family(pid):
        with suppress(psutil.NoSuchProcess):
            try:
                taken += getattr(one.memory_info() if kind == "rss" else one.memory_full_info(), kind)
            except psutil.AccessDenied:
                taken += one.memory_info().rss
    return taken


def _family(pid: int) -> list[psutil.Process]:
    """A process and its descendants, as far as they still are."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.Error:
        return []


if __name__ == "__main__":
    sys.exit(keep(Request.read(Path(sys.argv[1]))))
