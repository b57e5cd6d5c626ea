"""Pruning whole filters with the smallest weights (Li et al. 2017): choose, mask, cut out, scan.

A network takes part by offering ``couplings() -> {layer name: Coupling}``, from input to output. A *selection* is
``{layer name: kept map indices, ascending}``; masking and surgery take the same selection and give the same function.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from shrinkbook.methods.filter_criteria import Score, filter_l1
from shrinkbook.methods.filter_surgery import keep_filters, keep_inputs, keep_norm
from shrinkbook.nets.coupling import Coupling

Selection = dict[str, Tensor]
Scores = Score | Mapping[str, Tensor]
T = TypeVar("T")


def couplings_of(model: nn.Module) -> dict[str, Coupling]:
    """The sets of maps that can be pruned, by layer name, from input to output.

    Raises:
        ValueError: the network does not offer them.
    """
    if not hasattr(model, "couplings"):
        raise ValueError(f"{type(model).__name__} does not say which maps belong together; give it couplings()")
    couplings: Any = model.couplings
    return couplings()


def ranked_kernel(model: nn.Module, coupling: Coupling) -> Tensor:
    """The kernel (maps, in_channels, k, k) whose filters decide which of the coupled maps go."""
    return _module(model, coupling.ranked_by).weight.detach()


def kept_count(filters: int, ratio: float) -> int:
    """Filters that stay when a share ``ratio`` goes: floor(n (1 - p)), in exact decimal arithmetic.

    The paper does not say how it rounds; this rule and no other gives every FLOP figure of its table 1.

    Raises:
        ValueError: the ratio is not in [0, 1), or no filter would stay.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"pruning ratio {ratio} is outside [0, 1); 0.5 removes half of the filters")
    kept = int(filters * (1 - Fraction(str(ratio))))
    if kept == 0:
        raise ValueError(f"pruning ratio {ratio} leaves none of {filters} filters; use less than {1 - 1 / filters:.3f}")
    return kept


def keep_highest(scores: Tensor, kept: int) -> Tensor:
    """Indices of the ``kept`` highest scores, ascending; of equal scores the lower index stays."""
    return torch.sort(scores, descending=True, stable=True).indices[:kept].sort().values


def select(
    model: nn.Module,
    ratios: Mapping[str, float],
    scores: Scores = filter_l1,
    strategy: Literal["independent", "greedy"] = "independent",
) -> Selection:
    """Choose which maps of several layers stay (section 3.4).

    Independent: a filter's score sums over all its input channels. Greedy: layers are taken from input to output and
    the score sums over the input channels that survived before, sum over l in kept of |F_{i,j}[l]|. Shapes are equal.

    Args:
        model: offers ``couplings()``.
        ratios: layer name -> share of filters to remove.
        scores: a function of the kernel, or ready scores per layer (which have no greedy form).
        strategy: which of the two selections.

    Raises:
        ValueError: unknown layer or strategy, a ratio out of range, greedy selection with ready scores.
    """
    couplings = couplings_of(model)
    for name, ratio in ratios.items():
        if name not in couplings:
            raise ValueError(f"no prunable layer {name!r}; this network has {', '.join(couplings)}")
        filters = len(ranked_kernel(model, couplings[name]))
        try:
            kept_count(filters, ratio)
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from None
    if strategy not in ("independent", "greedy"):
        raise ValueError(f"unknown selection strategy {strategy!r}; there are independent and greedy")
    if strategy == "greedy" and not callable(scores):
        raise ValueError("greedy selection needs a score of the kernel, not ready scores per layer")
    selection: Selection = {}
    for name, coupling in couplings.items():
        if name not in ratios:
            continue
        weight = ranked_kernel(model, coupling)
        if callable(scores):
            if strategy == "greedy":
                for earlier, kept in selection.items():
                    if coupling.ranked_by in couplings[earlier].consumers:
                        weight = weight.index_select(1, kept)
            values = scores(weight)
        else:
            values = scores[name]
        selection[name] = keep_highest(values, kept_count(len(weight), ratios[name]))
    return selection


