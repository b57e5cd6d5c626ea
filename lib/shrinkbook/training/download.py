"""Fetch a data set once and keep it as one npz: official archives, checked by MD5, written whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from shrinkbook.training.data import KEYS, NAMES, DataError, default_folder

# URL folder and, for each archive, its MD5 (the values torchvision checks against).
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
ARCHIVES: dict[str, tuple[str, dict[str, str]]] = {
    "mnist": (
        _MNIST,
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "cifar10": (_CIFAR, {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}),
    "cifar100": (_CIFAR, {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"}),
    "imagenet": (
        "",  # behind a licence: the user brings the archives
        {
            "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
            "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
        },
    ),
}


def fetch(name: str, folder: Path | str | None = None) -> Path:
    """Write <folder>/<name>.npz, the file that `data.load` reads; archives that lie in the folder are used first.

    ImageNet needs the user's own ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz in the folder. Its validation
    images, resized to 256 and centre-cropped to 224, become x_test (about 8 GB of memory and disk); training images
    are not kept in one file, x_train is empty.

    Raises:
        DataError: unknown name, no network, missing archive, wrong checksum or no space.
    """
    if name == "digits":
        raise DataError("digits come with scikit-learn: nothing to fetch")
    if name not in ARCHIVES:
        raise DataError(f"unknown data set {name!r}: choose one of {', '.join(NAMES[1:])}")
    folder = Path(folder or default_folder())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as scratch:
            archives = [_archive(name, file, folder, Path(scratch)) for file in ARCHIVES[name][1]]
            arrays = _PARSERS[name](archives)
            temporary = Path(scratch) / f"{name}.npz"
            with temporary.open("wb") as file:
                # The stub takes any mapping for allow_pickle.
                np.savez(file, **dict(zip(KEYS, arrays, strict=True)))  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            return temporary.replace(folder / f"{name}.npz")
    except (tarfile.TarError, EOFError, zlib.error, KeyError, pickle.UnpicklingError) as error:
        raise DataError(
            f"an archive of {name!r} in {folder} has unexpected content ({error}): delete it and retry"
        ) from error
    except OSError as error:
        raise DataError(
            f"{name!r} cannot be kept in {folder} ({error.strerror or error}): free space or set SHRINKBOOK_DATA"
        ) from error


def _archive(name: str, file: str, folder: Path, scratch: Path) -> Path:
    """The archive's path, downloaded into `scratch` unless the folder has it; its MD5 is checked either way."""
    base, checksums = ARCHIVES[name]
    path = folder / file
    if not path.exists():
        if not base:
            raise DataError(f"{path} is missing: get it from image-net.org (it needs an account) and put it there")
        path = scratch / file
        try:
            with urllib.request.urlopen(base + file, timeout=60) as source, path.open("wb") as target:
                while block := source.read(1 << 20):
                    target.write(block)
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise DataError(
                f"{base}{file} cannot be fetched ({reason}): check the network, or put {file} into {folder} by hand"
            ) from error
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != checksums[file]:
        raise DataError(f"{path} has the wrong checksum (truncated or altered): delete it and retry")
    return path


def _mnist(archives: list[Path]) -> list[np.ndarray]:
    """IDX files: a header of 4 bytes plus 4 for each dimension, big-endian, then the bytes."""
    arrays = []
    for path in archives:
        content = gzip.decompress(path.read_bytes())
        shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
        arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape))
    return arrays


def _cifar(members: list[str], key: str) -> Callable[[list[Path]], list[np.ndarray]]:
    """A parser for CIFAR's pickles, checked by MD5 before they are opened; the last member is the test set."""

    def parse(archives: list[Path]) -> list[np.ndarray]:
        with tarfile.open(archives[0]) as tar:
            parts = [pickle.loads(_member(tar, name), encoding="bytes") for name in members]
        images = [np.asarray(p[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for p in parts]
        labels = [np.asarray(p[key.encode()], np.int64) for p in parts]
        return [np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], labels[-1]]

    return parse


def _imagenet(archives: list[Path]) -> list[np.ndarray]:
    """Validation images and labels; classes are numbered by sorted WordNet id, as in public checkpoints."""
    from scipy.io import loadmat

    devkit, validation = archives
    with tarfile.open(devkit) as tar:
        root = "ILSVRC2012_devkit_t12/data/"
        meta = loadmat(io.BytesIO(_member(tar, root + "meta.mat")), squeeze_me=True)["synsets"]
        truth = _member(tar, root + "ILSVRC2012_validation_ground_truth.txt").split()
    wordnet = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in meta if row["num_children"] == 0}
    index = {wnid: i for i, wnid in enumerate(sorted(wordnet.values()))}
    labels = np.array([index[wordnet[int(t)]] for t in truth], np.int64)
    images = np.empty((len(labels), 224, 224, 3), np.uint8)
    with tarfile.open(validation) as tar:
        for number, member in enumerate(sorted(_files(tar), key=lambda m: m.name)):
            content = tar.extractfile(member)
            assert content is not None  # _files yields regular files only
            images[number] = resize_crop(Image.open(content).convert("RGB"))
    return [np.empty((0, 224, 224, 3), np.uint8), np.empty(0, np.int64), images, labels]


def resize_crop(image: Image.Image, size: int = 224, shorter: int = 256) -> np.ndarray:
    """A PIL image with its shorter side at 256 (bilinear), the 224 x 224 pixels of its centre as uint8 (h, w, 3)."""
    width, height = image.size
    scale = shorter / min(width, height)
    width, height = max(shorter, int(width * scale)), max(shorter, int(height * scale))
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (member for member in tar if member.isfile())


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    content = tar.extractfile(name)
    if content is None:
        raise KeyError(f"{name} is no file")
    return content.read()


_PARSERS: dict[str, Callable[[list[Path]], list[np.ndarray]]] = {
    "mnist": _mnist,
    "cifar10": _cifar(
        [f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)] + ["cifar-10-batches-py/test_batch"], "labels"
    ),
    "cifar100": _cifar(["cifar-100-python/train", "cifar-100-python/test"], "fine_labels"),
    "imagenet": _imagenet,
}
