"""The runner: what both of its forms promise, how it is found or built, and, where it was built, that it computes."""

import hashlib
import io
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from shrinkbook.evidence import store
from shrinkbook.experiments.networks import NETS
from shrinkbook.measure import runner_build, wheel_runner
from shrinkbook.measure.blocks import Subject
from shrinkbook.measure.export import export, missing
from shrinkbook.measure.host import Host
from shrinkbook.measure.protocol import Ask, PhoneError
from shrinkbook.nets import initialize

needs_extra = pytest.mark.skipif(bool(missing()), reason=missing() or "installed")
SOURCE = (runner_build.SOURCES / "runner.cpp").read_text()
PARAM = """7767517
3 3
Input                    in0                      0 1 in0
Split                    split                    1 2 in0 a b
{}
"""


def test_both_forms_know_the_same_options_and_statuses() -> None:
    words = re.search(r"words = \{(.*?)\};", SOURCE, re.DOTALL)
    assert words
    cpp = dict(re.findall(r'\{"([\w-]+)", "([\d.]*)"\}', words[1]))
    ours = vars(wheel_runner._options(["--about"]))
    python = {{"input": "in"}.get(name, name).replace("_", "-"): value for name, value in ours.items()}
    assert cpp.keys() == python.keys() - {"about", "sample"}
    assert all(float(cpp[name] or 0) == float(value or 0) for name, value in python.items() if name in cpp)
    found = {what: int(status) for what, status in re.findall(r'fail\("(\w+)", (\d)', SOURCE)}
    assert found == {what: status for what, status in wheel_runner.CODES.items() if what in found}
    assert set(re.findall(r'\\"event\\":\\"(\w+)\\"', SOURCE)) == {
        "env", "load", "calibration", "warmup", "run", "sample", "end", "error"
    }  # fmt: skip


def test_channels_that_the_first_layer_reads() -> None:
    layers = {
        "Convolution c 1 1 a c 0=16 1=3 11=3 5=1 6=432": 3,
        "Convolution c 1 1 a c 0=16 1=7 6=2352": 3,
        "Convolution c 1 1 a c 0=8 1=1 11=5 6=40": 1,
        "Pooling p 1 1 a p 0=1": None,
        "Convolution c 1 1 other c 0=16 1=3 6=432": None,
    }
    for line, channels in layers.items():
        assert wheel_runner.channels_of(PARAM.format(line)) == channels, line


@needs_extra
def test_mistakes_have_a_status_and_one_error_line(tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, dict[str, str]]:
        command = [sys.executable, "-m", "shrinkbook.measure.wheel_runner", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, json.loads(done.stdout.splitlines()[-1])

    (tmp_path / "x").write_text(PARAM.format("Nonsense n 1 1 a c"))
    files = [word for name in ("param", "bin", "in", "out") for word in (f"--{name}", str(tmp_path / "x"))]
    assert run("--loops", "many")[0] == 2
    assert run("--param", "x")[1]["message"].startswith("missing: ")
    assert run(*files, "--shape", "3,8")[1]["message"] == "--shape 3,8: want C,H,W"
    assert run(*files, "--shape", "1,1,1")[0] == 4
    np.zeros(1, np.float32).tofile(tmp_path / "image")
    files[5] = str(tmp_path / "image")
    status, error = run(*files, "--shape", "1,1,1")
    assert (status, error["what"]) == (3, "model")
    assert run("--about")[1]["event"] == "env"


# finding and building it


def elf(path: Path, machine: int) -> Path:
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(11) + machine.to_bytes(2, "little") + bytes(44))
    return path


def test_a_given_binary_must_be_for_the_phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER", str(elf(tmp_path / "arm", 183)))
    assert runner_build.runner("aarch64", tmp_path) == tmp_path / "arm"
    with pytest.raises(PhoneError, match=r"RUNNER=.*arm is aarch64, the phone needs x86_64"):
        runner_build.runner("x86_64", tmp_path)
    (tmp_path / "text").write_text("no program")
    monkeypatch.setenv("RUNNER", str(tmp_path / "text"))
    with pytest.raises(PhoneError, match="is no Linux program, the phone needs aarch64"):
        runner_build.runner("aarch64", tmp_path)
    monkeypatch.setenv("RUNNER", str(tmp_path / "nowhere"))
    with pytest.raises(PhoneError, match="cannot be read"):
        runner_build.runner("aarch64", tmp_path)


def test_without_a_compiler_the_message_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNNER", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(runner_build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PhoneError, match=r"apt install g\+\+-aarch64-linux-gnu, or .* pip install ziglang .* RUNNER="):
        runner_build.runner("aarch64", tmp_path)
    monkeypatch.setenv("CXX", "some-g++")
    with pytest.raises(PhoneError, match="needs cmake"):
        runner_build.runner("aarch64", tmp_path)