@contextmanager
def masked(model: nn.Module, selection: Selection) -> Iterator[nn.Module]:
    """Silence every map that is not kept, and restore the network afterwards.

    Filters, biases and the batch norm's scale and shift of removed maps become zero, so that the maps are exactly zero
    for whoever reads them: the function that :func:`slim` computes with a smaller network.
    """
    couplings = couplings_of(model)
    saved: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for name, kept in selection.items():
            for path in (*couplings[name].producers, *couplings[name].norms):
                module = _module(model, path)
                for parameter in (module.weight, module.bias):
                    if parameter is not None:
                        saved.append((parameter, parameter.clone()))
                        removed = torch.ones(len(parameter), dtype=torch.bool, device=parameter.device)
                        removed[kept] = False
                        parameter[removed] = 0
    try:
        yield model
    finally:
        with torch.no_grad():
            for parameter, value in reversed(saved):
                parameter.copy_(value)


def slim(model: nn.Module, selection: Selection) -> nn.Module:
    """Cut the network down to the kept maps: a new, smaller network with copied weights (section 3.1, steps 4 and 5).

    Removed are the filters and their biases, their batch-norm entries (scale, shift, mean, variance), the input slices
    of the convolutions that read them, and the input columns of a linear layer behind a flatten.
    """
    couplings = couplings_of(model)
    smaller = copy.deepcopy(model)
    for name, kept in selection.items():
        coupling = couplings[name]
        maps = len(ranked_kernel(smaller, coupling))
        for path in coupling.producers:
            keep_filters(_module(smaller, path), kept)
        for path in coupling.norms:
            keep_norm(_module(smaller, path), kept)
        for path in coupling.consumers:
            keep_inputs(_module(smaller, path), kept, maps)
    return smaller


def sensitivity(
    model: nn.Module,
    layers: Sequence[str],
    ratios: Sequence[float],
    measure: Callable[[nn.Module], T],
    scores: Scores = filter_l1,
    retrain: Callable[[nn.Module], Any] | None = None,
) -> dict[str, list[T]]:
    """Prune one layer at a time at growing ratios and measure (section 3.2; figures 2b, 6, 7, 8; 2c with retraining).

    Args:
        measure: called with the pruned network; its results are returned as they are.
        retrain: trains the cut-down network in place before it is measured; without it the network is only masked.

    Returns:
        layer name -> one result per ratio, in the order given.
    """
    results: dict[str, list[T]] = {}
    for layer in layers:
        results[layer] = []
        for ratio in ratios:
            selection = select(model, {layer: ratio}, scores)
            if retrain is None:
                with masked(model, selection):
                    results[layer].append(measure(model))
            else:
                smaller = slim(model, selection)
                retrain(smaller)
                results[layer].append(measure(smaller))
    return results


def split_before(model: nn.Module, layer: str) -> tuple[nn.Module, nn.Module]:
    """Cut the network before a layer: ``tail(head(x)) == model(x)``, weights shared with the model.

    A scan of one layer runs the head once and the tail for every ratio; masks on the model act in the tail.

    Args:
        model: offers ``couplings()`` and ``chain()``.
        layer: a prunable layer; the cut lies before the first module that holds one of its producers.
    """
    chain: list[nn.Module] = model.chain()  # type: ignore[operator]
    producers = [model.get_submodule(path) for path in couplings_of(model)[layer].producers]
    cut = next(i for i, part in enumerate(chain) if any(module in producers for module in part.modules()))
    return nn.Sequential(*chain[:cut]), nn.Sequential(*chain[cut:])


def compress(
    model: nn.Module,
    ratios: Mapping[str, float],
    scores: Scores = filter_l1,
    strategy: Literal["independent", "greedy"] = "independent",
) -> tuple[nn.Module, dict[str, Any]]:
    """Prune several layers at once.

    Returns:
        The smaller network, not yet retrained, and a report: filters ``before`` and ``after`` by layer.
    """
    selection = select(model, ratios, scores, strategy)
    couplings = couplings_of(model)
    report = {
        "before": {name: len(ranked_kernel(model, couplings[name])) for name in selection},
        "after": {name: len(kept) for name, kept in selection.items()},
    }
    return slim(model, selection), report


def _module(model: nn.Module, path: str) -> Any:
    """A convolution, batch norm or linear layer; typed loosely, for torch types every attribute of a module alike."""
    return model.get_submodule(path)
