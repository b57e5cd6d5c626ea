"""What filter pruning must do (Li et al. 2017): scores, numbers and choice of filters, surgery equal to silence."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shrinkbook import nets
from shrinkbook.course.checks.compare import agree, drawn
from shrinkbook.course.checks.refusals import refused
from shrinkbook.nets.coupling import Coupling

Selection = Mapping[str, Tensor]


def l1_scores(filter_l1: Callable[[Tensor], Tensor], shape: tuple[int, int, int, int], seed: int) -> None:
    """The score of each filter is the sum of its absolute weights."""
    weight = drawn(*shape, seed=seed)
    loops = torch.tensor([math.fsum(abs(value) for value in one.flatten().tolist()) for one in weight]).double()
    mistakes = {
        "positive and negative weights cancel; take absolute values before the sum": weight.sum((1, 2, 3)),
        "this is the absolute value of a sum; take absolute values first": weight.sum((1, 2, 3)).abs(),
        "these are mean values; the paper sums": weight.abs().mean((1, 2, 3)),
        "these are Euclidean norms; the paper takes absolute values": weight.square().sum((1, 2, 3)).sqrt(),
        "this sums over the filters, axis 0; there should be one score for each of them": weight.abs().sum((0, 2, 3)),
    }
    agree("filter_l1(weight)", filter_l1(weight), loops, mistakes)


def kept_counts(kept_count: Callable[[int, float], int], filters: Sequence[int], percents: Sequence[int]) -> None:
    """floor(n (1 - p)) filters stay, in exact decimals; cases in which none would stay are left out."""
    for n in filters:
        for percent in percents:
            expected, ratio = n * (100 - percent) // 100, percent / 100
            if not expected:
                continue
            found = kept_count(n, ratio)
            why = "round down"
            if found == expected - 1:
                why = "1 - p is not exact in binary floating point; calculate with Fraction(str(ratio))"
            if found == n - expected:
                why = "this is how many go"
            assert found == expected, f"kept_count({n}, {ratio}) is {found}, not {expected}: {why}"


def impossible_ratios_are_refused(kept_count: Callable[[int, float], int]) -> None:
    """A ratio outside [0, 1), or one that leaves no filter, is a ValueError."""
    for n, ratio in ((8, 1.0), (8, -0.1), (8, 1.5), (6, 0.99)):
        refused(f"kept_count({n}, {ratio})", lambda n=n, ratio=ratio: kept_count(n, ratio))  # type: ignore[misc]


def highest_kept(keep_highest: Callable[[Tensor, int], Tensor], scores: Sequence[float], kept: int) -> None:
    """The indices of the highest scores, ascending; of equal scores the lower index stays."""
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], j))
    mistakes = {
        "the lowest scores stay; they are the ones to go": sorted(order[::-1][:kept]),
        "the filters are right, but their indices must ascend, so that the maps keep their order": order[:kept],
        "of equal scores the lower index stays: sort with stable=True": sorted(
            sorted(range(len(scores)), key=lambda j: (-scores[j], -j))[:kept]
        ),
    }
    agree(
        f"keep_highest({[round(score, 2) for score in scores]}, {kept})",
        keep_highest(torch.tensor(scores), kept),
        torch.tensor(sorted(order[:kept])),
        {sentence: torch.tensor(wrong) for sentence, wrong in mistakes.items()},
    )


def filters_cut(keep_filters: Callable[[nn.Conv2d, Tensor], None], kept: Sequence[int], bias: bool, seed: int) -> None:
    """A cut convolution writes the maps that were kept, in their order, and says how many they are."""
    conv = nn.Conv2d(7, 7, 3, padding=1, bias=bias).double()
    _fill(conv, seed)
    x, whole = drawn(2, 7, 5, 5, seed=seed), copy.deepcopy(conv)
    keep_filters(conv, torch.tensor(kept))
    agree("the weight after keep_filters (filters are axis 0)", conv.weight, whole.weight[list(kept)])
    if whole.bias is not None:
        agree("the bias after keep_filters (each filter has its own)", conv.bias, whole.bias[list(kept)])
    assert conv.out_channels == len(kept), f"out_channels is {conv.out_channels}; {len(kept)} filters are left"
    _still_parameters(conv)
    agree("the output of the cut convolution", conv(x), whole(x)[:, list(kept)])


def norm_cut(keep_norm: Callable[[nn.BatchNorm2d, Tensor], None], kept: Sequence[int], seed: int) -> None:
    """A cut batch norm treats the kept maps as before: scale, shift, and both running statistics follow."""
    norm = nn.BatchNorm2d(7).double().eval()
    _fill(norm, seed)
    x, whole = drawn(2, 7, 3, 3, seed=seed), copy.deepcopy(norm)
    keep_norm(norm, torch.tensor(kept))
    for name in ("weight", "bias", "running_mean", "running_var"):
        what = f"{name} after keep_norm (a batch norm holds four numbers for each map)"
        agree(what, getattr(norm, name), getattr(whole, name)[list(kept)])
    assert norm.num_features == len(kept), f"num_features is {norm.num_features}; {len(kept)} maps are left"
    _still_parameters(norm)
    agree("the output of the cut batch norm", norm(x[:, list(kept)]), whole(x)[:, list(kept)])


def inputs_cut(
    keep_inputs: Callable[[nn.Module, Tensor, int], None], kept: Sequence[int], pixels: int, seed: int
) -> None:
    """A cut reader of the kept maps gives what the whole one gives where the other maps are zero.

    Args:
        pixels: of a map before the flatten, for a linear layer; 0 for a convolution.
    """
    reader = (nn.Linear(7 * pixels, 7) if pixels else nn.Conv2d(7, 7, 3)).double()
    _fill(reader, seed)
    x, whole = drawn(2, 7, pixels or 5, 1 if pixels else 5, seed=seed), copy.deepcopy(reader)
    keep_inputs(reader, torch.tensor(kept), 7)
    kind = "linear layer" if pixels else "convolution"
    size = len(kept) * pixels if pixels else len(kept)
    found = reader.in_features if isinstance(reader, nn.Linear) else reader.in_channels
    shape = (7, size) if pixels else (7, size, 3, 3)
    hint = "the columns of map m are m * pixels to (m + 1) * pixels - 1" if pixels else "input maps are axis 1"
    assert tuple(reader.weight.shape) == shape, (
        f"the weight of the {kind} is {tuple(reader.weight.shape)}, not {shape}: {hint}"
    )
    assert found == size, f"in_{'features' if pixels else 'channels'} of the {kind} is {found}, not {size}"
    _still_parameters(reader)
    flat = nn.Flatten(1) if pixels else nn.Identity()
    agree(f"the output of the cut {kind} ({hint})", reader(flat(x[:, list(kept)])), whole(flat(_only(x, kept))))


def small_vgg(seed: int, layers: Sequence[str] = ("conv_1", "conv_2", "conv_4")) -> tuple[nn.Module, Selection]:
    """A VGG for 8x8 images whose last maps have 2x2 pixels, and kept maps drawn at random for some layers."""
    model = awake(nets.VGG(((6, 6), (8, 9)), hidden=12, in_channels=1, side=8), seed)
    return model, _some_maps(model, layers, seed)


def small_resnet(
    seed: int, layers: Sequence[str] = ("conv_4", "conv_6", "stage_2"), projection: bool = True
) -> tuple[nn.Module, Selection]:
    """A residual network for 8x8 images, and kept maps; with projections also of a whole stage that shares them."""
    model = awake(nets.ResNet((2, 2), (6, 12), in_channels=1, projection=projection), seed)
    return model, _some_maps(model, layers, seed)


def awake(model: nn.Module, seed: int) -> nn.Module:
    """Evaluation mode with every batch-norm number different from its default, above all the shift."""
    nets.initialize(model, seed)
    for number, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            _fill(module, seed + number)
    return model.double().eval()


@contextmanager
def silenced(model: nn.Module, selection: Selection) -> Iterator[nn.Module]:
    """The slow, obvious way to be rid of maps: whatever the batch norms write into those not kept is set to zero."""
    handles = []
    for name, kept in selection.items():
        for path in _couplings(model)[name].norms:
            norm = model.get_submodule(path)
            handles.append(norm.register_forward_hook(lambda _, __, maps, kept=kept: _only(maps, kept.tolist())))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def slimmed_equals_silenced(
    slim: Callable[[nn.Module, dict[str, Tensor]], nn.Module], model: nn.Module, selection: Selection, seed: int = 0
) -> None:
    """The smaller network has the shapes of the kept maps and computes what the silenced one does."""
    smaller = slim(model, dict(selection))
    assert isinstance(smaller, nn.Module), f"slim gives {type(smaller).__name__}; it should return the smaller network"
    for name, kept in selection.items():
        coupling, count = _couplings(model)[name], len(kept)
        for path in (*coupling.producers, *coupling.norms):
            entries = _size(smaller, path, 0)
            assert entries == count, f"{path} writes {entries} maps of {name}, {count} are kept: was it cut?"
        for path in coupling.consumers:
            after, left = _size(smaller, path, 1), _size(model, path, 1) // _size(model, coupling.ranked_by, 0) * count
            assert after == left, f"{path} reads {after} inputs, {left} are left of {name}: was it cut?"
    x = drawn(5, 1, 8, 8, seed=seed)
    with torch.no_grad():
        with silenced(model, selection):
            expected_output = model(x)
        try:
            output = smaller(x)
        except RuntimeError as error:
            raise AssertionError(f"the slimmed network does not run: {error}") from None
    what = "the slimmed network's output (silencing the same maps gives the expected one: did biases and norms follow?)"
    agree(what, output, expected_output)


def original_is_left_alone(
    slim: Callable[[nn.Module, dict[str, Tensor]], nn.Module], model: nn.Module, selection: Selection
) -> None:
    """The network that was slimmed is as it was, and shares no weights with the smaller one."""
    before = copy.deepcopy(model.state_dict())
    smaller = slim(model, dict(selection))
    assert smaller is not model, "slim returns the network it was given; work on a copy.deepcopy"
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.zero_()
    for name, value in model.state_dict().items():
        assert value.shape == before[name].shape, f"{name} of the original was cut; work on a copy.deepcopy"
        assert torch.equal(value, before[name]), f"{name} of the original changed with the smaller network's; copy it"


def greedy_counts_survivors(choose: Callable[[nn.Module, dict[str, float]], Selection], seed: int) -> None:
    """Greedy selection of two layers in a row: the second is scored without the kernels of maps that are gone.

    Args:
        choose: (network, layer -> ratio) -> selection.
    """
    model, _ = small_vgg(seed)
    convs: list[Any] = [model.get_submodule(f"features.conv_{number}") for number in (1, 2)]
    first, second = (conv.weight.detach() for conv in convs)
    gone = int(first.abs().sum((1, 2, 3)).argmin())
    second[0, gone] += 50 * second.abs().max()  # large, but only where nothing will be read
    selection = choose(model, {"conv_1": 0.5, "conv_2": 0.5})
    kept = sorted(sorted(range(6), key=lambda j: -float(first[j].abs().sum()))[:3])
    assert selection["conv_1"].tolist() == kept, f"conv_1 keeps {selection['conv_1'].tolist()}, not {kept}"
    scores = [sum(float(second[j, i].abs().sum()) for i in kept) for j in range(6)]
    expected = sorted(sorted(range(6), key=lambda j: -scores[j])[:3])
    found = selection["conv_2"].tolist()
    assert found == expected, f"conv_2 keeps {found}, not {expected}: sum over the input maps that conv_1 still writes"


def _fill(module: nn.Module, seed: int) -> None:
    """Numbers between 0.5 and 1.5 in place of all parameters and buffers that are one for each map, noise elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.ndim:
                tensor.copy_(torch.randn(tensor.shape, generator=generator))


def _some_maps(model: nn.Module, layers: Sequence[str], seed: int) -> Selection:
    generator, couplings = torch.Generator().manual_seed(seed), _couplings(model)
    sizes = {name: _size(model, couplings[name].ranked_by, 0) for name in layers}
    return {name: torch.randperm(size, generator=generator)[: size // 2].sort().values for name, size in sizes.items()}


def _only(maps: Tensor, kept: Sequence[int]) -> Tensor:
    """The maps (N, C, H, W) with all but the kept ones zero."""
    silent = torch.zeros_like(maps)
    silent[:, list(kept)] = maps[:, list(kept)]
    return silent


def _couplings(model: nn.Module) -> dict[str, Coupling]:
    couplings: Any = model.couplings
    return couplings()


def _size(model: nn.Module, path: str, axis: int) -> int:
    """Outputs (axis 0) or inputs (axis 1) of a convolution or linear layer, maps (axis 0) of a batch norm."""
    weight: Any = model.get_submodule(path).weight
    return weight.shape[axis]


def _still_parameters(module: nn.Module) -> None:
    for name in ("weight", "bias"):
        value = getattr(module, name)
        assert value is None or isinstance(value, nn.Parameter), f"{name} is no nn.Parameter any more: it cannot train"
