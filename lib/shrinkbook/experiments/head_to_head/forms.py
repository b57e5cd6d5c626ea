"""What is done to a network, as plain steps; what a network takes on paper and on disk; budgets turned into knobs.

A *step* is one entry ``{kind: value}`` of JSON, so that a run file says how each network was made and another run can
make its shape again without its weights. Kinds: ``prune`` (share of the filters that go), ``widths`` (maps by name),
``tucker`` (ranks by layer), ``cluster`` (centroids), ``gate`` (which convolutions of each block).
"""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shrinkbook.experiments.head_to_head.arms import Arm, arms
from shrinkbook.experiments.steps import layer_inputs
from shrinkbook.measure.cost import LayerCost, cost
from shrinkbook.methods import filter_pruning, kernel_clustering, tucker, tucker_layers
from shrinkbook.methods.clustered_bytes import from_bytes, to_bytes
from shrinkbook.methods.clustered_layers import clustered_layers, expand
from shrinkbook.methods.lccl import add_lccl
from shrinkbook.methods.metapruning_space import RATIOS, SearchSpace, free_widths_of
from shrinkbook.nets import initialize, skeleton
from shrinkbook.training import checkpoint

Step = Mapping[str, Any]
Shape = Sequence[int]
Ranks = dict[str, list[int]]
SHARES = 64  # common shares of the full ranks that are tried, from 1/64 to all


def applied(model: nn.Module, step: Step, shape: Shape, seed: int = 0, iterations: int = 1) -> nn.Module:
    """A new network: one step taken, nothing trained.

    Args:
        model: with weights; of ``widths`` only its architecture is read, and the new weights are drawn from the seed.
        step: one entry, kind -> value.
        shape: (channels, height, width) of one image.
        seed: of what is drawn: k-means' first centroids, gates, weights of new widths.
        iterations: of k-means, at most.

    Raises:
        ValueError: an unknown kind, or what the method refuses.
    """
    ((kind, value),) = step.items()
    if kind == "prune":
        return filter_pruning.compress(model, uniform_ratios(model, value))[0]
    if kind == "widths":
        return initialize(search_space(model, [1.0]).network(value).to_empty(device="cpu"), seed)
    if kind == "tucker":
        return decomposed(model, value, shape)[0]
    if kind == "cluster":
        return kernel_clustering.compress(model, value, seed=seed, max_iterations=iterations)[0]
    if kind == "gate":
        return add_lccl(model, value, seed=seed + 2000)
    raise ValueError(f"unknown step {kind!r}; there are prune, widths, tucker, cluster and gate")


def untrained(model: nn.Module, step: Step, shape: Shape, seed: int = 0) -> nn.Module:
    """As :func:`applied` where only the shape matters: nothing is decomposed, the factors are random."""
    if "tucker" not in step:
        return applied(model, step, shape, seed)
    bare = applied(skeleton(model), step, shape)
    return initialize(bare.to_empty(device="cpu"), seed).train(model.training)


def resolved(model: nn.Module, kind: str, value: Any, shape: Shape, budget: Mapping[str, int] | None) -> Step:
    """A step with its knob set.

    Args:
        model: what the step is taken on.
        kind, value: as an arm wants them; a float is the budget that decides ranks or centroids.
        budget: ``mac`` and ``bytes`` that may be left, for such a value.
    """
    if kind == "tucker" and value == "vbmf":
        return {kind: estimated_ranks(model, shape)}
    if kind == "tucker" and budget:
        return {kind: ranks_within(model, shape, budget["mac"])}
    if kind == "cluster" and isinstance(value, float) and budget:
        return {kind: centroids_within(model, budget["bytes"])}
    return {kind: value}


def in_words(model: nn.Module, step: Step) -> str:
    """A step's knob for a table; the model is what the step is taken on."""
    ((kind, value),) = step.items()
    if kind == "tucker":
        return f"{100 * share_of_ranks(model, value):.0f} % of the ranks"
    if kind == "prune":
        return f"{100 * (1 - value):.0f} % of the maps"
    return {"cluster": f"{value} centroids", "gate": f"gates on {value}"}.get(kind) or "widths " + ", ".join(
        map(str, value.values())
    )


