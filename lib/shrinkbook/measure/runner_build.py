"""The runner for a processor: a binary that was given, one built before, or a build from pinned sources.

No Android NDK is needed: the runner is static, so it takes nothing from the phone but the kernel. A build is done once
for each processor, compiler and source; its place in the cache is the hash of all three.
"""

import argparse
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from shrinkbook.measure.protocol import PhoneError

SOURCES = Path(__file__).parent / "runner"
NCNN = "ncnn-1.0.20261020"
NCNN_SHA256 = "ad8cdd63e9755cfa8e23b9b6d9ce46156077d80298a89e7c3ba325ffccfca200"
NCNN_URL = (
    "https://files.pythonhosted.org/packages/b7/50/32b5172afe7d3e0dce410b7d8f4a5b7b84b942a0d69affbaedf669de52bc/"
    f"{NCNN}.tar.gz"
)
"""Tencent's ncnn as the Python package index holds it (BSD 3-clause). pip cannot fetch it, since its build changes its
own version."""
MACHINES = {"aarch64": 183, "x86_64": 62}  # e_machine of ELF
ZIG_TARGETS = {"aarch64": "aarch64-linux-musl", "x86_64": "x86_64-linux-musl"}
ZIG_WRAPPER = """#!{python}
import os, re, sys
def word(text):  # zig has -mcpu where gcc has -march
    march = re.fullmatch(r"-march=armv([\\d.]+)-a(.*)", text)
    if not march:
        return text
    return f"-mcpu=generic+v{{march[1].replace('.', '_')}}a" + re.sub(r"\\+fp16(?=\\+|$)", "+fullfp16", march[2])
words = [word(text) for text in sys.argv[1:]]
os.execv({python!r}, [{python!r}, "-m", "ziglang", {kind!r}, "-target", {target!r}, *words])
"""

Say = Callable[[str], None]


def runner(machine: str, cache: Path, say: Say = print) -> Path:
    """The runner's program for ``aarch64`` or ``x86_64``.

    ``RUNNER`` names a binary; else one built before with today's sources is used; else it is built, with the compiler
    named in ``CXX``, a cross compiler on PATH, or zig from the package ziglang.

    Raises:
        PhoneError: the given binary is for another processor, there is no compiler, or the build failed.
    """
    if given := os.environ.get("RUNNER"):
        return checked(Path(given), machine)
    command, target = compiler(machine)
    recipe = "".join(path.read_text() for path in sorted(SOURCES.iterdir()) if path.is_file())
    key = hashlib.sha256(f"{NCNN_SHA256} {machine} {command} {recipe}".encode()).hexdigest()[:16]
    built = cache / f"runner-{machine}-{key}"
    return built if built.exists() else _build(machine, command, target, built, say)


def checked(path: Path, machine: str) -> Path:
    """A binary that runs on this processor; a script (for tests) is taken as it is.

    Raises:
        PhoneError: it does not exist, or is for another processor.
    """
    try:
        head = path.read_bytes()[:20]
    except OSError as error:
        raise PhoneError(f"RUNNER={path} cannot be read ({error.strerror})") from error
    if head.startswith(b"#!"):
        return path
    found = int.from_bytes(head[18:20], "little") if head.startswith(b"\x7fELF") else None
    if found != MACHINES[machine]:
        kind = next((name for name, number in MACHINES.items() if number == found), "no Linux program")
        raise PhoneError(f"RUNNER={path} is {kind}, the phone needs {machine}")
    return path


def compiler(machine: str) -> tuple[str, str]:
    """The C++ compiler for a processor, and zig's name of the processor where it is zig.

    Raises:
        PhoneError: there is none; the message says which to install.
    """
    if given := os.environ.get("CXX"):
        return given, ""
    native = machine == platform.machine()
    for name in (f"{machine}-linux-gnu-g++", *(("g++", "clang++") if native else ())):
        if shutil.which(name):
            return name, ""
    if importlib.util.find_spec("ziglang"):
        return "zig", ZIG_TARGETS[machine]
    package = f"g++-{machine.replace('_', '-')}-linux-gnu"
    raise PhoneError(
        f"building the phone's runner needs a compiler for {machine}: apt install {package}, "
        f"or {Path(sys.executable).name} -m pip install ziglang (0.1 GB), or CXX=...; or give a binary with RUNNER="
    )


