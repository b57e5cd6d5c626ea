"""Pruning whole filters with the smallest weights (Li et al. 2017): choose, mask, cut out, scan.

Any network takes part: its own ``couplings() -> {layer name: Coupling}``, from input to output, say which maps belong
together; without them its forward pass is traced, and layers carry the paths of their modules. A *selection* is
``{layer name: kept map indices, ascending}``; masking and surgery take the same selection and give the same function.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shrinkbook.measure.cost import Change, change
from shrinkbook.methods.filter_criteria import Score, filter_l1
from shrinkbook.methods.filter_surgery import keep_filters, keep_inputs, keep_norm
from shrinkbook.nets.coupling import Coupling
from shrinkbook.nets.tracing import traced

Selection = dict[str, Tensor]
Scores = Score | Mapping[str, Tensor]
T = TypeVar("T")


def couplings_of(model: nn.Module) -> dict[str, Coupling]:
    """The sets of maps that can be pruned, by layer name, from input to output.

    Raises:
        ValueError: the network has no ``couplings()`` and cannot be traced, or none of its convolutions can be pruned.
    """
    if not hasattr(model, "couplings"):
        found = traced(model)
        if not found.couplings:
            reason = next(iter(found.fixed.values()), "it has no convolutions")
            raise ValueError(f"{type(model).__name__} has no layer to prune ({reason}); give it couplings()")
        return found.couplings
    couplings: Any = model.couplings
    return couplings()


def ranked_kernel(model: nn.Module, coupling: Coupling) -> Tensor:
    """The kernel (maps, in_channels, k, k) whose filters decide which of the coupled maps go."""
    return _module(model, coupling.ranked_by).weight.detach()


def kept_count(filters: int, ratio: float) -> int:
    """Filters that stay when a share ``ratio`` goes: floor(n (1 - p)), in exact decimal arithmetic.

    The paper does not say how it rounds; of the usual rules only this one gives the FLOP figures of its table 1.

    Raises:
        ValueError: the ratio is no number in [0, 1), or no filter would stay.
    """
    if not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise ValueError(f"pruning ratio {ratio!r} is no number in [0, 1); 0.5 removes half of the filters")
    kept = int(filters * (1 - Fraction(str(ratio))))
    if kept == 0:
        most = int(1000 * (1 - 1 / filters)) / 1000
        remedy = f"use at most {most:g}" if most else "leave the layer out"
        raise ValueError(f"pruning ratio {ratio} leaves none of {filters} filters; {remedy}")
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
        model: any network, see :func:`couplings_of`.
        ratios: layer name -> share of filters to remove.
        scores: a function of the kernel, or ready scores per layer (which have no greedy form).
        strategy: which of the two selections.

    Raises:
        ValueError: unknown layer or strategy, a ratio out of range, greedy selection with ready scores.
    """
    couplings = couplings_of(model)
    for name, ratio in ratios.items():
        if name not in couplings:
            raise ValueError(_unknown(model, name, couplings))
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
                read, _ = _staying(model, couplings, selection, coupling.ranked_by)
                weight = weight.index_select(1, read.to(weight.device))
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
            coupling = couplings[name]
            for path in (*coupling.producers, *coupling.norms):
                module = _module(model, path)
                removed = _gone(model, coupling, path, kept)
                for parameter in (module.weight, module.bias):
                    if parameter is not None:
                        saved.append((parameter, parameter.clone()))
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
    of the convolutions that read them, and the input columns of a linear layer behind a flatten. Whoever reads maps of
    several layers side by side is cut once, when all of them are known.
    """
    couplings = couplings_of(model)
    smaller = copy.deepcopy(model)
    touched: dict[str, None] = {}
    for name, kept in selection.items():
        for path in couplings[name].producers:
            keep_filters(_module(smaller, path), kept)
        touched |= dict.fromkeys((*couplings[name].norms, *couplings[name].consumers))
    for path in touched:
        kept, maps = _staying(model, couplings, selection, path)
        if isinstance(module := _module(smaller, path), nn.Conv2d | nn.Linear):
            keep_inputs(module, kept, maps)
        else:
            keep_norm(module, kept)
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
        model: offers ``chain()``, as the suite's own networks do.
        layer: a prunable layer; the cut lies before the first module that holds one of its producers.

    Raises:
        ValueError: the network does not offer ``chain()``.
    """
    if not hasattr(model, "chain"):
        raise ValueError(f"{type(model).__name__} does not say how it is cut in two; give it chain(), or use masked()")
    chain: list[nn.Module] = model.chain()  # type: ignore[operator]
    producers = [model.get_submodule(path) for path in couplings_of(model)[layer].producers]
    cut = next(i for i, part in enumerate(chain) if any(module in producers for module in part.modules()))
    return nn.Sequential(*chain[:cut]), nn.Sequential(*chain[cut:])


