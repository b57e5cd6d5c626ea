"""Couplings found by tracing: the hand-written ones, masks against surgery, and what is refused and why."""

import copy
import random
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from plain_nets import Dense, Fires, PlainMobileNetV2, PlainResNet, PlainVGG, Sampled, Squeezed
from torch import Tensor, nn

from shrinkbook import nets
from shrinkbook.experiments.networks import NETS
from shrinkbook.measure.cost import cost
from shrinkbook.methods import filter_pruning as pruning
from shrinkbook.methods.metapruning_space import MacCount, SearchSpace, free_widths_of
from shrinkbook.nets.coupling import Coupling
from shrinkbook.nets.googlenet import Inception
from shrinkbook.nets.resnet import BottleneckBlock
from shrinkbook.nets.tracing import traced


class Bare(nn.Module):
    """A network of the suite that says nothing of its maps."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def on_meta(build) -> nn.Module:
    with torch.device("meta"):
        return build()


def key(one: Coupling, prefix: str = "") -> tuple:
    """What a coupling says, whatever its name; a name less at the front."""
    parts = [frozenset(path.removeprefix(prefix) for path in paths) for paths in (one.producers, one.norms)]
    parts.append(frozenset(path.removeprefix(prefix) for path in one.consumers))
    return (*parts, one.ranked_by.removeprefix(prefix))


def awake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Evaluation mode, double precision, every number different from its default, above all the norms' shift."""
    generator = torch.Generator().manual_seed(seed)
    nets.initialize(model, seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.data.copy_(torch.rand(module.bias.shape, generator=generator))
    return model.eval().double()


BY_HAND = {name: build for name, build in NETS.items() if hasattr(on_meta(build), "couplings")}


@pytest.mark.parametrize("name", BY_HAND)
def test_traced_couplings_are_those_written_by_hand(name):
    """And those of the stem, which the paper leaves alone, where no padding follows."""
    model = on_meta(BY_HAND[name])
    hand = {key(one): one for one in model.couplings().values()}
    found = {key(one, "net."): one for one in traced(Bare(model)).couplings.values()}
    assert hand.keys() <= found.keys()
    stem = isinstance(model, nets.ResNet) and "conv1" not in str(traced(model).fixed)
    assert [found[one].ranked_by for one in found.keys() - hand.keys()] == ["net.conv1"] * stem
    levels = sorted({found[one].stage for one in hand})
    for (
        one,
        coupling,
    ) in hand.items():  # a bottleneck's first 1x1 still has the maps' old size; by hand it is the block's
        early = name == "ResNet-50" and one[3].endswith(".0.conv1") and coupling.stage > 1
        assert levels.index(found[one].stage) + 1 == coupling.stage - early
    assert [key(one) for one in model.couplings().values() if len(one.producers) == 1] == [
        one for one in found if one in hand and len(one[0]) == 1
    ], "from input to output"


FREE = {
    "ResNet-18": nets.resnet18,
    "ResNet-20": lambda: nets.resnet_cifar(20),
    "ResNet-20 with projections": lambda: nets.resnet_cifar(20, projection=True),
    "MobileNetV1": nets.mobilenet_v1,
    "MobileNetV2": nets.mobilenet_v2,
}


@pytest.mark.parametrize("name", FREE)
def test_traced_widths_are_those_written_by_hand(name):
    model = on_meta(FREE[name])
    hand, found = model.free_widths(), free_widths_of(Bare(model))
    last = {name: one for name, one in hand.items() if "linear" in one.consumers}
    assert not last and {key(one, "net.") for one in found.values()} == {key(one) for one in hand.values()}
    assert free_widths_of(model) == hand, "what the network says itself goes first"


def test_inner_widths_of_a_bottleneck_are_free_each():
    """The hand-written space ties both by choice; nothing else differs."""
    model = on_meta(nets.resnet50)
    found = {one[3]: one for one in (key(coupling, "net.") for coupling in free_widths_of(Bare(model)).values())}
    for name, one in model.free_widths().items():
        parts = [found.pop(path) for path in (one.producers if name.startswith("mid") else (one.ranked_by,))]
        union = [frozenset().union(*(part[i] for part in parts)) for i in range(3)]
        assert union == [frozenset(paths) for paths in (one.producers, one.norms, one.consumers)]
    assert not found


def bottleneck() -> nn.Module:
    return nets.ResNet((2, 2), (6, 12), projection=True, imagenet_stem=True, block=BottleneckBlock)


def inceptions() -> nn.Module:
    return nn.Sequential(
        Inception(3, 6, 4, 5, 4, 6, 6), nn.MaxPool2d(2), Inception(23, 5, 4, 4, 4, 5, 4), nn.MaxPool2d(4),
        nn.Flatten(1), nn.Linear(18 * 16, 5),
    )  # fmt: skip


def up_and_down() -> nn.Module:
    """A small U-Net's path; its last convolution answers."""

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.deep = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, 2, 1)
            self.up, self.answer = nn.Conv2d(14, 7, 3, padding=1), nn.Conv2d(7, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.down(x))
            y = F.interpolate(F.relu(self.deep(x)), scale_factor=2)
            return self.answer(F.leaky_relu(self.up(torch.cat([x, y], 1)), 0.1))

    return UNet()


