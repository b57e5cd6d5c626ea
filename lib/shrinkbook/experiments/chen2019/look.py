"""What generated images and trained filters look like, in numbers: class means, correlations, best matches."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from shrinkbook.experiments.steps import rounded
from shrinkbook.methods.dafl import best_matches, similarities


def class_means(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(classes, c, h, w): mean image of each class, zeros for a class that has none."""
    sums = torch.zeros(classes, *images.shape[1:], device=images.device).index_add_(0, labels, images.float())
    counts = torch.bincount(labels, minlength=classes).clamp_min(1)
    return sums / counts.view(-1, *[1] * (images.ndim - 1))


def correlations(first: Tensor, second: Tensor) -> Tensor:
    """(n, m) Pearson correlations of images (n, ...) with images (m, ...); 0 where one of them is flat."""
    centred = [part.flatten(1) - part.flatten(1).mean(1, keepdim=True) for part in (first, second)]
    return similarities(*centred)


def agreement(means: Tensor, real: Tensor) -> dict[str, float] | None:
    """How far class means look like those of the real classes: like their own, like the others, and the difference.

    A class that no image was taken for counts as uncorrelated; ``classes`` says how many have one. None where a
    generator that diverged made images that are not numbers.
    """
    table = correlations(means, real)
    if not table.isfinite().all():
        return None
    own, count = table.diag().sum().item(), len(table)
    others = (table.sum().item() - own) / (count * (count - 1))
    shown = int((means.flatten(1) != 0).any(1).sum())
    return {"own": own / count, "others": others, "gap": own / count - others, "classes": shown}


def first_layer(model: nn.Module) -> Tensor:
    """The weights that read the image."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    return first.weight.detach()


def likeness(student: nn.Module, teacher: nn.Module) -> float | None:
    """Mean over the student's first filters of the best absolute cosine with one of the teacher's; None if diverged."""
    found = float(best_matches(first_layer(student), first_layer(teacher)).mean())
    return found if math.isfinite(found) else None


def matched(student: nn.Module, teacher: nn.Module) -> dict[str, Any]:
    """For the figure: each first filter of the student, the teacher's best match in the sign that fits, the cosine."""
    own, others = first_layer(student).nan_to_num(), first_layer(teacher)
    if own.ndim != 4:  # a fully connected layer: rows of as many weights as the image has pixels
        side = int(own.shape[1] ** 0.5)
        own, others = (part.reshape(len(part), 1, side, side) / part.abs().max() for part in (own[:16], others))
    table = similarities(own, others)
    best = table.abs().argmax(1)
    found = table.gather(1, best[:, None])[:, 0]
    return {
        "student": [picture(filter) for filter in own],
        "teacher": [picture(others[index] * found[row].sign()) for row, index in enumerate(best)],
        "cosine": rounded(found.abs().tolist()),
    }


def picture(image: Tensor) -> list[list[int]]:
    """(c, h, w) as rows of whole hundredths for a run file, channels averaged."""
    return (100 * image.float().mean(0)).nan_to_num().round().int().tolist()
