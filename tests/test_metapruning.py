"""PruningNet: encodings, crops, batch norms by width, and plain networks equal to what it computes."""

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shrinkbook import nets
from shrinkbook.course.checks import liu2019 as check
from shrinkbook.measure.cost import cost, extras
from shrinkbook.methods.metapruning import PruningNet, SharedWeights, WeightGenerator, compress
from shrinkbook.methods.metapruning_candidates import Evolution
from shrinkbook.methods.metapruning_space import RATIOS, MacCount, SearchSpace
from shrinkbook.training import data
from shrinkbook.training.evaluate import evaluate, recalibrate_batch_norm
from shrinkbook.training.fit import fit
from shrinkbook.training.recipe import Recipe

EIGHTHS = [n / 8 for n in range(2, 9)]
FULL = {
    "MobileNetV1": (nets.mobilenet_v1, 13, 224),
    "MobileNetV2": (nets.mobilenet_v2_supernet, 25, 224),
    "ResNet-50": (nets.resnet50, 20, 224),
    "MobileNetV1, CIFAR": (nets.mobilenet_v1_cifar, 13, 32),
    "MobileNetV2, CIFAR": (nets.mobilenet_v2_cifar, 25, 32),
    "ResNet-20": (lambda: nets.resnet_cifar(20, projection=True), 11, 32),
    "ResNet-56": (lambda: nets.resnet_cifar(56, projection=True), 29, 32),
}
SMALL = {
    "v1": lambda: nets.MobileNetV1((8, 16, 16, 32), (1, 2, 1, 2), classes=10, in_channels=1),
    "v2": lambda: nets.MobileNetV2((8, 8, 16), (1, 1, 2), (1, 2), last=32, classes=10, in_channels=1),
    "basic": lambda: nets.ResNet((1, 1, 1), (8, 16, 32), in_channels=1, projection=True),
    "padded": lambda: nets.ResNet((2, 1), (8, 16), in_channels=1),
    "bottleneck": lambda: nets.ResNet(
        (2, 1), (8, 16), in_channels=1, projection=True, block=nets.resnet.BottleneckBlock
    ),
}


def space_of(model: nn.Module, ratios=EIGHTHS) -> SearchSpace:
    return SearchSpace(model, model.free_widths(), ratios)


@pytest.mark.parametrize("name", FULL)
def test_full_supernets_cost_nothing_on_the_meta_device_and_count_exactly(name: str) -> None:
    build, genes, side = FULL[name]
    with torch.device("meta"):
        space = space_of(build(), RATIOS)
    assert len(space.names) == genes and space.size == 31**genes
    count = MacCount(space, (3, side, side))
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        vector = torch.randint(31, (genes,), generator=generator).tolist()
        assert count(vector) == cost(space.network(space.widths(vector)), (3, side, side)).mac
    assert count([30] * genes) == cost(space.skeleton, (3, side, side)).mac


def test_a_full_pruning_net_needs_no_memory_on_the_meta_device() -> None:
    with torch.device("meta"):
        space = space_of(nets.mobilenet_v2_supernet(), RATIOS)
        net = PruningNet(space, hidden=64)
    assert all(parameter.is_meta for parameter in net.parameters())
    second = sum(p.numel() for name, p in net.named_parameters() if name.endswith("second.weight"))
    assert second == 64 * sum(conv.weight.numel() for conv in space.convolutions.values())


def test_the_official_counter_to_the_digit() -> None:
    stages = (18, 23, 18, 28, 27, 2, 12, 15)
    mids = (4, 12, 25, 23, 20, 14, 24, 8, 19, 26, 2, 10, 24, 16, 6, 26, 10)
    with torch.device("meta"):
        space = space_of(nets.mobilenet_v2_supernet(), RATIOS)
        found = space.network(space.widths((*stages, *mids)))
    mac = cost(found, (3, 224, 224)).mac
    assert (mac, mac + extras(found, (3, 224, 224))) == (202_289_368, 207_976_916)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", ["generated", "shared"])
def test_a_plain_network_with_the_written_weights_gives_the_same_outputs(name: str, kind: str) -> None:
    torch.manual_seed(0)
    space = space_of(SMALL[name]())
    net = PruningNet(space, kind=kind)
    x = torch.randn(6, 1, 8, 8)
    net.train()
    for _ in range(4):  # statistics of some widths move
        net(x)
    genes = net.draw()
    for training in (True, False):
        net.train(training)
        plain = net.candidate(genes)
        assert plain.training == training
        assert torch.allclose(net(x, genes), plain(x), atol=1e-4)
    assert not any("weights" in path or "norms" in path for path in plain.state_dict())
    assert cost(plain, (1, 8, 8)).mac == MacCount(space, (1, 8, 8))(genes)
    assert type(plain) is type(SMALL[name]())


