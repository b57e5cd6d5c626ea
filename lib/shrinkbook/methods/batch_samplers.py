"""Batches that hold several images of one class (Peng et al. 2019, section 3.5): class-uniform, superclass-uniform.

With many classes and a small batch, uniform draws hardly ever put two images of one class into a batch, and a
correlation matrix says nothing about them. A sampler here is a function (indices, generator) -> batches of indices.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Sampler = Callable[[Tensor, torch.Generator], list[Tensor]]


def class_uniform(labels: Tensor, batch: int, per_class: int) -> Sampler:
    """CUR: every batch holds ``per_class`` images of each of batch / per_class classes, the classes drawn at random.

    With superclasses as labels it is the paper's SUR. An epoch has as many batches as uniform draws would give. A class
    hands out all its images before it starts over.

    Args:
        labels: (images,) class or superclass of every training image.
        batch: images of a batch.
        per_class: k of the paper.

    Returns:
        A sampler; it raises a ValueError where fewer classes or images are there than a batch needs.

    Raises:
        ValueError: k does not divide the batch.
    """
    if per_class < 1 or batch % per_class:
        raise ValueError(f"class_uniform: k = {per_class} does not divide a batch of {batch}; take a k that does")
    labels = labels.cpu()

    def sampler(indices: Tensor, generator: torch.Generator) -> list[Tensor]:
        chosen = labels[indices]
        members = [indices[chosen == label] for label in chosen.unique()]
        if batch // per_class > len(members):
            raise ValueError(
                f"class_uniform: a batch of {batch} with k = {per_class} needs {batch // per_class} classes, there are "
                f"{len(members)}; raise k or shrink the batch"
            )
        if (smallest := min(map(len, members))) < per_class:
            raise ValueError(
                f"class_uniform: k = {per_class}, but a class has only {smallest} images; lower k, or make fewer "
                "superclasses"
            )
        queues = [torch.empty(0, dtype=torch.int64) for _ in members]

        def draw(which: int) -> Tensor:
            if len(queues[which]) < per_class:  # those left over go first
                again = members[which][torch.randperm(len(members[which]), generator=generator)]
                queues[which] = torch.cat([queues[which], again[~torch.isin(again, queues[which])]])
            taken, queues[which] = queues[which].split([per_class, len(queues[which]) - per_class])
            return taken

        batches = []
        for _ in range(math.ceil(len(indices) / batch)):
            classes = torch.randperm(len(members), generator=generator)[: batch // per_class]
            batches.append(torch.cat([draw(which) for which in classes.tolist()]))
        return batches

    return sampler


def superclasses(features: Tensor, count: int, seed: int = 0, smallest: int = 1) -> Tensor:
    """Superclasses by k-means on the teacher's features, (images,) int64: labels of the SUR sampler.

    Args:
        features: (images, d), one pass of the teacher over the training images.
        count: number of superclasses, at most: those of fewer images than ``smallest`` go to their nearest neighbours.
        seed: of k-means.
        smallest: k of the sampler that will use them.

    Raises:
        ValueError: fewer images than superclasses, or none of them large enough.
    """
    from sklearn.cluster import KMeans

    if not 1 <= count <= len(features):
        raise ValueError(f"superclasses: {count} superclasses of {len(features)} images; give 1 to {len(features)}")
    points = features.detach().cpu().numpy()
    means = KMeans(count, n_init=4, random_state=seed).fit(points)
    large = np.bincount(means.labels_, minlength=count) >= smallest
    if not large.any():
        raise ValueError(f"superclasses: none of {count} has {smallest} images; make fewer")
    nearest = np.where(large, means.transform(points), np.inf).argmin(1)
    return torch.from_numpy(np.where(large[means.labels_], means.labels_, nearest)).long()


def same_class_pairs(labels: Tensor) -> int:
    """How many pairs of a batch are of one class."""
    counts = labels.unique(return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())
