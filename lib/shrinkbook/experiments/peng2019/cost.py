"""Weights and multiply-accumulates of the paper's CIFAR networks."""

import torch

from shrinkbook import nets
from shrinkbook.experiments.run import Context
from shrinkbook.measure.cost import cost, parameter_count

DEPTHS = (14, 20, 56, 110)


def costs(run: Context) -> None:
    """ResNet-14, 20, 56 and 110 for 100 classes with projections; nothing printed depends on it."""
    found = {}
    with torch.device("meta"):
        for depth in DEPTHS:
            model = nets.resnet_cifar(depth, classes=100, projection=True)
            found[f"ResNet-{depth}"] = {"parameters": parameter_count(model), "mac": cost(model, (3, 32, 32)).mac}
    run.measurements["networks"] = found
