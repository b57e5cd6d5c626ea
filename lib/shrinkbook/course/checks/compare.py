"""What the checks have in common: numbers drawn by seed, and a comparison that knows the usual mistakes."""

from collections.abc import Mapping

import torch
from torch import Tensor

Number = Tensor | float


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64: the same for the same seed and shape."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def agree(
    what: str,
    found: object,
    expected: Number,
    mistakes: Mapping[str, Number] | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-9,
) -> None:
    """Compare what an implementation gave with what it should give.

    Args:
        what: names the result, at the beginning of every sentence.
        mistakes: remark -> what an implementation with that mistake gives; the remark is part of the sentence.

    Raises:
        AssertionError: no tensor, another shape, or other numbers.
    """
    if not isinstance(found, Tensor | float | int):
        given = "None: is there a return?" if found is None else f"a {type(found).__name__}, not a tensor"
        raise AssertionError(f"{what} is {given}")
    right, value = torch.as_tensor(expected).double(), torch.as_tensor(found).detach().double()
    if value.shape != right.shape:
        raise AssertionError(f"{what} has shape {tuple(value.shape)}; expected {tuple(right.shape)}")
    if torch.allclose(value, right, rtol=rtol, atol=atol):
        return
    if not value.isfinite().all():
        raise AssertionError(f"{what} is not finite: {_shown(value)}")
    for remark, wrong in (mistakes or {}).items():
        other = torch.as_tensor(wrong).double()
        if other.shape == value.shape and torch.allclose(value, other, rtol=rtol, atol=atol):
            raise AssertionError(f"{what}: {remark}")
    raise AssertionError(f"{what} is {_shown(value)}; expected {_shown(right)}")


def _shown(value: Tensor) -> str:
    """A number, or the first numbers of several."""
    if value.ndim == 0:
        return f"{value.item():.6g}"
    first = [f"{number:.4g}" for number in value.flatten()[:4].tolist()]
    return f"[{', '.join(first)}{', ...' if value.numel() > 4 else ''}]"
