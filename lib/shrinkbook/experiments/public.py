"""ResNet-20 and -56 on CIFAR-10 with public weights: what two processor cores can carry on real data.

The networks (Yerlan Idelbayev's) have seen the whole training set, so scans use the
test set, and one network is one network: orders are judged over images, not seeds.
"""

import torch
from torch import nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.networks import NETS
from shrinkbook.training import weights
from shrinkbook.training.data import IMAGENET_MEAN, IMAGENET_STD


def public_network(net: str) -> nn.Module:
    """``ResNet-20`` or ``ResNet-56`` with its public weights.

    Raises:
        DataError: the file is missing or damaged.
    """
    model = NETS[net]()
    model.load_state_dict(weights.load(f"{net.lower().replace('-', '')}-public"))
    return model


def loaded(run: Context) -> nn.Module:
    """Data with the constants the network was trained with, and the network, measured as stage ``original``."""
    run.load_data(normalise=(IMAGENET_MEAN, IMAGENET_STD))
    model = public_network(run.config["net"]).to(device=run.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    run.stage("original", model)
    run.fixed_network = True
    run.measurements["selection"] = "test"
    return model
