"""Data-free learning of student networks (Chen et al. 2019): a generator whose images a trained teacher takes for data.

The teacher is frozen and stands in for the discriminator. Three losses on what it answers to generated images train the
generator: each prediction certain, features active, all classes equally frequent. A student then learns the teacher's
answers to the same images. This module has the networks' parts and the losses, in the form of the paper's equations and
in that of the authors' code; :mod:`shrinkbook.methods.dafl_training` has the steps.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shrinkbook.methods.distillation import with_inputs

Form = Literal["code", "paper"]


class UpsampledConv2d(nn.Conv2d):
    """A 3x3 convolution of the map enlarged twice by repetition, computed on the small map: 4/9 of the products.

    Of the enlarged rows 2i - 1, 2i, 2i + 1 that output row 2i reads, two repeat row i of the small map: their weights
    add up: each of the four phases of the output is a 2x2 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, o, 2h, 2w)."""
        (n, _, h, w), o = input.shape, self.out_channels
        first, middle, last = self.weight.unbind(2)
        rows = torch.stack([torch.stack([first, middle + last]), torch.stack([first + middle, last])])  # phase, tap
        first, middle, last = rows.unbind(4)
        columns = torch.stack([torch.stack([first, middle + last]), torch.stack([first + middle, last])])
        phases = columns.permute(2, 0, 4, 5, 3, 1).reshape(4 * o, -1, 2, 2)  # row phase, column phase, o; c; taps
        assert self.bias is not None
        found = F.conv2d(input, phases, self.bias.repeat(4), padding=1).view(n, 2, 2, o, h + 1, w + 1)
        parts = [[found[:, a, b, :, a : a + h, b : b + w] for b in range(2)] for a in range(2)]
        return torch.stack([torch.stack(row, 4) for row in parts], 3).reshape(n, o, 2 * h, 2 * w)


class Generator(nn.Module):
    """Noise to images: a linear layer, two nearest up-samplings with 3x3 convolutions, as in the authors' code.

    The last batch norm has no weights and always uses the batch's own statistics: every batch leaves with mean 0 and
    variance 1 in each channel, which is where normalised data lie, not in [-1, 1]. So it stays in training mode. Two
    batch norms have an epsilon of 0.8, in the code probably meant as their momentum.

    Args:
        side: of the square images, a multiple of 4.
        channels: of the images.
        latent: length of the noise vector z; 100 on MNIST, 1000 on CIFAR.
        width: maps of the first two stages, 128 in the code; the third has half of them.

    Raises:
        ValueError: a side that is not a multiple of 4.
    """

    def __init__(self, side: int = 32, channels: int = 1, latent: int = 100, width: int = 128) -> None:
        super().__init__()
        if side < 4 or side % 4:
            raise ValueError(f"Generator: side {side} is not a multiple of 4, which two up-samplings need")
        self.latent = latent
        self.start = nn.Sequential(
            nn.Linear(latent, width * (side // 4) ** 2),
            nn.Unflatten(1, (width, side // 4, side // 4)),
            nn.BatchNorm2d(width),
        )
        self.blocks = nn.Sequential(
            UpsampledConv2d(width, width),
            nn.BatchNorm2d(width, eps=0.8),
            nn.LeakyReLU(0.2, inplace=True),
            UpsampledConv2d(width, width // 2),
            nn.BatchNorm2d(width // 2, eps=0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width // 2, channels, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(channels, affine=False),
        )

    def forward(self, z: Tensor) -> Tensor:
        """(n, latent) of standard normal numbers -> (n, channels, side, side), standardised over the batch."""
        return self.blocks(self.start(z))


class Teacher:
    """A trained network as the fixed discriminator: calling it gives logits and the features that L_a reads.

    The gradient passes through it to the images; its own weights and statistics never change.

    Args:
        model: in evaluation mode, with ``requires_grad_(False)``.
        features: path of the module whose input is the features: the first linear layer of LeNet-5, the linear layer of
            a ResNet: what comes before the last fully connected part.

    Raises:
        ValueError: a model in training mode or with gradients on, a module that does not exist.
    """

    def __init__(self, model: nn.Module, features: str) -> None:
        if model.training:
            raise ValueError("Teacher: the model is in training mode, so its batch norms would move; call eval() first")
        if any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("Teacher: the model's gradients are on; freeze it with requires_grad_(False) first")
        paths = [path for path, _ in model.named_modules() if path]
        if features not in paths:
            raise ValueError(f"Teacher: no module {features!r} in {type(model).__name__}; it has {', '.join(paths)}")
        self.model, self.features = model, features

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(n, c, h, w) -> logits (n, k) and features (n, width)."""
        logits, seen = with_inputs(self.model, self.model.get_submodule(self.features), images)
        return logits, seen[0].flatten(1)


@dataclass(frozen=True)
class Weights:
    """Weights of the three losses in the total; the defaults are those of MNIST, for losses in the code's form.

    Args:
        one_hot: of L_oh, 1 in the paper's sum.
        entropy: beta, of L_ie.
        activation: alpha, of L_a.
    """

    one_hot: float = 1.0
    entropy: float = 5.0
    activation: float = 0.1


@dataclass(frozen=True)
class Losses:
    """The total and its three parts, unweighted; scalars with gradient."""

    total: Tensor
    one_hot: Tensor
    entropy: Tensor
    activation: Tensor


