"""The runner's command line on this host, by the ncnn package instead of our C++ program: same options, same lines.

``python -m shrinkbook.measure.wheel_runner --param P --bin B --shape C,H,W --in X.f32 --out Y.f32 ...`` loads a
network, runs it and prints JSON lines as :mod:`shrinkbook.measure.protocol` describes and reads them. Only an ``end``
line means success. Exit status: 0, 2 usage, 3 model, 4 input, 5 inference or output, 6 memory.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from shrinkbook.measure.energy import meter

CODES = {"usage": 2, "model": 3, "input": 4, "inference": 5, "memory": 6}
CALIBRATION_FLOATS, CALIBRATION_PASSES = 16384, 400


class Failed(Exception):
    """What the runner reports as an error line; ``what`` is a key of ``CODES``."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


def channels_of(param: str) -> int | None:
    """Channels that the layer reading the input expects, from its weight count; None where that layer cannot tell.

    ncnn runs an input of the wrong shape without a word, so the runner looks itself.
    """
    reads = {"in0"}
    for line in param.splitlines()[2:]:
        kind, _, inputs, outputs, *rest = line.split()
        sources = rest[: int(inputs)]
        if kind == "Input" or not reads & set(sources):
            continue
        if kind in ("Split", "Noop"):
            reads |= set(rest[int(inputs) : int(inputs) + int(outputs)])
            continue
        values = dict(word.split("=", 1) for word in rest[int(inputs) + int(outputs) :] if "=" in word)
        if kind == "Convolution":
            width = int(values["1"])
            return int(values["6"]) // (int(values["0"]) * width * int(values.get("11", width)))
        return None
    return None


def load(param: Path, weights: Path, fp16: bool, threads: int = 1) -> Any:
    """An ncnn network in the precision asked for and no other.

    Raises:
        Failed: the files are not a network that ncnn can run.
    """
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads
    net.opt.use_bf16_storage = False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = fp16
    if net.load_param(str(param)):
        raise Failed("model", f"{param.name}: not a network, or a layer is missing")
    if net.load_model(str(weights)):
        raise Failed("model", f"{weights.name}: the weights do not fit the network (truncated?)")
    return net


def matrix(image: np.ndarray) -> Any:
    """An image (c, h, w) in ncnn's own memory: channels begin at multiples of 16 bytes there, which some layers rely on
    without looking (grouped convolutions give garbage on an array of numpy's)."""
    import ncnn

    return ncnn.Mat(image).clone()


def infer(net: Any, image: Any) -> np.ndarray:
    """One forward pass of one :func:`matrix`; the output flattened."""
    extractor = net.create_extractor()
    if extractor.input("in0", image):
        raise Failed("input", "the network has no input in0")
    status, output = extractor.extract("out0")
    if status:
        raise Failed("inference", f"ncnn ended with status {status}")
    return np.array(output, dtype=np.float32).reshape(-1)


