"""The networks of Dong et al. 2017: costs at full size, the blocks' formulas, what a gate can rely on."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shrinkbook import nets
from shrinkbook.measure.cost import cost, parameter_count
from shrinkbook.nets.preact_resnet import PreactBasicBlock, PreactBottleneckBlock

cifar, bottleneck, imagenet = nets.preact_resnet_cifar, nets.preact_resnet_bottleneck, nets.preact_resnet_imagenet
BASIC, NARROW = ("conv1", "conv2"), ("conv2", "conv3")  # the convolutions of a block that are gated
# side of the input; gated convolutions; multiply-accumulates of all layers, of the gated ones; parameters
NETS = {
    "ResNet-20": (partial(cifar, 20), 32, BASIC, 40_551_040, 40_108_032, 269_722),
    "ResNet-32": (partial(cifar, 32), 32, BASIC, 68_862_592, 68_419_584, 464_154),
    "ResNet-44": (partial(cifar, 44), 32, BASIC, 97_174_144, 96_731_136, 658_586),
    "ResNet-56": (partial(cifar, 56), 32, BASIC, 125_485_696, 125_042_688, 853_018),
    "ResNet-110": (partial(cifar, 110), 32, BASIC, 252_887_680, 252_444_672, 1_727_962),
    "ResNet-20 B": (partial(cifar, 20, projection=True), 32, BASIC, 40_813_184, 40_108_032, 272_282),
    "ResNet-164": (bottleneck, 32, NARROW, 244_500_992, 184_025_088, 1_703_258),
    "ResNet-164 3x3": (partial(bottleneck, stride_in_3x3=True), 32, NARROW, 247_646_720, 184_025_088, 1_703_258),
    "ResNet-18": (partial(imagenet, 18), 224, BASIC, 1_814_073_344, 1_676_279_808, 11_687_720),
    "ResNet-34": (partial(imagenet, 34), 224, BASIC, 3_663_761_408, 3_525_967_872, 21_795_880),
}


def random_norms(model: nn.Module) -> nn.Module:
    """Batch norms as after training: without them a missing norm would not show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def blocks_of(model: nn.Module) -> list[nn.Module]:
    kinds = (PreactBasicBlock, PreactBottleneckBlock)
    return [module for module in model.modules() if isinstance(module, kinds)]


def small(**shape) -> nets.PreactResNet:
    model = nets.PreactResNet((2, 2), (4, 8), classes=5, in_channels=1, **shape)
    return random_norms(nets.initialize(model, 0))


@pytest.mark.parametrize("name", NETS)
def test_costs_at_full_size(name):
    build, side, gated, *expected = NETS[name]
    with torch.device("meta"):
        model = build()
    found = cost(model, (3, side, side))
    inside = sum(layer.mac for layer in found.layers if layer.name.startswith("layer") and layer.name.endswith(gated))
    assert [found.mac, inside, parameter_count(model)] == expected


def test_imagenet_networks_cost_what_the_others_of_their_depth_cost():
    with torch.device("meta"):
        pairs = [(imagenet(18), nets.resnet18()), (imagenet(34), nets.resnet34())]
    for preact, plain in pairs:
        assert cost(preact, (3, 224, 224)).mac == cost(plain, (3, 224, 224)).mac


@pytest.mark.parametrize("classes", [10, 100])
def test_depth_counts_the_convolutions_and_the_linear_layer(classes):
    for depth, build in ((56, cifar), (164, bottleneck)):
        with torch.device("meta"):
            model = build(depth, classes=classes)
        inside = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
        assert sum("shortcut" not in name for name in inside) + 1 == depth
        assert model.linear.out_features == classes


