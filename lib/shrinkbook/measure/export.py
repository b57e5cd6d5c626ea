"""From a PyTorch network to the files a phone runs: traced, converted by pnnx to ncnn, and checked against PyTorch.

The extra ``phone`` brings pnnx and ncnn. Files are fp32; fp16 is chosen when they are loaded. A network whose
outputs in ncnn are not PyTorch's is never handed out.
"""

import copy
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import uuid
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shrinkbook.measure import wheel_runner
from shrinkbook.measure.cost import cost, state_bytes
from shrinkbook.methods.clustered_layers import clustered_layers, expand

TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2}
"""Largest difference from PyTorch's outputs, as a share of their largest magnitude."""
LAYERS = frozenset((Path(__file__).parent / "runner" / "layers.txt").read_text().split())
"""Layers that the runner is built with."""
FIXES = {
    "Tensor.slice": "x[:, :, ::2, ::2] is written F.max_pool2d(x, 1, 2), which is the same",
    "Tensor.index": "choose channels when the network is built, not while it runs",
    "torch.index_select": "choose channels when the network is built, not while it runs",
    "torch.topk": "export the network up to its logits and leave the choice to the caller",
    "aten::sort": "export the network up to its logits and leave the order to the caller",
}
PACKAGES = ("pnnx", "ncnn")


class ExportError(ValueError):
    """A network that cannot be exported, with the place and the remedy."""


@dataclass(frozen=True)
class Exported:
    """One network as files, and what is known about it.

    Args:
        name: for people.
        key: sixteen hexadecimal digits of weights, graph, input shape and converter.
        folder: holds ``model.param``, ``model.bin``, ``input.f32`` and ``expected.f32`` (PyTorch's outputs).
        shape: (channels, height, width) of the input.
        outputs: number of outputs.
        mac: multiply-accumulates of one image.
        file_bytes: weights as they are pushed; state_bytes: as PyTorch stores them.
        error: fp32 and fp16, largest difference from PyTorch as a share of the largest output, on this host.
        notes: what was changed for the export.
    """

    name: str
    key: str
    folder: Path
    shape: tuple[int, int, int]
    outputs: int
    mac: int
    file_bytes: int
    state_bytes: int
    error: dict[str, float]
    notes: tuple[str, ...]

    def path(self, file: str) -> Path:
        """``model.param``, ``model.bin``, ``input.f32`` or ``expected.f32``."""
        return self.folder / file

    def expected(self) -> np.ndarray:
        """PyTorch's outputs for the stored input, (outputs,) float32."""
        return np.fromfile(self.path("expected.f32"), np.float32)


def missing() -> str:
    """Which packages an export lacks, with the remedy; empty if none."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed: make phone-extra" if absent else ""


def export(model: nn.Module, example: Tensor, name: str, cache: Path) -> Exported:
    """Convert a network for one image and check its outputs; a second export of the same network reads the cache.

    Args:
        model: any network of the suite, compressed or not; copied, not changed. Clustered kernels are written as the
            dense ones they stand for: ncnn has no shared kernels, so their file is no smaller.
        example: (1, channels, height, width); its shape is fixed in the export, its values serve the check.
        name: what people read.
        cache: folder of exported networks, one a content hash.

    Raises:
        ExportError: packages missing, an input that is no single image, a layer that the runner does not have, outputs
            that differ from PyTorch's.
    """
    if reason := missing():
        raise ExportError(f"{name}: {reason}")
    if example.ndim != 4 or len(example) != 1:
        raise ExportError(f"{name}: the example must be one image (1, c, h, w), got {tuple(example.shape)}")
    notes = []
    twin = copy.deepcopy(model).cpu().float().eval()
    if clustered_layers(twin):
        twin, notes = expand(twin), ["clustered kernels are written as the dense ones they stand for"]
    example = example.detach().cpu().float()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, torch.jit.TracerWarning))  # pnnx reads TorchScript alone
        traced: Any = torch.jit.trace(twin, example, check_trace=False)
        expected = twin(example)
    if not isinstance(expected, Tensor):
        raise ExportError(f"{name}: returns {type(expected).__name__}; export a network with one tensor as output")
    if not torch.isfinite(expected).all():
        raise ExportError(f"{name}: PyTorch's own outputs are not finite; nothing can be checked against them")
    key = _key(traced, example)
    folder = cache / key
    if (folder / "export.json").exists():
        return _read(folder, name)
    part = cache / f".{key}.{uuid.uuid4().hex}"
    part.mkdir(parents=True)
    try:
        _convert(traced, example.shape, name, part)
        shape = tuple(example.shape[1:])
        example.numpy().tofile(part / "input.f32")
        expected.numpy().tofile(part / "expected.f32")
        meta = {
            "name": name,
            "key": key,
            "shape": shape,
            "outputs": expected.numel(),
            "mac": cost(twin, shape).mac,
            "file_bytes": (part / "model.bin").stat().st_size,
            "state_bytes": state_bytes(model),
            "error": _checked(part, example[0].numpy(), expected.numpy().reshape(-1), name),
            "notes": notes,
        }
        (part / "export.json").write_text(json.dumps(meta, indent=1) + "\n")
        try:
            part.rename(folder)
        except OSError:
            if not (folder / "export.json").exists():  # else another process was as fast, with the same content
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return _read(folder, name)


def difference(ours: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference as a share of the largest expected magnitude; infinite where a shape or a number is wrong."""
    if ours.shape != expected.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours - expected).max() / max(float(np.abs(expected).max()), 1e-30))