# name -> network, size of its images, number of couplings, convolutions that stay
SMALL = {
    "VGG": (lambda: nets.VGG(((6, 6), (8, 9)), hidden=12, side=8), 8, 4, 0),
    "ResNet": (lambda: nets.ResNet((2, 2), (6, 12)), 16, 4, 5),
    "ResNet with projections": (lambda: nets.ResNet((2, 2), (6, 12), projection=True), 16, 6, 0),
    "bottlenecks": (bottleneck, 32, 11, 0),
    "MobileNetV1": (lambda: nets.MobileNetV1((8, 12, 16), (1, 2, 1)), 16, 3, 0),
    "MobileNetV2": (lambda: nets.MobileNetV2((8, 12, 16), (1, 2, 2), (1, 2), last=20), 16, 7, 0),
    "DenseNet": (lambda: nets.DenseNet(2, 4), 16, 9, 0),
    "DenseNet-BC": (lambda: nets.DenseNet(2, 4, bc=True), 16, 15, 0),
    "pre-activation": (lambda: nets.PreactResNet((2, 2), (8, 12), projection=True), 16, 6, 0),
    "LeNet": (lambda: nets.LeNet(in_channels=3), 32, 3, 0),
    "Inception": (inceptions, 32, 12, 0),
    "torchvision's ResNet": (lambda: PlainResNet((2, 2), (6, 12)), 32, 6, 0),
    "torchvision's bottlenecks": (lambda: PlainResNet((2, 2), (6, 12), expansion=4), 32, 11, 0),
    "torchvision's VGG": (PlainVGG, 32, 3, 0),
    "torchvision's MobileNetV2": (PlainMobileNetV2, 16, 6, 0),
    "squeeze and excitation": (Squeezed, 16, 3, 0),
    "dense lists": (Dense, 8, 5, 0),
    "fires": (Fires, 8, 7, 0),
    "slice and pad": (Sampled, 8, 2, 2),
    "up and down": (up_and_down, 8, 3, 1),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("strategy", ["independent", "greedy"])
def test_masked_equals_slimmed_where_the_network_says_nothing(name, strategy):
    build, side, count, stay = SMALL[name]
    model = awake(Bare(build()))
    found = traced(model)
    assert (len(found.couplings), len(found.fixed)) == (count, stay)
    convolutions = {path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert {path for one in found.couplings.values() for path in one.producers} | found.fixed.keys() == convolutions
    x = torch.randn(3, 3, side, side, dtype=torch.float64)
    full = model(x)
    selection = pruning.select(model, dict.fromkeys(found.couplings, 0.3), strategy=strategy)
    with pruning.masked(model, selection):
        masked = model(x)
    torch.testing.assert_close(model(x), full, rtol=0, atol=0)
    assert (masked - full).abs().max() > 0.01 * full.abs().max()
    torch.testing.assert_close(pruning.slim(model, selection)(x), masked)


class Random(nn.Module):
    """Twelve operations drawn from a seed, each on maps drawn from those before, all of one size; a linear layer."""

    KINDS = ("conv", "conv", "conv", "depthwise", "norm", "relu", "sigmoid", "pool", "add", "mul", "cat", "slice")

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.layers, self.plan, counts = nn.ModuleList(), [], [3]
        for step in range(12):
            kind = draw.choice(self.KINDS) if step else "conv"
            one = draw.randrange(1, len(counts)) if step else 0
            two = draw.choice(
                [i for i, count in enumerate(counts) if i and (kind == "cat" or count == counts[one])] or [0]
            )
            count, layer = counts[one], nn.Identity()
            if kind == "conv":
                count = draw.choice([4, 6])
                layer = nn.Conv2d(counts[one], count, draw.choice([1, 3]), padding="same", bias=draw.random() < 0.5)
            elif kind == "depthwise":
                layer = nn.Conv2d(count, count, 3, padding=1, groups=count)
            elif kind == "norm":
                layer = nn.BatchNorm2d(count, affine=draw.random() < 0.8)
            self.layers.append(layer)
            self.plan.append((kind, one, two))
            counts.append(counts[one] + counts[two] if kind == "cat" else count)
        self.linear = nn.Linear(sum(counts[-3:]) * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer, (kind, one, two) in zip(self.layers, self.plan, strict=True):
            first, second = maps[one], maps[two]
            if kind == "cat":
                maps.append(torch.cat([first, second], 1))
            elif kind in ("add", "mul"):
                maps.append(first + second if kind == "add" else first * second)
            elif kind in ("relu", "sigmoid"):
                maps.append(getattr(torch, kind)(first))
            elif kind == "pool":
                maps.append(F.max_pool2d(first, 3, 1, 1))
            else:
                maps.append(layer(first[:, :, :, :] if kind == "slice" else first))
        return self.linear(torch.cat(maps[-3:], 1).flatten(1))


@pytest.mark.parametrize("seed", range(40))
def test_masked_equals_slimmed_in_random_networks(seed):
    model = awake(Random(seed))
    found = traced(model)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    selection = pruning.select(model, dict.fromkeys(found.couplings, 0.5)) if found.couplings else {}
    smaller = pruning.slim(model, selection) if selection else model
    with pruning.masked(model, selection) if selection else nullcontext():
        torch.testing.assert_close(smaller(x), model(x))


@pytest.mark.parametrize("name", ["ResNet with projections", "DenseNet", "torchvision's MobileNetV2"])
def test_every_coupling_is_whole_by_itself(name):
    build, side, *_ = SMALL[name]
    model = awake(Bare(build()))
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    for layer in traced(model).couplings:
        selection = pruning.select(model, {layer: 0.5})
        with pruning.masked(model, selection):
            torch.testing.assert_close(pruning.slim(model, selection)(x), model(x))


def test_greedy_passes_over_what_went_before_a_concatenation():
    model = awake(Dense())
    ratios = {"stem": 0.5, "convs.0": 0.5, "convs.1": 0.5}
    first = pruning.select(model, {"stem": 0.5})["stem"].tolist()
    gone = next(i for i in range(6) if i not in first)
    weak = model.convs[1].weight.detach().abs().sum((1, 2, 3)).argmin().item()
    model.convs[1].weight.data[weak, gone] += 100  # the largest filter, if it were not for what it reads
    kept = pruning.select(model, ratios, strategy="greedy")
    assert weak in pruning.select(model, ratios)["convs.1"] and weak not in kept["convs.1"]
    read = [*kept["stem"].tolist(), *(6 + kept["convs.0"]).tolist()]
    scores = [sum(model.convs[1].weight[j, i].detach().abs().sum() for i in read) for j in range(4)]
    assert kept["convs.1"].tolist() == sorted(sorted(range(4), key=lambda j: -scores[j])[:2])


def test_a_norm_without_weights_is_cut_with_the_others():
    norms = nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4)
    model = awake(
        nn.Sequential(nn.Conv2d(3, 4, 3), *norms, nn.ReLU(), nn.Conv2d(4, 6, 2), nn.Flatten(1), nn.Linear(6, 2))
    )
    selection = pruning.select(model, {"0": 0.5, "4": 0.5}, strategy="greedy")
    smaller, x = pruning.slim(model, selection), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert len(smaller[1].running_mean) == smaller[1].num_features == 2
    with pruning.masked(model, selection):
        torch.testing.assert_close(smaller(x), model(x))


def test_shapes_are_cut_on_the_meta_device_too():
    model = on_meta(Dense).eval()
    with torch.device("meta"):
        smaller = pruning.slim(model, pruning.select(model, {"stem": 0.5, "convs.1": 0.5, "transition": 0.4}))
    assert smaller.convs[2].in_channels == smaller.norms[2].num_features == 3 + 4 + 2
    assert smaller.linear.in_features == smaller.after.num_features == 5 * 16
    assert smaller(torch.empty(1, 3, 8, 8, device="meta")).shape == (1, 5)


def test_reports_count_what_the_networks_cost():
    model = awake(PlainResNet((2, 2), (6, 12)))
    ratios = {"layer1.0.conv1": 0.5, "layer2.0.downsample.0": 0.25}
    smaller, report = pruning.compress(model, ratios, input_shape=(3, 32, 32))
    assert report.filters == {"layer1.0.conv1": 6, "layer2.0.downsample.0": 12}
    assert report.filters_after == {"layer1.0.conv1": 3, "layer2.0.downsample.0": 9}
    before, after = (cost(one, (3, 32, 32)) for one in (model, smaller))
    assert (report.mac, report.mac_after) == (before.mac, after.mac)
    assert (report.weights, report.weights_after) == (before.weights, after.weights)
    assert after.mac < before.mac
    _, uncounted = pruning.compress(model, ratios)
    assert (uncounted.mac, uncounted.mac_after, uncounted.weights_after) == (None, None, after.weights)


def test_a_space_of_a_traced_network_counts_and_builds_its_networks():
    model = PlainMobileNetV2()
    space = SearchSpace(model, free_widths_of(model), [0.5, 1.0])
    assert len(space.names) == 5  # the last maps feed the classifier
    genes = (0, 1, 0, 1, 0)
    smaller = space.network(space.widths(genes)).to_empty(device="cpu")
    assert MacCount(space, (3, 32, 32))(genes) == cost(smaller, (3, 32, 32)).mac < cost(model, (3, 32, 32)).mac
    assert nets.initialize(smaller, 0)(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_maps_beside_the_image_stay():
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 11, 1), nn.Linear(14 * 22, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.cat([x, self.conv(x)], 1).flatten(1))  # 308 inputs, which 11 maps would divide

    assert traced(Beside()).fixed == {"conv": "cat in Beside does with maps what is not followed here"}


def test_a_view_with_the_number_of_maps_in_it_holds_them():
    class Counted(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x).view(-1, 4 * 16))

    model = Counted(nn.Conv2d(3, 4, 1), nn.Linear(64, 5))
    assert traced(model).fixed == {"0": "view in Counted does with maps what is not followed here"}


def test_layers_that_run_in_training_only_are_cut_too():
    class Helped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear, self.helper = nn.Conv2d(3, 8, 1), nn.Linear(8, 5), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            x = self.conv(x)
            answer = self.linear(x.mean((2, 3)))
            return (answer, self.helper(x)) if self.training else (answer,)

    smaller, _ = pruning.compress(Helped().eval(), {"conv": 0.5})
    assert [part.shape[1] for part in smaller.train()(torch.randn(2, 3, 4, 4))] == [5, 4]
    assert smaller.helper.in_channels == smaller.linear.in_features == 4


def test_tracing_leaves_the_network_as_it_was():
    model = Bare(nets.LeNet(in_channels=3)).train()
    model.net.pool1.eval()
    state = copy.deepcopy(model.state_dict())
    traced(model)
    assert model.training and not model.net.pool1.training
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


class Between(nn.Module):
    """Two convolutions, something between them, and a linear layer behind a third convolution."""

    def __init__(self, between=None, **layers: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1)
        self.linear = nn.Linear(6, 5)
        self.between = between
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.between(self, self.first(x)))
        return self.linear(self.third(x).mean((2, 3)))


