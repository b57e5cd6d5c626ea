"""Scores that decide which filters go first (Li et al. 2017, sections 3.1, 4.4, 4.5 and appendix)."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

Score = Callable[[Tensor], Tensor]
"""Kernel (out_channels, in_channels, k, k) -> (out_channels,) scores; the smallest go first, within one layer."""

ACTIVATION_CRITERIA = ("mean-mean", "mean-std", "mean-l1", "mean-l2", "var-l2")


def filter_l1(weight: Tensor) -> Tensor:
    """Sum of absolute weights of each filter, the importance s_j of Li et al. 2017, section 3.1.

    Args:
        weight: convolution kernel, (out_channels, in_channels, k, k).

    Returns:
        (out_channels,) scores; smaller means pruned earlier. Comparable within one layer only.
    """
    return weight.abs().sum(dim=(1, 2, 3))


def filter_l2(weight: Tensor) -> Tensor:
    """Euclidean norm of each filter, the alternative of the appendix (figure 10). Shapes as in :func:`filter_l1`."""
    return weight.square().sum(dim=(1, 2, 3)).sqrt()


def largest_first(weight: Tensor) -> Tensor:
    """The control of section 4.4 that removes the filters with the largest l1 norm: :func:`filter_l1` negated."""
    return -filter_l1(weight)


def random_filters(seed: int) -> Score:
    """The control of section 4.4 that removes filters at random: uniform scores, a new draw for every layer asked."""
    generator = torch.Generator().manual_seed(seed)

    def score(weight: Tensor) -> Tensor:
        return torch.rand(len(weight), generator=generator).to(weight.device)

    return score


def activation_scores(
    model: nn.Module, layers: Mapping[str, str], batches: Iterable[Tensor]
) -> dict[str, dict[str, Tensor]]:
    """The five activation criteria of section 4.5 in one pass over the data.

    Statistics of each map x of a convolution's output, before batch norm and non-linearity: mean over images of its
    spatial mean, of its spatial standard deviation, of its l1 and of its l2 norm, and the variance over images of its
    l2 norm. Sums are kept in double precision.

    Args:
        model: the network, put into evaluation mode for the pass.
        layers: name to report -> module path of a convolution.
        batches: input batches (n, channels, height, width); each is used once.

    Returns:
        criterion -> layer name -> (out_channels,) scores, criteria as in ``ACTIVATION_CRITERIA``.

    Raises:
        ValueError: there was no image.
    """
    sums: dict[str, Tensor] = {}
    images = 0

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            maps = output.detach().flatten(2).double()
            l2 = maps.square().sum(2).sqrt()
            per_image = [maps.mean(2), maps.std(2, correction=0), maps.abs().sum(2), l2, l2.square()]
            sums[name] = sums.get(name, 0) + torch.stack([value.sum(0) for value in per_image])

        return hook

    handles = [model.get_submodule(path).register_forward_hook(watch(name)) for name, path in layers.items()]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                model(batch)
                images += len(batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if not images:
        raise ValueError("activation_scores: the data held no image; pass at least one batch")
    scores: dict[str, dict[str, Tensor]] = {criterion: {} for criterion in ACTIVATION_CRITERIA}
    for name, total in sums.items():
        mean = total / images
        values = [*mean[:4], mean[4] - mean[3].square()]
        for criterion, value in zip(ACTIVATION_CRITERIA, values, strict=True):
            scores[criterion][name] = value.float()
    return scores