def archive(path: Path) -> str:
    """A small archive in place of ncnn's sources; returns its hash."""
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(f"{runner_build.NCNN}/CMakeLists.txt")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"text"))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_sources_are_checked_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCNN_SOURCE", str(tmp_path / "given.tar.gz"))
    right = archive(tmp_path / "given.tar.gz")
    said: list[str] = []
    cache = tmp_path / "cache"
    with pytest.raises(PhoneError, match=f"has SHA-256 {right}, not ad8cdd63.*thrown away"):
        runner_build.fetch_sources(cache, said.append)
    assert not list(cache.iterdir())
    monkeypatch.setattr(runner_build, "NCNN_SHA256", right)
    folder = runner_build.fetch_sources(cache, said.append)
    assert (folder / "CMakeLists.txt").read_text() == "text"
    monkeypatch.setenv("NCNN_SOURCE", str(tmp_path / "gone"))
    assert runner_build.fetch_sources(cache, said.append) == folder


@pytest.mark.skipif(not shutil.which("cmake") or not shutil.which("g++"), reason="needs cmake and g++")
def test_a_build_that_fails_leaves_a_log_and_no_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNNER", raising=False)
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setenv("NCNN_SOURCE", str(tmp_path / "given.tar.gz"))
    monkeypatch.setattr(runner_build, "NCNN_SHA256", archive(tmp_path / "given.tar.gz"))
    said: list[str] = []
    with pytest.raises(PhoneError, match=r"could not be built .* everything it said is in .*\.log"):
        runner_build.runner(platform.machine(), tmp_path / "cache", said.append)
    assert "about ten minutes, once" in said[-1]
    assert not [path for path in (tmp_path / "cache").glob("runner-*") if path.is_file()]


def test_the_zig_wrapper_translates_what_zig_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(runner_build._wrapper(tmp_path / "zig", "c++", "aarch64-linux-musl"))
    text = path.read_text().replace("os.execv(", "print(")
    words = ["-march=armv8-a", "-march=armv8.2-a+fp16", "-march=armv8.2-a+fp16fml", "-march=armv8.4-a+i8mm", "-O3"]
    done = subprocess.run([sys.executable, "-c", text, *words], capture_output=True, text=True)
    assert "-mcpu=generic+v8a'" in done.stdout and "-mcpu=generic+v8_2a+fullfp16'" in done.stdout, done.stderr
    assert "-mcpu=generic+v8_2a+fp16fml'" in done.stdout and "-mcpu=generic+v8_4a+i8mm'" in done.stdout
    assert "'-target', 'aarch64-linux-musl'" in done.stdout and "'-O3'" in done.stdout


# where it was built (make phone-runner), it computes what PyTorch does

BUILT = {machine: next(iter(sorted((store.root() / "build" / "phone").glob(f"runner-{machine}-*"))), None)
         for machine in runner_build.MACHINES}  # fmt: skip
NATIVE = {machine: machine == platform.machine() for machine in BUILT}


@needs_extra
@pytest.mark.parametrize("machine", BUILT)
@pytest.mark.parametrize("net", ["digits ResNet", "digits VGG"])
def test_the_built_runner(net: str, machine: str, tmp_path: Path) -> None:
    """By qemu where it is for another processor; slow, and its times say nothing."""
    emulator = [] if NATIVE[machine] else [shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")]
    if BUILT[machine] is None:
        pytest.skip(f"no runner for {machine} was built: make phone-runner")
    if None in emulator:
        pytest.skip(f"qemu-{machine} is not installed: apt install qemu-user-static")
    model = initialize(NETS[net](), 0).eval()
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = export(model, image, net, tmp_path)
    ask = Ask(loops=3, seconds=0, at_most=60, warmup=1, warmup_seconds=0, calibrate=2, samples={"up": "/proc/uptime"})
    with Host([*emulator, str(BUILT[machine])]) as host:  # type: ignore[list-item]
        subject = Subject(net, model, image, found.mac, found)
        for precision, tolerance in (("fp32", 1e-5), ("fp16", 5e-2)):
            block = host.block(subject, precision, ask)
            assert block.error < tolerance and len(block.ns) == 3 and block.env["runner"] == "c++"
        assert block.end["out_n"] == 10 and len(block.before) == len(block.after) == 2
        wrong = tmp_path / "three.f32"
        np.zeros(3 * 64, np.float32).tofile(wrong)
        files = {"param": found.path("model.param"), "bin": found.path("model.bin"), "in": wrong, "out": tmp_path / "o"}
        words = ask.arguments({name: str(path) for name, path in files.items()}, (3, 8, 8), "fp32")
        done = subprocess.run([*emulator, str(BUILT[machine]), *words], capture_output=True, text=True)
        assert done.returncode == 4 and "the network reads 1 channels, the input has 3" in done.stdout