def fetch_sources(cache: Path, say: Say) -> Path:
    """ncnn's sources, unpacked; downloaded once, their hash checked before they are touched.

    ``NCNN_SOURCE`` names the archive, a file or an address, where this machine cannot fetch it from the index.
    """
    folder, archive = cache / NCNN, cache / f"{NCNN}.tar.gz"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        url = os.environ.get("NCNN_SOURCE") or NCNN_URL
        say(f"fetching {NCNN} (5.5 MB)")
        try:
            data = Path(url).read_bytes() if Path(url).exists() else urllib.request.urlopen(url, timeout=60).read()
        except (OSError, ValueError) as error:
            raise PhoneError(f"{NCNN}.tar.gz could not be fetched ({error}); NCNN_SOURCE=FILE names it") from error
        _write(archive, data)
    if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != NCNN_SHA256:
        archive.unlink()
        raise PhoneError(f"{NCNN}.tar.gz has SHA-256 {found}, not {NCNN_SHA256}: it was thrown away, try again")
    part = cache / f".{NCNN}.{os.getpid()}"
    with tarfile.open(archive) as tar:
        tar.extractall(part, filter="data")
    (part / NCNN).rename(folder)
    part.rmdir()
    return folder


def _build(machine: str, command: str, target: str, built: Path, say: Say) -> Path:
    if not shutil.which("cmake"):
        raise PhoneError("building the phone's runner needs cmake: apt install cmake, or pip install cmake")
    cache = built.parent
    source, folder = fetch_sources(cache, say), cache / f"build-{built.name}"
    say(f"building the runner for {machine} with {command}: about ten minutes, once")
    started = time.monotonic()
    if target:
        cxx, cc = (_wrapper(cache / f"zig-{kind.replace('+', 'x')}-{machine}", kind, target) for kind in ("c++", "cc"))
    else:
        cxx, cc = command, command.replace("clang++", "clang").replace("g++", "gcc").replace("c++", "cc")
    options = {
        "NCNN_SOURCE": source, "CMAKE_CXX_COMPILER": cxx, "CMAKE_C_COMPILER": cc,
        "RUNNER_SIMPLEOMP": "ON" if target else "OFF", "CMAKE_BUILD_TYPE": "Release",
        "NCNN_VERSION": NCNN.rsplit(".", 1)[1],  # it would name itself after today otherwise
    }  # fmt: skip
    if machine != platform.machine():
        options |= {"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": machine}
    configure = [
        "cmake",
        "-S",
        str(SOURCES),
        "-B",
        str(folder),
        *(f"-D{key}={value}" for key, value in options.items()),
    ]
    jobs = os.environ.get("JOBS") or str(os.cpu_count() or 1)
    for step in (configure, ["cmake", "--build", str(folder), "--target", "runner", "-j", jobs]):
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            log = folder.with_suffix(".log")
            _write(log, (done.stdout + done.stderr).encode())
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
            raise PhoneError(f"the runner could not be built ({last}); everything it said is in {log}")
    _write(built, (folder / "runner").read_bytes(), 0o755)
    shutil.rmtree(folder)
    say(f"built {built} in {time.monotonic() - started:.0f} s")
    return checked(built, machine)


def _wrapper(path: Path, kind: str, target: str) -> str:
    text = ZIG_WRAPPER.format(python=sys.executable, kind=kind, target=target)
    _write(path, text.encode(), 0o755)
    return str(path)


def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.chmod(mode)
    part.replace(path)


def main() -> int:
    """``python -m shrinkbook.measure.runner_build MACHINE CACHE``: what ``make phone-runner`` calls."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("machine", choices=sorted(MACHINES))
    parser.add_argument("cache", type=Path)
    options = parser.parse_args()
    try:
        print(runner(options.machine, options.cache))
    except PhoneError as error:
        print(f"shrinkbook: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
