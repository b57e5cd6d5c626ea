"""Public weights: where they come from, fetched once, checked by hash, kept beside the data sets."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shrinkbook.training.data import DataError, default_folder

_RESNETS = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
_TORCHVISION = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class Weights:
    """One file of trained weights.

    Args:
        folder: URL of the folder it is in.
        file: its name, which ends in the first eight digits of its SHA-256.
    """

    folder: str
    file: str

    @property
    def url(self) -> str:
        """Where it is fetched from."""
        return f"{self.folder}/{self.file}"

    @property
    def sha256_start(self) -> str:
        """The first eight hexadecimal digits of its SHA-256."""
        return Path(self.file).stem.rsplit("-", 1)[1]

    @property
    def path(self) -> Path:
        """Where it is kept: ``checkpoints/`` beside the data sets."""
        return default_folder() / "checkpoints" / self.file


PUBLIC = {
    # Yerlan Idelbayev, pytorch_resnet_cifar10 (BSD-2-Clause): CIFAR-10, trained on the whole training set.
    "resnet20-public": Weights(_RESNETS, "resnet20-12fca82f.th"),
    "resnet56-public": Weights(_RESNETS, "resnet56-4bfd9763.th"),
    # torchvision (BSD-3-Clause): ImageNet.
    "alexnet-public": Weights(_TORCHVISION, "alexnet-owt-7be5be79.pth"),
    "vgg16-public": Weights(_TORCHVISION, "vgg16-397923af.pth"),
    "googlenet-public": Weights(_TORCHVISION, "googlenet-1378be20.pth"),
}


def fetch(name: str) -> Path:
    """Download public weights and check them.

    Raises:
        DataError: no network, or the file is not the one expected.
    """
    wanted = PUBLIC[name]
    wanted.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(wanted.url, str(wanted.path), hash_prefix=wanted.sha256_start)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{wanted.path}: cannot be downloaded from {wanted.url} ({error}); fetch it by hand") from error
    return wanted.path


def load(name: str) -> dict[str, Tensor]:
    """The weights by the names their authors gave, on the CPU.

    Raises:
        DataError: the file is missing or damaged.
    """
    wanted = PUBLIC[name]
    if not wanted.path.exists():
        raise DataError(f"{wanted.path} is missing: run `make data DATA={name}`")
    if not hashlib.sha256(wanted.path.read_bytes()).hexdigest().startswith(wanted.sha256_start):
        raise DataError(f"{wanted.path} is damaged: delete it and run `make data DATA={name}`")
    state = torch.load(wanted.path, map_location="cpu", weights_only=True)
    return {key.removeprefix("module."): value for key, value in state.get("state_dict", state).items()}
