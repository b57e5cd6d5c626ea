"""Parameters and FLOPs of every network of the paper, and which operations the printed figures count."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from shrinkbook import nets
from shrinkbook.evidence import claims
from shrinkbook.experiments.experiment import Context
from shrinkbook.measure.cost import parameter_count
from shrinkbook.measure.operations import operations

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "LeNet-5": (nets.lenet5, (1, 32, 32)),
    "LeNet-5-Half": (nets.lenet5_half, (1, 32, 32)),
    "Hinton-784-1200-1200-10": (nets.hinton_net, (1, 28, 28)),
    "Hinton-784-800-800-10": (partial(nets.hinton_net, 800), (1, 28, 28)),
    "ResNet-34": (nets.resnet34_cifar, (3, 32, 32)),
    "ResNet-18": (nets.resnet18_cifar, (3, 32, 32)),
    "ResNet-34, 100 classes": (partial(nets.resnet34_cifar, 100), (3, 32, 32)),
    "ResNet-18, 100 classes": (partial(nets.resnet18_cifar, 100), (3, 32, 32)),
    "AlexNet": (partial(nets.alexnet_one_tower, 2), (3, 224, 224)),
    "AlexNet-Half": (partial(nets.alexnet_one_tower, 2, half=True), (3, 224, 224)),
}
PAIRS = {  # table -> column prefix -> teacher and student
    "table1": {
        "LeNet-5": ("LeNet-5", "LeNet-5-Half"),
        "HintonNet": ("Hinton-784-1200-1200-10", "Hinton-784-800-800-10"),
    },
    "table3": {"CIFAR": ("ResNet-34", "ResNet-18")},
    "table4": {"CelebA": ("AlexNet", "AlexNet-Half")},
}
READINGS = {  # what is counted, from the narrowest to the widest
    "products": ("products",),
    "with biases": ("products", "bias"),
    "with biases, batch norm and activations": ("products", "bias", "batch norm", "activation", "addition"),
    "all of the network": ("products", "bias", "batch norm", "activation", "addition", "pooling"),
    "and normalised pixels": ("products", "bias", "batch norm", "activation", "addition", "pooling", "pixels"),
}
JUDGED = "all of the network"  # as common counters do; the last reading was found afterwards, see deviation counting


def costs(run: Context) -> None:
    """Cells of cost by the reading that is judged, and every network in every reading."""
    found = run.measurements.setdefault("networks", {})
    for name, (build, shape) in NETWORKS.items():
        with torch.device("meta"):
            model = build()
        counted = operations(model, shape)
        parameters = parameter_count(model)
        found[name] = {
            "parameters": parameters,
            **{reading: sum(counted[kind] for kind in kinds) for reading, kinds in READINGS.items()},
        }
    paper = claims.load("chen2019")
    for table, columns in PAIRS.items():
        for column, (teacher, student) in columns.items():
            for row in paper.tables[table].rows:
                one = found[teacher if row == "teacher" else student]
                run.cell(f"{table}/{row}/{column} FLOPs", one[JUDGED])
                if table != "table4":  # which prints none
                    run.cell(f"{table}/{row}/{column} parameters", one["parameters"])
