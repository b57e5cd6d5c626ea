"""Data sets as tensors that stay on the device: digits (embedded), MNIST, CIFAR-10, CIFAR-100 and ImageNet."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
KEYS = ("x_train", "y_train", "x_test", "y_test")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DataError(ValueError):
    """A data set that is unknown, missing or damaged; one line that names the file and the remedy."""


@dataclass(frozen=True)
class Layout:
    """What a stored data set has to look like; mean and std are None where the training images give them."""

    shape: tuple[int, ...]
    classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


STORED = {
    "mnist": Layout((28, 28), 10),
    "cifar10": Layout((32, 32, 3), 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Layout((32, 32, 3), 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": Layout((224, 224, 3), 1000, IMAGENET_MEAN, IMAGENET_STD),
}
NAMES = ("digits", *STORED)


@dataclass(frozen=True)
class DataSet:
    """Images as uint8 (n, c, h, w) with channels-last strides, labels as int64 (n,), all on one device.

    mean and std are per channel, on the scale 0..1; fingerprint is the sha256 of the four arrays.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    fingerprint: str
    note: str = ""

    def to(self, device: torch.device | str) -> DataSet:
        """The same data set on another device; free where it is there already."""
        return replace(self, **{key: getattr(self, key).to(device) for key in KEYS})

    def tested_on(self, indices: Tensor) -> DataSet:
        """The same training images, and those of them at ``indices`` in place of the test images."""
        return replace(self, x_test=self.x_train[indices], y_test=self.y_train[indices])

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images (n, c, h, w) to float32, (x / 255 - mean) / std per channel; strides are kept."""
        mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return torch.addcmul(-mean / std, images.float(), 1 / (255 * std))


def default_folder() -> Path:
    """Where stored data sets live: $SHRINKBOOK_DATA, else data/cache in the repository."""
    return Path(os.environ.get("SHRINKBOOK_DATA") or ROOT / "data" / "cache")


def load(
    name: str,
    folder: Path | str | None = None,
    normalise: tuple[Sequence[float], Sequence[float]] | None = None,
) -> DataSet:
    """A data set by name, on the CPU.

    Args:
        name: "digits" (embedded), "mnist", "cifar10", "cifar100" or "imagenet" (read from <folder>/<name>.npz).
        folder: where the npz lies; default_folder() unless given.
        normalise: (mean, std) per channel on the scale 0..1 for networks that were trained with other constants.

    Raises:
        DataError: unknown name, missing or damaged file.
    """
    if name == "digits":
        return _data_set(name, _digits(), Layout((8, 8), 10), normalise, note="")
    if name not in STORED:
        raise DataError(f"unknown data set {name!r}: choose one of {', '.join(NAMES)}")
    path = Path(folder or default_folder()) / f"{name}.npz"
    arrays = _read(path, name)
    note = path.with_name(f"{name}.note.txt")
    return _data_set(name, arrays, STORED[name], normalise, note.read_text().strip() if note.exists() else "")


def _digits() -> dict[str, np.ndarray]:
    """scikit-learn's digits, 40 of each class to train and 1,397 to test; the split never changes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    stream = np.random.RandomState(0)  # the legacy stream is frozen across NumPy versions
    chosen = np.concatenate([stream.permutation(np.flatnonzero(labels == c))[:40] for c in range(10)])
    train = np.isin(np.arange(len(labels)), chosen)
    return dict(zip(KEYS, (images[train], labels[train], images[~train], labels[~train]), strict=True))


def _read(path: Path, name: str) -> dict[str, np.ndarray]:
    remedy = f"run `make data DATA={name}` (or `shrinkbook data {name}`)"
    if not path.exists():
        raise DataError(f"{path} is missing: {remedy}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            if missing := [key for key in KEYS if key not in stored.files]:
                raise DataError(f"{path} has no {', '.join(missing)}: delete it and {remedy}")
            arrays = {key: stored[key] for key in KEYS}
    except DataError:
        raise
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read (truncated or damaged): delete it and {remedy}") from error
    if wrong := _complaint(arrays, STORED[name]):
        raise DataError(f"{path}: {wrong}: delete it and {remedy}")
    return arrays


def _complaint(arrays: dict[str, np.ndarray], layout: Layout) -> str | None:
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.dtype != np.uint8 or x.shape[1:] != layout.shape:
            return f"x_{part} is {x.dtype} {x.shape}, expected uint8 (n, {', '.join(map(str, layout.shape))})"
        if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
            return f"y_{part} is {y.dtype} {y.shape}, expected integers (n,)"
        if len(x) != len(y):
            return f"x_{part} has {len(x)} images but y_{part} has {len(y)} labels"
        if len(y) and not 0 <= y.min() <= y.max() < layout.classes:
            return f"y_{part} has labels {y.min()}..{y.max()}, expected 0..{layout.classes - 1}"
    return None


def _data_set(
    name: str,
    arrays: dict[str, np.ndarray],
    layout: Layout,
    normalise: tuple[Sequence[float], Sequence[float]] | None,
    note: str,
) -> DataSet:
    digest = hashlib.sha256()
    tensors: dict[str, Tensor] = {}
    for key in KEYS:
        array = np.ascontiguousarray(arrays[key] if key.startswith("x") else arrays[key].astype(np.int64))
        digest.update(f"{key} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
        tensor = torch.from_numpy(array)
        if key.startswith("x"):
            tensor = (tensor.unsqueeze(-1) if tensor.ndim == 3 else tensor).permute(0, 3, 1, 2)
        tensors[key] = tensor
    if normalise is None and layout.mean is not None and layout.std is not None:
        normalise = layout.mean, layout.std
    mean, std = normalise or _statistics(tensors["x_train"])
    channels = tensors["x_train"].shape[1]
    if len(mean) != channels or len(std) != channels:
        raise DataError(f"normalise for {name!r} needs {channels} means and {channels} standard deviations")
    return DataSet(name, **tensors, mean=tuple(mean), std=tuple(std), classes=layout.classes,
                   fingerprint=digest.hexdigest(), note=note)  # fmt: skip


def _statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 images, exact, on the scale 0..1."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for c in range(images.shape[1]):
        share = torch.bincount(images[:, c].flatten(), minlength=256).double() / images[:, c].numel()
        centre = float(share @ values)
        mean.append(centre)
        std.append(float(share @ (values - centre) ** 2) ** 0.5)
    return mean, std