@dataclass(frozen=True)
class Report(Change):
    """What pruning cost; multiply-accumulates are None where no input shape was given.

    Args:
        filters, filters_after: by layer, in the order given.
    """

    filters: dict[str, int]
    filters_after: dict[str, int]


def compress(
    model: nn.Module,
    ratios: Mapping[str, float],
    scores: Scores = filter_l1,
    strategy: Literal["independent", "greedy"] = "independent",
    *,
    input_shape: Sequence[int] | None = None,
) -> tuple[nn.Module, Report]:
    """Prune several layers at once.

    Args:
        model: any network that can be traced; or it says with ``couplings()`` which maps belong together.
        ratios: layer name -> share of filters to remove; :func:`couplings_of` has the names.
        scores, strategy: of :func:`select`.
        input_shape: (channels, height, width) of one image, to count multiply-accumulates.

    Returns:
        The smaller network, not yet retrained, and the report.

    Raises:
        ValueError: see :func:`couplings_of` and :func:`select`.
    """
    selection = select(model, ratios, scores, strategy)
    couplings = couplings_of(model)
    smaller = slim(model, selection)
    filters = {name: len(ranked_kernel(model, couplings[name])) for name in selection}
    after = {name: len(kept) for name, kept in selection.items()}
    return smaller, Report(**asdict(change(model, smaller, input_shape)), filters=filters, filters_after=after)


def _unknown(model: nn.Module, name: str, couplings: Mapping[str, Coupling]) -> str:
    """Why a layer cannot be pruned under this name, and what to do."""
    for one, coupling in couplings.items():
        if name in coupling.producers:
            return f"layer {name!r} writes the same maps as {one!r}; give the ratio to that one"
    if not hasattr(model, "couplings") and (reason := traced(model).fixed.get(name)):
        return f"layer {name!r} cannot be pruned: {reason}; leave it out, or give the network couplings()"
    return f"no prunable layer {name!r}; this network has {', '.join(couplings)}"


def _inputs(module: Any) -> int:
    """Maps or numbers that a layer reads."""
    kinds = {nn.Linear: "in_features", nn.Conv2d: "in_channels", _BatchNorm: "num_features"}
    return next(getattr(module, name) for kind, name in kinds.items() if isinstance(module, kind))


def _staying(
    model: nn.Module, couplings: Mapping[str, Coupling], selection: Selection, path: str
) -> tuple[Tensor, int]:
    """What stays of the maps that a consumer reads, and how many there were.

    Of a norm, and of a consumer that sees several couplings side by side, inputs are told one by one: those of the kept
    maps, and whatever lies between.
    """
    seen = {name: kept for name, kept in selection.items() if path in couplings[name].norms + couplings[name].consumers}
    maps = {name: len(ranked_kernel(model, couplings[name])) for name in seen}
    for name, kept in seen.items():
        if path in couplings[name].consumers and path not in couplings[name].at:
            return kept, maps[name]
    width, device = _inputs(_module(model, path)), next((kept.device for kept in seen.values()), None)
    found, position = [], 0
    places = {name: couplings[name].place(path, width, maps[name]) for name in seen}
    for name, (start, each) in sorted(places.items(), key=lambda one: one[1]):
        kept = couplings[name].inputs(path, width, maps[name], seen[name])
        found += [torch.arange(position, start, device=device), kept]
        position = start + maps[name] * each
    return torch.cat([*found, torch.arange(position, width, device=device)]), width


def _gone(model: nn.Module, coupling: Coupling, path: str, kept: Tensor) -> Tensor:
    """Indices of the removed maps among the filters of a producer, or the inputs of a norm or consumer."""
    maps = len(ranked_kernel(model, coupling))
    removed = torch.ones(maps, dtype=torch.bool, device=kept.device).index_fill(0, kept, False).nonzero().flatten()
    if path in coupling.producers:
        return removed
    return coupling.inputs(path, _inputs(_module(model, path)), maps, removed)


def _module(model: nn.Module, path: str) -> Any:
    """A convolution, batch norm or linear layer; typed loosely, for torch types every attribute of a module alike."""
    return model.get_submodule(path)