def test_a_basic_block_computes_its_formula():
    """The first block of a stage hands the activated maps to the shortcut, the others their input as it is."""
    for stride, width, projection in ((2, 12, True), (2, 12, False), (1, 6, True)):
        for shared in (True, False):
            block = random_norms(PreactBasicBlock(6, width, stride, projection, shared))
            x = torch.randn(2, 6, 8, 8)
            kept = x.clone()
            with torch.inference_mode():
                got = block(x)
                active = block.bn1(x).relu()
                y = F.conv2d(active, block.conv1.weight, stride=stride, padding=1)
                y = F.conv2d(block.bn2(y).relu(), block.conv2.weight, padding=1)
                around = active if shared else x
                if projection and width != 6:
                    around = F.conv2d(around, block.shortcut.weight, stride=stride)
                elif width != 6:
                    around = F.pad(around[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))
            assert torch.equal(x, kept) and got.shape == (2, width, 8 // stride, 8 // stride)
            torch.testing.assert_close(got, y + around)


@pytest.mark.parametrize("stride_in_3x3", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_bottleneck_block_computes_its_formula(stride_in_3x3, shared):
    block = random_norms(PreactBottleneckBlock(6, 4, 2, True, shared, stride_in_3x3))
    x = torch.randn(2, 6, 8, 8)
    kept = x.clone()
    with torch.inference_mode():
        got = block(x)
        active = block.bn1(x).relu()
        y = F.conv2d(active, block.conv1.weight, stride=1 if stride_in_3x3 else 2)
        y = F.conv2d(block.bn2(y).relu(), block.conv2.weight, stride=2 if stride_in_3x3 else 1, padding=1)
        y = F.conv2d(block.bn3(y).relu(), block.conv3.weight)
        around = F.conv2d(active if shared else x, block.shortcut.weight, stride=2)
    assert torch.equal(x, kept) and got.shape == (2, 16, 4, 4)
    torch.testing.assert_close(got, y + around)


def test_a_block_without_its_residual_branch_passes_on_its_input():
    """What pre-activation is for: behind the first block of a stage nothing but the sum lies on the way."""
    model = small()
    with torch.inference_mode():
        for block in blocks_of(model):
            block.conv2.weight.zero_()
        x = torch.randn(2, 4, 6, 6)
        assert torch.equal(model.layer1[1](x), x)
        assert torch.equal(model.layer1[0](x), model.layer1[0].bn1(x).relu())


@pytest.mark.parametrize("imagenet_stem", [False, True])
def test_the_network_is_stem_blocks_norm_and_pooled_features(imagenet_stem):
    model = small(imagenet_stem=imagenet_stem, projection=imagenet_stem)
    x = torch.randn(3, 1, 32, 32)
    with torch.inference_mode():
        maps = F.conv2d(x, model.stem[0].weight, stride=2, padding=3) if imagenet_stem else None
        if maps is None:
            maps = F.conv2d(x, model.stem[0].weight, padding=1)
        else:
            maps = F.max_pool2d(model.stem[1](maps).relu(), 3, 2, 1)
        assert torch.equal(maps, model.stem(x))
        for block in (*model.layer1, *model.layer2):
            maps = block(maps)
        expected = model.linear(model.bn(maps).relu().mean((2, 3)))
        assert expected.shape == (3, 5)
        torch.testing.assert_close(model(x), expected)


def test_behind_the_imagenet_stem_the_first_block_has_no_norm_of_its_own():
    model = small(imagenet_stem=True, projection=True)
    x = torch.randn(2, 4, 6, 6).relu()
    with torch.inference_mode():
        block = model.layer1[0]
        y = F.conv2d(x, block.conv1.weight, padding=1)
        y = F.conv2d(block.bn2(y).relu(), block.conv2.weight, padding=1)
        torch.testing.assert_close(block(x), y + x)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 1 + (2 * 4 - 1) + 1


def test_strides_and_stages():
    """Maps of 32, 16 and 8 pixels; the first block of the stages behind the first one halves them."""
    for build in (partial(cifar, 20), bottleneck):
        with torch.device("meta"):
            model = build()
        shapes = {layer.name: layer.output for layer in cost(model, (3, 32, 32)).layers}
        for stage, side in enumerate((32, 16, 8), start=1):
            names = [name for name in shapes if name.startswith(f"layer{stage}.")]
            assert {shapes[name][1:] for name in names} == {(side, side)}


@pytest.mark.parametrize("build", [partial(cifar, 8), partial(bottleneck, 11)])
def test_every_gated_convolution_reads_activated_maps_and_can_be_found(build):
    """A gate beside a convolution reads what it reads: the output of batch norm and ReLU, never a negative number."""
    model = random_norms(nets.initialize(build(), 0))
    seen: dict[str, Tensor] = {}
    for index, block in enumerate(blocks_of(model)):
        names = ("conv1", "conv2", "conv3")[: 3 if isinstance(block, PreactBottleneckBlock) else 2]
        for name in names:
            assert isinstance(block.get_submodule(name.replace("conv", "bn")), nn.BatchNorm2d)
            conv = block.get_submodule(name)
            assert isinstance(conv, nn.Conv2d) and conv.bias is None
            conv.register_forward_pre_hook(
                lambda _, inputs, key=f"{index}.{name}": seen.update({key: inputs[0].clone()})
            )
    with torch.inference_mode():
        model(torch.randn(2, 3, 32, 32))
    assert len(seen) == sum(3 if isinstance(block, PreactBottleneckBlock) else 2 for block in blocks_of(model))
    for key, maps in seen.items():
        assert maps.min() == 0 and maps.max() > 0, key


def test_every_parameter_gets_a_gradient():
    for shape in ({}, {"projection": True}, {"block": PreactBottleneckBlock, "projection": True}):
        model = small(**shape).train()
        model(torch.randn(4, 1, 8, 8)).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("build", "words"),
    [(partial(cifar, 21), ["21", "6n + 2", "110"]), (partial(cifar, 164), ["164", "preact_resnet_bottleneck"])]
    + [(partial(cifar, 2), ["2", "6n + 2"]), (partial(bottleneck, 19), ["19", "9n + 2", "164"])]
    + [(partial(bottleneck, 2), ["2", "9n + 2"]), (partial(imagenet, 50), ["50", "18 and 34"])],
)
def test_other_depths_are_refused(build, words):
    with pytest.raises(ValueError) as caught:
        build()
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words)
