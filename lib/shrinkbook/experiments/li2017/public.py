"""ResNet-56 on CIFAR-10 with public weights: what two processor cores can carry on real data."""

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.li2017.retrain import retrain_one
from shrinkbook.experiments.li2017.scan import residual_scan
from shrinkbook.experiments.public import loaded


def public_scan(run: Context) -> None:
    """Figure 6 (ResNet-56): all 27 first layers, with the smallest, random and largest filters removed."""
    residual_scan(run, loaded(run))


def public_retrain(run: Context) -> None:
    """ResNet-56-pruned-A and -B before and after a short retraining at the paper's constant rate."""
    model = loaded(run)
    for name in run.config["models"]:
        retrain_one(run, model, name)