def run(options: argparse.Namespace, tell: Callable[..., None]) -> None:
    """Everything between the command line and the end line."""
    import ncnn

    if options.pid:
        options.pid.write_text(f"{os.getpid()}\n")
    if options.cpus:
        _pin(int(options.cpus, 16))
    affinity = sum(1 << cpu for cpu in os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    about = {"runner": "wheel", "ncnn": ncnn.__version__, "cpus": os.cpu_count(), "affinity": f"{affinity:x}"}
    tell("env", **about, threads=options.threads, fp16=options.fp16)
    if options.about:
        return
    image = matrix(_image(options))
    before, started = _memory("VmRSS"), time.perf_counter_ns()
    net = load(options.param, options.bin, bool(options.fp16), options.threads)
    tell("load", ns=time.perf_counter_ns() - started, rss_kb_before=before, rss_kb_after=_memory("VmRSS"))
    tell("calibration", when="before", ns=calibrate(options.calibrate))
    _warm_up(net, image, options, tell)
    samples: list[dict[str, Any]] = []
    stop = threading.Event()
    sampler = threading.Thread(target=_sample, args=(options, samples, stop), daemon=True)
    sampler.start()
    runs: list[tuple[int, int]] = []
    joules, _ = meter("cpu")  # here, not around the process: loading and warm-up are no runs
    cpu, first = time.process_time_ns(), time.perf_counter_ns()
    while True:
        begun = time.perf_counter_ns()
        output = infer(net, image)
        ended = time.perf_counter_ns()
        runs.append((begun - first, ended - begun))
        elapsed = (ended - first) / 1e9
        if elapsed >= options.max_s or (len(runs) >= options.loops and elapsed >= options.min_s):
            break
    cpu, wall = time.process_time_ns() - cpu, ended - first
    joule = joules() if joules else None
    stop.set()
    sampler.join()
    output.tofile(options.out)
    for index, (start, span) in enumerate(runs):  # only now: a pipe inside the loop would be timed with it
        tell("run", i=index, t_ns=start, ns=span)
    for one in samples:
        tell("sample", **one)
    tell("calibration", when="after", ns=calibrate(options.calibrate))
    tell("end", runs=len(runs), wall_ns=wall, cpu_ns=cpu, vm_hwm_kb=_memory("VmHWM"), joule=joule, **_summary(output))


def _image(options: argparse.Namespace) -> np.ndarray:
    image = np.fromfile(options.input, np.float32)
    try:
        channels, height, width = shape = tuple(int(word) for word in options.shape.split(","))
    except ValueError as error:
        raise Failed("usage", f"--shape {options.shape}: want C,H,W") from error
    if image.size != channels * height * width:
        raise Failed("input", f"the input file holds {image.size} numbers, not those of shape {options.shape}")
    wanted = channels_of(options.param.read_text())
    if wanted not in (None, channels):
        raise Failed("input", f"the network reads {wanted} channels, the input has {channels}")
    return image.reshape(shape)


def _warm_up(net: Any, image: Any, options: argparse.Namespace, tell: Callable[..., None]) -> None:
    count, started = 0, time.perf_counter()
    while count < options.warmup or time.perf_counter() - started < options.warmup_s:
        infer(net, image)
        count += 1
        if time.perf_counter() - started > options.max_s:
            break
    tell("warmup", runs=count, ns=round(1e9 * (time.perf_counter() - started)))


def calibrate(rounds: int) -> list[int]:
    """Nanoseconds of a fixed piece of arithmetic, which only the clock of the processor changes."""
    a = np.linspace(0, 1, CALIBRATION_FLOATS, dtype=np.float32)
    b, spans = a.copy(), []
    for _ in range(rounds):
        started = time.perf_counter_ns()
        for _ in range(CALIBRATION_PASSES):
            np.multiply(a, 0.999, out=b)
            np.add(b, a, out=b)
        spans.append(time.perf_counter_ns() - started)
    return spans


def _sample(options: argparse.Namespace, samples: list[dict[str, Any]], stop: threading.Event) -> None:
    """Read the files to be sampled, at most ten times a second; null where one cannot be read."""
    names = dict(word.split("=", 1) for word in options.sample)
    while names and not stop.wait(1 / min(max(options.hz, 0.1), 10)):
        row: dict[str, Any] = {"t_ns": time.perf_counter_ns()}
        for name, path in names.items():
            try:
                row[name] = Path(path).read_text().strip()
            except OSError:
                row[name] = None
        samples.append(row)


def _summary(output: np.ndarray) -> dict[str, Any]:
    finite = bool(np.isfinite(output).all())
    total, norm = (float(output.sum()), float(np.sqrt((output**2).sum()))) if finite else (None, None)
    return {
        "out_n": output.size, "out_sum": total, "out_l2": norm, "argmax": int(output.argmax()), "finite": finite
    }  # fmt: skip


def _pin(mask: int) -> None:
    wanted = {cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1}
    try:
        os.sched_setaffinity(0, wanted)
        got = os.sched_getaffinity(0)
    except (AttributeError, OSError) as error:
        raise Failed("usage", f"--cpus {mask:x}: this system does not pin ({error})") from error
    if got != wanted:
        raise Failed("usage", f"--cpus {mask:x}: the system gave {sorted(got)}")


def _memory(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), None)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Failed("usage", message)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="runner")
    for name in ("param", "bin", "out", "pid"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--in", dest="input", type=Path)
    parser.add_argument("--shape")
    parser.add_argument("--cpus", default="")
    parser.add_argument("--sample", action="append", default=[])
    parser.add_argument("--about", action="store_true")
    counts = {"threads": 1, "fp16": 0, "warmup": 10, "loops": 50, "calibrate": 20}
    for name, count in counts.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    for name, seconds in {"warmup-s": 1.0, "min-s": 10.0, "max-s": 60.0, "hz": 5.0}.items():
        parser.add_argument(f"--{name}", type=float, default=seconds)
    options = parser.parse_args(arguments)
    absent = [name for name in ("param", "bin", "input", "out", "shape") if getattr(options, name) is None]
    if absent and not options.about:
        raise Failed("usage", f"missing: {', '.join(absent)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is for people, programs look for the end line."""

    def tell(event: str, **fields: Any) -> None:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")

    try:
        run(_options(arguments), tell)
    except Failed as error:
        tell("error", what=error.what, message=str(error))
        return CODES[error.what]
    except OSError as error:
        tell("error", what="input", message=f"{error.filename}: {error.strerror}")
        return CODES["input"]
    except MemoryError:
        tell("error", what="memory", message="out of memory")
        return CODES["memory"]
    finally:
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
