"""Images that are not the training data: another size of it, other digits, typeset ones, other classes."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shrinkbook.training import data

FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold"),
    *("DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmtt10"),
)
PIXELS = 64  # side at which glyphs are drawn
SHARES = (0.6, 0.75, 0.9, 1.0)  # of the width that a glyph fills


def resized(images: data.DataSet, side: int) -> data.DataSet:
    """The same images at another side, bilinear as the authors resize MNIST to 32x32; as they are if it is theirs."""
    if images.x_test.shape[-1] == side:
        return images
    return replace(images, x_train=_bilinear(images.x_train, side), x_test=_bilinear(images.x_test, side))


def alternative(name: str, like: data.DataSet) -> Tensor:
    """Images from elsewhere in the size of a data set, normalised by its constants.

    Args:
        name: ``typeset``, digits of twelve fonts; ``digits``, all of scikit-learn's, resized; else a data set.
        like: the data set in whose place they stand.

    Returns:
        float32 (n, c, h, w) on the data set's device.
    """
    side = like.x_test.shape[-1]
    if name == "typeset":
        images = typeset(side)
    elif name == "digits":
        both = data.load("digits")
        images = _bilinear(torch.cat([both.x_train, both.x_test]), side)
    else:
        images = resized(data.load(name), side).x_train
    return like.normalise(images.to(like.x_train.device))


@cache
def typeset(side: int) -> Tensor:
    """The ten digits in twelve of matplotlib's fonts and four widths each: uint8 (480, 1, side, side)."""
    import matplotlib  # here: it takes long to import, and other runs draw nothing

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    glyphs = [_glyph(folder / f"{font}.ttf", digit) for font in FONTS for digit in "0123456789"]
    drawn = torch.stack([_stretched(glyph, share) for glyph in glyphs for share in SHARES])
    return F.adaptive_avg_pool2d(drawn[:, None], side).round().to(torch.uint8)


def _glyph(path: Path, digit: str) -> Tensor:
    """One glyph, cut to its box: float32 (h, w)."""
    from matplotlib.ft2font import FT2Font

    font = FT2Font(str(path))
    font.set_size(PIXELS, 72)
    font.set_text(digit)
    font.draw_glyphs_to_bitmap(antialiased=True)
    image = np.asarray(font.get_image(), dtype=np.float32)
    return torch.from_numpy(image[np.ix_(image.any(1), image.any(0))])


def _stretched(glyph: Tensor, share: float) -> Tensor:
    """A glyph stretched to the full height and a share of the width of a square, in its middle."""
    width = round(share * PIXELS)
    box = F.interpolate(glyph[None, None], (PIXELS, width), mode="bilinear")[0, 0]
    left = (PIXELS - width) // 2
    return F.pad(box, (left, PIXELS - width - left))


def _bilinear(images: Tensor, side: int) -> Tensor:
    parts = [F.interpolate(part.float(), side, mode="bilinear").round().to(torch.uint8) for part in images.split(4096)]
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)