def layers(param: str) -> dict[str, int]:
    """How often each layer type occurs in an ncnn param file."""
    kinds = [line.split()[0] for line in param.splitlines()[2:] if line.strip()]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _convert(traced: Any, shape: torch.Size, name: str, folder: Path) -> None:
    found = importlib.util.find_spec("pnnx")
    assert found and found.submodule_search_locations
    converter = Path(found.submodule_search_locations[0]) / "pnnx"
    traced.save(str(folder / "traced.pt"))
    size = ",".join(str(side) for side in shape)
    command = [str(converter), "traced.pt", f"inputshape=[{size}]", "fp16=0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode or not (folder / "traced.ncnn.param").exists():
        last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise ExportError(f"{name}: pnnx could not convert it (status {done.returncode}): {last}")
    param = (folder / "traced.ncnn.param").read_text()
    for kind in layers(param):
        if kind not in LAYERS:
            remedy = FIXES.get(kind, "write it with layers of measure/runner/layers.txt")
            raise ExportError(f"{name}: layer {kind} cannot run in ncnn: {remedy}")
    (folder / "traced.ncnn.param").rename(folder / "model.param")
    (folder / "traced.ncnn.bin").rename(folder / "model.bin")
    for path in folder.glob("traced*"):
        path.unlink()


def _checked(folder: Path, image: np.ndarray, expected: np.ndarray, name: str) -> dict[str, float]:
    """Differences from PyTorch in both precisions; fp32 must agree; fp16 is the reader's choice."""
    errors = {}
    for precision in TOLERANCE:
        try:
            net = wheel_runner.load(folder / "model.param", folder / "model.bin", precision == "fp16")
            ours = wheel_runner.infer(net, wheel_runner.matrix(image))
        except wheel_runner.Failed as error:
            raise ExportError(f"{name}: ncnn cannot run it: {error}") from error
        errors[precision] = difference(ours, expected)
        if precision == "fp32" and (errors["fp32"] > TOLERANCE["fp32"] or ours.argmax() != expected.argmax()):
            raise ExportError(f"{name}: outputs in ncnn differ from PyTorch's by {errors['fp32']:.2g} of the largest")
    return errors


def _key(traced: Any, example: Tensor) -> str:
    """Hash of everything the files depend on; names that tracing draws anew each time are taken out."""
    digest = hashlib.sha256()
    graph = traced.inlined_graph
    text = re.sub(r"\s+#.*", "", str(graph))
    digest.update(re.sub(r"\.___torch_mangle_\d+", "", text).encode())
    for node in graph.findAllNodes("prim::Constant"):
        if node.hasAttribute("value") and node.kindOf("value") == "t":
            digest.update(node.t("value").contiguous().numpy().tobytes())
    for path, tensor in sorted(traced.state_dict().items()):
        digest.update(f"{path} {tuple(tensor.shape)}\n".encode() + tensor.contiguous().numpy().tobytes())
    versions = [importlib.metadata.version(package) for package in PACKAGES]
    digest.update(json.dumps([list(example.shape), versions]).encode() + example.numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(folder: Path, name: str) -> Exported:
    meta = json.loads((folder / "export.json").read_text())
    shape, notes = tuple(meta["shape"]), tuple(meta["notes"])
    return Exported(**{**meta, "name": name, "folder": folder, "shape": shape, "notes": notes})


def described(one: Exported) -> dict[str, Any]:
    """What result files keep of an export."""
    return {key: value for key, value in asdict(one).items() if key != "folder"}