@pytest.mark.parametrize("conv", [check.conv_of(9, 7, 3), check.conv_of(8, 8, 3, groups=8), check.conv_of(6, 5, 1)])
def test_written_weights_are_the_first_channels_of_the_full_tensor(conv: nn.Conv2d) -> None:
    out, read = conv.weight.shape[:2]
    crops = [(out, read), (3, read), (out, 1), (2, 1), (1, 1)]
    check.has_two_layers_with_biases(WeightGenerator, 3, conv, 32)
    for method in ("in_full", "forward"):
        check.takes_the_first_channels(WeightGenerator, method, crops, conv, inputs=3)
    for crop in crops:
        check.multiplies_only_what_survives(WeightGenerator, *crop, conv)


def test_only_rows_that_survive_the_crop_are_multiplied() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 256, 3, bias=False)
    generator, code = WeightGenerator(3, conv, 32), torch.tensor([0.3, 0.5, 1.0])
    with torch.inference_mode():

        def seconds(*shape: int) -> float:
            times = []
            for _ in range(7):
                started = time.perf_counter()
                generator(code, *shape)
                times.append(time.perf_counter() - started)
            return min(times)

        assert seconds(64, 64) < 0.5 * seconds(256, 256)  # a sixteenth of the products


def test_a_generator_depends_on_its_code_and_the_control_does_not() -> None:
    torch.manual_seed(0)
    generator = WeightGenerator(2, nn.Conv2d(4, 6, 3, bias=False), 8)
    one, other = (generator(torch.tensor(code), 6, 4) for code in ([0.1, 1.0], [1.0, 0.1]))
    assert not torch.allclose(one, other)
    shared = SharedWeights(nn.Conv2d(4, 6, 3, bias=False))
    assert torch.equal(shared(torch.tensor([0.1, 1.0]), 3, 2), shared.weight[:3, :2])


def test_encodings_are_the_papers() -> None:
    with torch.device("meta"):
        v1, v2, r50 = (
            space_of(build(), RATIOS) for build in (nets.mobilenet_v1, nets.mobilenet_v2_supernet, nets.resnet50)
        )

    def code(space: SearchSpace, path: str) -> set[str]:
        return {space.names[index] for index in space.codes[path]}

    assert code(v1, "conv1") == {"layer_1"}  # its own output
    assert code(v1, "blocks.0.depthwise") == code(v1, "blocks.0.pointwise") == {"layer_1", "layer_2"}
    assert code(v2, "blocks.5.expand") == {"stage_4", "mid_6"}  # in and out are one stage
    assert code(v2, "blocks.3.project") == {"stage_3", "stage_4", "mid_4"}
    assert code(v2, "head") == {"stage_8"}
    assert code(r50, "layer2.0.conv1") == code(r50, "layer2.0.shortcut.0") == {"stage_1", "stage_2", "mid_4"}
    assert v2.base["mid_1"] == 44 and v2.base["mid_2"] == 6 * 22 and r50.base["mid_16"] == 512


def test_maps_joined_by_shortcuts_share_a_gene_or_nothing_runs() -> None:
    model = nets.ResNet((2, 2), (8, 16), in_channels=1, projection=True)
    tied = model.free_widths()
    space = SearchSpace(model, tied, EIGHTHS)
    x = torch.randn(2, 1, 8, 8, device="meta")
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        genes = torch.randint(7, (len(space.names),), generator=generator).tolist()
        assert space.network(space.widths(genes))(x).shape == (2, 10)
    stem = tied["stage_1"]
    loose = {
        **tied,
        "stage_1": nets.Coupling(stem.producers[:1], stem.norms[:1], stem.consumers[:1], stem.ranked_by, 1),
    }
    space = SearchSpace(model, loose, EIGHTHS)
    with pytest.raises(RuntimeError):
        space.network(space.widths([0] * len(space.names)))(x)