def budget_of(model: nn.Module, removed: float, shape: Shape, path: Path) -> dict[str, int]:
    """What is left when this share of the inner maps goes: multiply-accumulates, and bytes of the file at ``path``."""
    thinner = applied(model, {"prune": removed}, shape)
    return {"mac": mac_of(thinner, shape), "bytes": write(thinner, path)}


def uniform_ratios(model: nn.Module, removed: float) -> dict[str, float]:
    """One pruning ratio for the inner maps of every block, which no shortcut adds up (Li et al. 2017, section 3.3)."""
    return {name: removed for name in filter_pruning.couplings_of(model) if name.startswith("conv_")}


def search_space(model: nn.Module, ratios: Sequence[float] = RATIOS) -> SearchSpace:
    """The networks that MetaPruning may choose from: every free width of the model."""
    return SearchSpace(model, free_widths_of(model), ratios)


def mac_of(model: nn.Module, shape: Shape) -> int:
    """Multiply-accumulates of one image; of a network with gates, theirs too."""
    return cost(model, shape).mac


def ranks_within(model: nn.Module, shape: Shape, most: float) -> Ranks:
    """Tucker-2 ranks within a cost: the largest common share of the full ones, then one more where there is room.

    Every convolution above 1x1 but the one that reads the image is decomposed, cheaper or not. Ranks are few in small
    networks and rise together, so that the budget would be missed: from input to output each is raised by 1 if it can.

    Args:
        most: multiply-accumulates that may be left.

    Raises:
        ValueError: not even ranks of 1 are cheap enough.
    """
    before = cost(model, shape)
    layers = {
        layer.name: (conv, layer)
        for layer in before.layers
        if type(conv := model.get_submodule(layer.name)) is nn.Conv2d
        and conv.kernel_size != (1, 1)
        and conv.in_channels > shape[0]
    }
    read = {
        path: seen.shape[2:].numel()
        for path, seen in layer_inputs(model, torch.zeros(1, *shape)).items()
        if path in layers
    }

    def at(share: float) -> Ranks:
        sizes = {name: (conv.in_channels, conv.out_channels) for name, (conv, _) in layers.items()}
        return {name: [max(1, round(share * full)) for full in pair] for name, pair in sizes.items()}

    def left(ranks: Ranks) -> int:
        changes = (tucker2_mac(*layers[name], read[name], pair) - layers[name][1].mac for name, pair in ranks.items())
        return before.mac + sum(changes)

    ranks = at(largest(lambda number: left(at(number / SHARES)), SHARES, most, "ranks") / SHARES)
    for name, (conv, _) in layers.items():
        for side, full in enumerate((conv.in_channels, conv.out_channels)):
            more = {**ranks, name: [rank + (place == side) for place, rank in enumerate(ranks[name])]}
            if ranks[name][side] < full and left(more) <= most:
                ranks = more
    return ranks


def tucker2_mac(conv: nn.Conv2d, layer: LayerCost, read: int, ranks: Sequence[int]) -> int:
    """Multiply-accumulates of a convolution in Tucker-2 form (Kim et al. 2016, section 3.1).

    S R3 H W + D^2 R3 R4 H' W' + T R4 H' W', the first factor at the resolution of what it reads.

    Args:
        layer: cost of the convolution itself, for the size of its outputs.
        read: H W, positions of its input.
        ranks: (R3, R4).
    """
    (r3, r4), written = ranks, math.prod(layer.output[1:])
    return conv.in_channels * r3 * read + (math.prod(conv.kernel_size) * r3 + conv.out_channels) * r4 * written


