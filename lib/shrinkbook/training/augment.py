"""The CIFAR augmentation of He et al. 2016, section 4.2: pad, crop at random, flip at random; one gather per batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def draw_crop_flip(count: int, padding: int, generator: torch.Generator) -> Tensor:
    """Offsets and flips for `count` images, drawn on the generator's device.

    Returns:
        int64 (count, 3): top and left offset in 0..2 * padding, flip in 0..1, independent for each image.
    """
    device = generator.device
    offsets = torch.randint(2 * padding + 1, (count, 2), generator=generator, device=device)
    return torch.cat([offsets, torch.randint(2, (count, 1), generator=generator, device=device)], dim=1)


def crop_flip(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Zero-pad every side, cut out the original size at each image's own offset, mirror where asked.

    Args:
        images: (n, c, h, w), raw pixels, so that the padding is black as in the usual pipeline.
        draws: (n, 3) from draw_crop_flip.
        padding: pixels on each side.

    Returns:
        (n, c, h, w) of the same type, in channels-last strides.
    """
    count, _, height, width = images.shape
    top, left, flip = draws.to(images.device).unbind(1)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, -1)
    columns = left[:, None] + torch.where(flip[:, None] == 1, width - 1 - columns, columns)
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    image = torch.arange(count, device=images.device)
    return padded[image[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