def shared(net: Between) -> Between:
    net.second.weight = net.extra.weight
    return net


def odd(net: Between) -> Between:
    nn.utils.parametrizations.weight_norm(net.first)
    return net


# what stands between -> the network, the convolutions that stay, and what the reason says
REFUSED = {
    "neighbours": (lambda: Between(lambda net, x: net.norm(x), norm=nn.LocalResponseNorm(3)), ["first"],
                   r"norm \(LocalResponseNorm\) does with maps"),
    "shuffle": (lambda: Between(lambda net, x: x.flip(1)), ["first"], "flip in Between does"),
    "shape": (lambda: Between(lambda net, x: x.view(-1, 8, 4, 4)), ["first"], "view in Between does"),
    "some": (lambda: Between(lambda net, x: torch.cat([x[:, :4], x[:, 4:]], 1)), ["first"], "getitem in Between does"),
    "groups": (lambda: Between(lambda net, x: net.two(x), two=nn.Conv2d(8, 8, 1, groups=2)), ["first", "two"],
               "two has 2 groups"),
    "tied": (lambda: Between(lambda net, x: net.one(x) + net.two(x), one=nn.Conv2d(8, 8, 1),
                             two=nn.Conv2d(8, 8, 1, groups=2)), ["first", "one", "two"], "two has 2 groups"),
    "wider": (lambda: Between(lambda net, x: net.two(x)[:, ::2], two=nn.Conv2d(8, 16, 1, groups=8)), ["first", "two"],
              "two has 8 groups"),
    "again": (lambda: Between(lambda net, x: net.two(net.two(x)), two=nn.Conv2d(8, 8, 1)), ["first", "two"],
              "two runs 2 times"),
    "shared": (lambda: shared(Between(lambda net, x: net.extra(x), extra=nn.Conv2d(8, 8, 1))),
               ["first", "extra", "second"], "(extra|second) shares its weights"),
    "odd": (lambda: odd(Between(lambda net, x: x)), ["first"], "first .* has other parameters"),
    "sigmoid": (lambda: Between(lambda net, x: x.sigmoid()), ["first"], "second reads maps behind a function that"),
    "half awake": (lambda: Between(lambda net, x: x + x.sigmoid()), ["first"], "second reads maps behind a function"),
    "one more": (lambda: Between(lambda net, x: x + 1), ["first"], "second reads maps behind a function that"),
    "bare norm": (lambda: Between(lambda net, x: net.norm(x), norm=nn.BatchNorm2d(8, affine=False)), ["first"],
                  "second reads maps behind a function that"),
    "tensor": (lambda: Between(lambda net, x: x * net.scale, scale=nn.Parameter(torch.ones(8, 1, 1))), ["first"],
               "mul in Between does"),
    "one map": (lambda: Between(lambda net, x: x * net.one(x), one=nn.Conv2d(8, 1, 1)), ["one"], "its single map"),
    "twice": (lambda: Between(lambda net, x: net.two(torch.cat([x, x], 1)), two=nn.Conv2d(16, 8, 1)), ["first"],
              "two reads the same maps at two places"),
    "unequal": (lambda: Between(lambda net, x: x + torch.cat([net.a(x), net.b(x)], 1), a=nn.Conv2d(8, 4, 1),
                                b=nn.Conv2d(8, 4, 1)), ["first", "a", "b"], "add in Between does"),
    "unread": (lambda: Between(lambda net, x: (x, net.side(x))[0], side=nn.Conv2d(8, 4, 1)), ["side"], "nothing"),
    "padded": (lambda: Between(lambda net, x: F.pad(x, (0, 0, 0, 0, 1, 1))[:, :8]), ["first"], "pad in Between"),
    "raised": (lambda: Between(lambda net, x: F.pad(x, (1, 1, 1, 1), value=1.0)), ["first"], "second reads maps"),
    "pairs": (lambda: Between(lambda net, x: (x, net.wide(x.view(x.size(0) * 2, -1)))[0], wide=nn.Linear(64, 4)),
              ["first"], "view in Between does"),
    "in place": (lambda: Between(lambda net, x: (x, x.sigmoid_())[0]), ["first"], "second reads maps behind a"),
    "read twice": (lambda: Between(lambda net, x: F.conv2d(net.two(x), net.two.weight), two=nn.Conv2d(8, 8, 1)),
                   ["first", "two"], "two shares its weights"),
    "flat": (lambda: Between(lambda net, x: net.wide(x), wide=nn.Linear(4, 4)), ["first"], "wide reads maps that are"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_stays_and_says_why(name):
    build, stay, reason = REFUSED[name]
    model = build()
    found = traced(model)
    assert list(found.fixed) == stay
    with pytest.raises(ValueError, match=f"layer '{stay[0]}' cannot be pruned: {reason}.*; leave it out, or give"):
        pruning.select(model, {stay[0]: 0.5})
    rest = [path for path in ("first", "second", "third") if path not in stay]
    assert set(rest) <= set(found.couplings), "the others can be pruned"
    awake(model)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    selection = pruning.select(model, dict.fromkeys(rest, 0.5))
    with pruning.masked(model, selection):
        masked = model(x)
    torch.testing.assert_close(pruning.slim(model, selection)(x), masked)


WRITTEN = {
    "cat": lambda net, x: net.two(torch.cat(tensors=[x, net.side(x)], dim=1)),
    "div": lambda net, x: torch.div(input=x, other=2),
    "view": lambda net, x: (x, net.wide(x.view(x.size(0), -1)))[0],
    "view of a shape": lambda net, x: (x, net.wide(x.view(x.shape[0], -1)))[0],
    "view of a part of it": lambda net, x: (x, net.wide(torch.reshape(x, (x.size()[0], -1))))[0],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_operations_are_followed_however_their_arguments_are_written(name):
    layers = {"side": nn.Conv2d(8, 4, 1), "two": nn.Conv2d(12, 8, 1), "wide": nn.Linear(128, 4)}
    model = awake(Between(WRITTEN[name], **layers))
    selection = pruning.select(model, {"first": 0.5, "second": 0.5})
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with pruning.masked(model, selection):
        masked = model(x)
    smaller = pruning.slim(model, selection)
    torch.testing.assert_close(smaller(x), masked)
    assert smaller.first.out_channels == 4


def test_networks_without_a_way_are_named_in_one_line():
    class Choosing(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x) if x.sum() > 0 else self[1](x)

    model = Choosing(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match="^Choosing cannot be traced: symbolically traced .*give it couplings\\(\\)$"):
        pruning.select(model, {"0": 0.5})
    with pytest.raises(ValueError, match=r"^Sequential has no layer to prune \(its maps are the network's answer"):
        pruning.select(nn.Sequential(nn.Conv2d(3, 4, 1)), {"0": 0.5})
    with pytest.raises(ValueError, match="no layer to prune .it has no convolutions"):
        pruning.select(nets.hinton_net(), {})
    with pytest.raises(ValueError, match="norm1 .LocalResponseNorm. does with maps"):
        pruning.couplings_of(on_meta(nets.alexnet))
    with pytest.raises(ValueError, match="'layer2.0.conv2' writes the same maps as 'layer2.0.downsample.0'; give"):
        pruning.select(PlainResNet((1, 1), (4, 8)), {"layer2.0.conv2": 0.5})
    with pytest.raises(ValueError, match="no prunable layer 'conv9'; this network has conv1, layer1.0.conv1"):
        pruning.select(PlainResNet((1, 1), (4, 8)), {"conv9": 0.5})
    with pytest.raises(ValueError, match=r"PlainVGG does not say how it is cut in two; give it chain\(\)"):
        pruning.split_before(PlainVGG(), "features.0")
    with pytest.raises(ValueError, match="Sequential has no free width between two convolutions"):
        free_widths_of(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(1), nn.Linear(4, 2)))
