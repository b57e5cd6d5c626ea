"""ResNet-56 on CIFAR-10 with public weights: what two processor cores can carry on real data.

The network is Yerlan Idelbayev's (pytorch_resnet_cifar10, BSD-2-Clause), 93.39 % on the test set. It has seen the whole
training set, so scans use the test set, and one network is one network: orders are judged over images, not seeds.
"""

import hashlib
from pathlib import Path

import torch
from torch import nn

from shrinkbook.experiments.run import Context
from shrinkbook.nets import resnet_cifar
from shrinkbook.training.data import IMAGENET_MEAN, IMAGENET_STD, DataError, default_folder

FILE = "resnet56-4bfd9763.th"
SHA256_START = "4bfd9763"
URL = f"https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/{FILE}"


def checkpoint_path() -> Path:
    """Where the public weights are kept: ``checkpoints/`` beside the data sets."""
    return default_folder() / "checkpoints" / FILE


def fetch() -> Path:
    """Download the public weights and check them.

    Raises:
        DataError: no network, or the file is not the one expected.
    """
    path = checkpoint_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256_START)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be downloaded from {URL} ({error}); fetch it by hand") from error
    return path


def public_resnet56() -> nn.Module:
    """The network with its public weights.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = checkpoint_path()
    if not path.exists():
        raise DataError(f"{path} is missing: run `make data DATA=resnet56-public`")
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(SHA256_START):
        raise DataError(f"{path} is damaged: delete it and run `make data DATA=resnet56-public`")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model = resnet_cifar(56)
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model


def loaded(run: Context) -> nn.Module:
    """Data with the constants the network was trained with, and the network, measured as stage ``original``."""
    run.load_data(normalise=(IMAGENET_MEAN, IMAGENET_STD))
    model = public_resnet56().to(device=run.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    run.stage("original", model)
    run.fixed_network = True
    run.measurements["selection"] = "test"
    return model
