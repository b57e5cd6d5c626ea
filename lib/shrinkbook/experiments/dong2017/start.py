"""Networks of the experiments before training, side by side: what products of gates do to images and gradients."""

import pandas as pd
import torch
from torch import nn

from shrinkbook.experiments.dong2017.gated import started
from shrinkbook.methods.lccl_start import evenness, gradient_norm

IMAGES = {"pre-activation ResNet-20": (64, 3, 32, 32), "digits pre-activation ResNet": (64, 1, 8, 8)}
ARMS = ("baseline", "first", "lccl", "relu", "hard")


def start_table() -> pd.DataFrame:
    """Evenness of 64 images of noise behind the last block, and norm of the gradient, of networks of seed 0."""
    rows = {}
    for net, shape in IMAGES.items():
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(len(images)) % 10
        for arm in ARMS:
            model = started(net, arm, seed=0).train()
            norm = gradient_norm(model, images, labels)
            with torch.no_grad():
                even = evenness(blocks(model)(images))
            rows[net, arm] = {"median over mean energy": f"{even:.1g}", "norm of the gradient": f"{norm:.2g}"}
    return pd.DataFrame(rows).T.rename_axis(["network", "arm"])


def blocks(model: nn.Module) -> nn.Sequential:
    """A pre-activation ResNet up to its last block, with the same weights."""
    return nn.Sequential(*(one for name, one in model.named_children() if name == "stem" or name.startswith("layer")))