def estimated_ranks(model: nn.Module, shape: Shape) -> Ranks:
    """Ranks by EVBMF of every layer that gets smaller by them, as the paper chooses them.

    The linear layer stays whole: its ranks would be those of the classes themselves.
    """
    report = decomposed(model, "vbmf", shape, keep_out=["linear"])[1]
    return {layer.name: list(layer.ranks) for layer in report.layers if layer.ranks}


def decomposed(model: nn.Module, ranks: Any, shape: Shape, **options: Any) -> tuple[nn.Module, tucker.Report]:
    """The Tucker form of a network and its report."""
    return tucker.compress(model, ranks, input_shape=shape, **options)


def share_of_ranks(model: nn.Module, ranks: Mapping[str, Sequence[int]]) -> float:
    """Ranks as a share of the full ones, summed over the layers that have any."""
    kernels = {name: tucker_layers.kernel_of(model.get_submodule(name)) for name in ranks}
    full = [tucker_layers.full_ranks(tuple(kernels[name].shape), 1, len(pair)) for name, pair in ranks.items()]
    return sum(map(sum, ranks.values())) / sum(map(sum, full))


def centroids_within(model: nn.Module, most: int) -> int:
    """The largest number of centroids with which the network's file has no more than so many bytes.

    Raises:
        ValueError: a single centroid already takes more.
    """
    plan = kernel_clustering.plan
    one = kernel_clustering.compress(model, 1, max_iterations=1)[0]
    around = len(to_bytes(one)) - math.ceil(plan(model, 1).bits_after() / 8)  # header, norms, everything not clustered
    kernels = sum(layer.kept for layer in plan(model, 1).layers)
    slack = 8  # digits of k in the header
    return largest(lambda k: around + slack + math.ceil(plan(model, k).bits_after() / 8), kernels, most, "centroids")


def largest(size: Callable[[int], float], count: int, most: float, what: str) -> int:
    """The largest of 1 to ``count`` whose size is at most ``most``; sizes rise.

    Raises:
        ValueError: not even 1 fits.
    """
    if size(1) > most:
        raise ValueError(f"no {what} fit a budget of {most:,.0f}: the fewest take {size(1):,.0f}")
    low, high = 1, count + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= most else (low, middle)
    return low


def write(model: nn.Module, path: Path) -> int:
    """Write the network as small as its form allows; returns the bytes on disk.

    Clustered networks as :mod:`shrinkbook.methods.clustered_bytes` has them; all others as a safetensors file, which is
    :func:`~shrinkbook.measure.cost.state_bytes` and a header.

    Raises:
        ValueError: numbers that are not finite.
    """
    if clustered_layers(model):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_bytes(model))
    else:
        checkpoint.save(model, path)
    return path.stat().st_size


def read(path: Path, model: nn.Module) -> nn.Module:
    """The network of a file, in evaluation mode.

    Args:
        model: of the same architecture, any weights; copied.
    """
    if clustered_layers(model):
        return from_bytes(path.read_bytes(), expand(model)).eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    twin.load_state_dict(checkpoint.load(path)[0])
    return twin.eval()


def built(
    model: nn.Module, shape: Shape, removed: Sequence[float], centroids: int
) -> Iterator[tuple[Arm, str, nn.Module]]:
    """Every arm whose shape follows from its budget alone, its knob in words, and its form with random weights.

    Args:
        model: the original network, any weights.
        shape: (channels, height, width) of one image.
        removed, centroids: as in :func:`~shrinkbook.experiments.head_to_head.arms.arms`.
    """
    with tempfile.TemporaryDirectory() as folder:
        budgets = {share: budget_of(model, share, shape, Path(folder) / "network") for share in removed}
    for arm in arms(removed, centroids):
        if {("search", arm.removed), ("tucker", "vbmf")} & set(arm.wanted):
            continue
        form, knobs = model, []
        for kind, value in arm.wanted:
            step = resolved(form, kind, value, shape, budgets.get(value) if isinstance(value, float) else None)
            knobs.append(in_words(form, step))
            form = untrained(form, step, shape)
        yield arm, ", ".join(knobs), form