def test_every_width_of_every_position_has_its_own_statistics() -> None:
    torch.manual_seed(0)
    space = space_of(SMALL["v1"]())
    net = PruningNet(space).train()
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    net(torch.randn(8, 1, 8, 8), [0, 1, 2])
    moved = {name for name, t in net.named_buffers() if name.endswith("running_mean") and not t.equal(before[name])}
    assert moved == {
        f"norms.{path}.{width}.running_mean"
        for path, width in {
            "bn1": 2, "blocks/0/bn1": 2, "blocks/0/bn2": 6, "blocks/1/bn1": 6, "blocks/1/bn2": 8, "blocks/2/bn1": 8,
            "blocks/2/bn2": 32,
        }.items()
    }  # fmt: skip


def test_training_draws_one_vector_a_batch_and_repeats_by_seed() -> None:
    digits = data.load("digits")

    def trained() -> PruningNet:
        torch.manual_seed(0)
        net = PruningNet(space_of(SMALL["basic"]()))
        fit(net, digits, Recipe(1, 200, 0.1), seed=3)
        return net

    one, other = trained(), trained()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="needs a width vector"):
        one.eval()(torch.randn(1, 1, 8, 8))


def test_recalibration_raises_the_accuracy_of_a_candidate() -> None:
    digits = data.load("digits")
    torch.manual_seed(0)
    net = PruningNet(space_of(SMALL["basic"]()))
    fit(net, digits, Recipe(8, 40, 0.1), seed=0)
    candidate = net.candidate([3] * 5)
    before = evaluate(candidate, digits).accuracy
    recalibrate_batch_norm(candidate, digits, 200)
    assert evaluate(candidate, digits).accuracy > before + 10


def test_compress_finds_a_network_within_its_budget() -> None:
    digits = data.load("digits")
    torch.manual_seed(0)
    model = SMALL["v2"]()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def accuracy(candidate: nn.Module) -> float:
        recalibrate_batch_norm(candidate, digits, 100)
        return evaluate(candidate, digits).accuracy

    small, report = compress(
        model, 0.4, (1, 8, 8), lambda net: fit(net, digits, Recipe(1, 100, 0.1), 0), accuracy,
        SearchSpace(model, model.free_widths(), EIGHTHS), Evolution(4, 1, 1, generations=2, parents=2),
    )  # fmt: skip
    assert cost(small, (1, 8, 8)).mac == report.mac_after <= 0.4 * report.mac == 0.4 * cost(model, (1, 8, 8)).mac
    assert len(report.search.candidates) == 8
    assert report.search.best.genes == report.genes
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="share 1.5"):
        compress(model, 1.5, (1, 8, 8), lambda net: None, accuracy)


def test_mistakes_are_named() -> None:
    model = SMALL["v1"]()
    for ratios in ([0.0, 1.0], [0.5, 1.5], []):
        with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
            SearchSpace(model, model.free_widths(), ratios)
    with pytest.raises(ValueError, match="from small to large"):
        SearchSpace(model, model.free_widths(), [1.0, 0.5])
    with pytest.raises(ValueError, match=r"ratio 0.05 of 8 maps leaves none; leave out ratios below 1/8"):
        SearchSpace(model, model.free_widths(), [0.05, 1.0])
    space = space_of(model)
    with pytest.raises(ValueError, match=r"3 genes \(layer_1, layer_2, layer_3\), not 2"):
        space.widths([1, 2])
    with pytest.raises(ValueError, match="gene 7 of layer_2 is no index from 0 to 6"):
        space.widths([1, 7, 2])
    with pytest.raises(ValueError, match="width ratio 0 must lie"):
        space.uniform(0)
    with pytest.raises(ValueError, match="width 'layer_1' is 9"):
        space.network({**space.base, "layer_1": 9})
    with pytest.raises(ValueError, match="widths for layer_1"):
        space.network({})
    biased = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="0 has a bias"):
        SearchSpace(biased, {})
    grouped = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, bias=False))
    with pytest.raises(ValueError, match="0 has 2 groups"):
        SearchSpace(grouped, {})
    vgg = nets.VGG(((16,), (16,)), hidden=None, in_channels=1, side=8)
    with pytest.raises(ValueError, match=r"touches classifier.linear_1, which is no convolution"):
        SearchSpace(vgg, vgg.couplings())


def test_widths_that_are_alike_in_ratio_are_scaled_by_int() -> None:
    space = space_of(nets.mobilenet_v1(), RATIOS)
    assert space.uniform(0.75) == {f"layer_{i}": int(w * 0.75) for i, w in enumerate(nets.mobilenet.V1_WIDTHS[:-1], 1)}
    logits = space.network(space.uniform(0.5))(torch.empty(1, 3, 224, 224, device="meta"))
    assert logits.shape == (1, 1000) and F.relu(logits).is_meta
