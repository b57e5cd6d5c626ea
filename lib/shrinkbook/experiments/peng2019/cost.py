"""Weights and multiply-accumulates of the paper's students and teachers."""

import torch

from shrinkbook import nets
from shrinkbook.experiments.experiment import Context
from shrinkbook.measure.cost import cost, parameter_count

DEPTHS = (14, 20, 56, 110)


def costs(run: Context) -> None:
    """ResNet-14, 20, 56 and 110 for 100 classes with projections, and MobileNetV2 at half width for ImageNet.

    Nothing printed depends on it. MobileNetV2's channels are int(base / 2); rounded to multiples of eight, as in other
    code, it would cost more.
    """
    found = {}
    with torch.device("meta"):
        for depth in DEPTHS:
            model = nets.resnet_cifar(depth, classes=100, projection=True)
            found[f"ResNet-{depth}"] = {"parameters": parameter_count(model), "mac": cost(model, (3, 32, 32)).mac}
        student = nets.mobilenet_v2(0.5)
        found["MobileNetV2 0.5"] = {"parameters": parameter_count(student), "mac": cost(student, (3, 224, 224)).mac}
    run.measurements["networks"] = found