def one_hot_loss(logits: Tensor) -> Tensor:
    """L_oh: mean cross entropy of the teacher's predictions with their own largest class.

    Args:
        logits: (n, k).

    Returns:
        A scalar in nats, 0 or above; 0 where every prediction is certain. No gradient comes through the choice.

    Raises:
        ValueError: no image, or logits that are no matrix.
    """
    _batch("one_hot_loss", "logits", logits)
    return F.cross_entropy(logits, logits.argmax(1))


def activation_loss(features: Tensor, form: Form = "code") -> Tensor:
    """L_a: minus the l1 norm of a sample's features, mean over the batch.

    Args:
        features: (n, width).
        form: ``paper`` sums over the width, ``code`` takes the mean: L_a(paper) = width L_a(code).

    Raises:
        ValueError: no image, features that are no matrix, an unknown form.
    """
    _known(form)
    _batch("activation_loss", "features", features)
    return -(features.abs().mean() if form == "code" else features.abs().sum(1).mean())


def information_entropy_loss(logits: Tensor, form: Form = "code") -> Tensor:
    """L_ie: minus the entropy of the batch's mean prediction; least when all classes are equally frequent.

    With p the mean over the batch of softmax(logits), ``paper`` is sum_j p_j ln p_j / k, between -ln(k) / k and 0;
    ``code`` is sum_j p_j log10 p_j, between -log10 k and 0. So L_ie(code) = k / ln 10 L_ie(paper).

    Args:
        logits: (n, k). A batch of fewer images than classes cannot have all classes with certainty: a warning says so.

    Raises:
        ValueError: no image, logits that are no matrix, an unknown form.
    """
    _known(form)
    _batch("information_entropy_loss", "logits", logits)
    n, k = logits.shape
    if n < k:
        warnings.warn(
            f"information_entropy_loss: {n} images cannot be certain and show all {k} classes; use a larger batch",
            stacklevel=2,
        )
    mean = logits.softmax(1).mean(0)
    entropy = torch.special.entr(mean).sum()  # 0 ln 0 = 0
    return -entropy / (math.log(10) if form == "code" else k)


def generator_loss(logits: Tensor, features: Tensor, weights: Weights, form: Form = "code") -> Losses:
    """L_Total = L_oh + alpha L_a + beta L_ie, and its parts.

    Weights do not carry over between forms: see :func:`converted`.

    Args:
        logits: (n, k) of the teacher.
        features: (n, width) of the teacher.

    Raises:
        ValueError: unequal batches, no image, not matrices, an unknown form.
    """
    if logits.shape[:1] != features.shape[:1]:
        shapes = f"logits {tuple(logits.shape)}, features {tuple(features.shape)}"
        raise ValueError(f"generator_loss: {shapes}; both need the same batch")
    parts = one_hot_loss(logits), information_entropy_loss(logits, form), activation_loss(features, form)
    factors = weights.one_hot, weights.entropy, weights.activation
    total = sum(factor * part for factor, part in zip(factors, parts, strict=True))
    assert isinstance(total, Tensor)
    return Losses(total, *parts)


def converted(weights: Weights, classes: int, width: int) -> Weights:
    """Weights for the paper's form that give the same total as these give in the code's form.

    beta is multiplied by k / ln 10, 4.34 for 10 classes and 43.4 for 100; alpha is divided by the features' width.

    Args:
        weights: for losses in the code's form.
        classes: k.
        width: of the features.
    """
    return Weights(weights.one_hot, weights.entropy * classes / math.log(10), weights.activation / width)


def mean_entropy(logits: Tensor) -> Tensor:
    """Entropy of the batch's mean prediction as a share of ln k: 1 for all classes equally, 0 for a single one."""
    mean = logits.detach().double().softmax(1).mean(0)
    return torch.special.entr(mean).sum() / math.log(logits.shape[1])


def best_matches(filters: Tensor, others: Tensor) -> Tensor:
    """For each filter the largest absolute cosine with any of the others, and where: how alike two layers look.

    Args:
        filters: (n, ...) of one network, such as the student's first convolution.
        others: (m, ...) of the other, with filters of the same shape.

    Returns:
        (n,) cosines from 0 to 1; a filter that is zero gives 0.

    Raises:
        ValueError: filters of unlike shapes.
    """
    return similarities(filters, others).abs().amax(1)


def similarities(filters: Tensor, others: Tensor) -> Tensor:
    """(n, m) cosines between the filters (n, ...) and the others (m, ...) of the same shape.

    Raises:
        ValueError: filters of unlike shapes.
    """
    if filters.shape[1:] != others.shape[1:]:
        raise ValueError(f"similarities: filters of shape {tuple(filters.shape[1:])} and {tuple(others.shape[1:])}")
    return F.normalize(filters.flatten(1), dim=1) @ F.normalize(others.flatten(1), dim=1).T


def _batch(loss: str, what: str, matrix: Tensor) -> None:
    if matrix.ndim != 2 or not len(matrix):
        raise ValueError(f"{loss}: {what} {tuple(matrix.shape)}; they must be (images, numbers) of at least one image")


def _known(form: str) -> None:
    if form not in get_args(Form):
        raise ValueError(f"unknown form {form!r} of the losses; there are {', '.join(get_args(Form))}")
