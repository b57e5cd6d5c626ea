"""The networks of Son et al. 2018: kernels, costs and parameters at full size, and passes of real numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shrinkbook import nets
from shrinkbook.measure.cost import cost, parameter_count
from shrinkbook.methods.filter_pruning import compress, couplings_of, masked, select, slim, split_before
from shrinkbook.nets.densenet import DenseLayer
from shrinkbook.nets.resnet import BottleneckBlock

# side of the input; 3x3 kernels; multiply-accumulates of all layers; weights; parameters
NETS = {
    "VGG-16": (nets.vgg16_one_linear, 32, 1_634_496, 313_201_664, 14_715_584, 14_728_266),
    "ResNet-56": (lambda: nets.resnet_cifar(56), 32, 94_256, 125_485_696, 848_944, 853_018),
    "DenseNet-12-40": (nets.densenet_12_40, 32, 101_160, 282_917_328, 1_040_568, 1_059_298),
    "DenseNet-BC-100-12": (nets.densenet_bc_100_12, 32, 27_720, 287_929_692, 745_164, 769_162),
    "ResNet-18": (nets.resnet18, 224, 1_220_608, 1_814_073_344, 11_678_912, 11_689_512),
    "ResNet-50": (nets.resnet50, 224, 1_257_472, 4_089_184_256, 25_502_912, 25_557_032),
}
A = {f"conv_{number}": 0.5 for number in (1, 8, 9, 10, 11, 12, 13)}  # VGG-16-pruned-A of Li et al. 2017


def kernels(model: nn.Module, side: int = 3) -> int:
    """Spatial slices (one input channel of one filter) of this side."""
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return sum(len(conv.weight.flatten(0, 1)) for conv in convs if conv.kernel_size == (side, side))


def random_norms(model: nn.Module) -> nn.Module:
    """Batch norms as after training: without them a missing bias would not show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@pytest.mark.parametrize("name", NETS)
def test_kernels_and_costs_at_full_size(name):
    build, side, *expected = NETS[name]
    with torch.device("meta"):
        model = build()
    found = cost(model, (3, side, side))
    assert [kernels(model), found.mac, found.weights, parameter_count(model)] == expected


def test_what_the_paper_counts_of_its_networks():
    """The 13 convolutions of VGG-16 cost 313 million; of ResNet-18 the convolutions, not the linear layer, count."""
    with torch.device("meta"):
        vgg, resnet, dense = nets.vgg16_one_linear(), nets.resnet18(), nets.densenet_bc_100_12()
    assert cost(vgg, (3, 32, 32)).without("classifier").mac == 313_196_544
    assert cost(resnet, (3, 224, 224)).without("linear").weights == 9 * 1_220_608 + 172_032 + 49 * 192
    assert kernels(resnet, 7) == 192 and kernels(resnet, 1) == 172_032
    spatial = {name for name, module in dense.named_modules() if getattr(module, "kernel_size", None) == (3, 3)}
    assert sum(layer.mac for layer in cost(dense, (3, 32, 32)).layers if layer.name in spatial) == 112_140_288


def test_vgg_with_one_linear_layer_has_biases_and_no_second_one():
    model = nets.initialize(nets.vgg16_one_linear(classes=7), 0).eval()
    assert [name for name, _ in model.classifier.named_children()] == ["linear_1"]
    assert all(module.bias is not None for module in model.features if isinstance(module, nn.Conv2d))
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = F.linear(
            model.features(x).flatten(1), model.classifier.linear_1.weight, model.classifier.linear_1.bias
        )
        assert torch.equal(model(x), expected) and expected.shape == (2, 7)


def test_vgg_with_one_linear_layer_is_pruned_as_li2017_prunes():
    model = random_norms(nets.initialize(nets.vgg16_one_linear(), 0)).eval()
    smaller, report = compress(model, A)
    assert kernels(smaller) == 583_776 and report.filters_after["conv_13"] == 256
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        got = smaller(x)
        with masked(model, select(model, A)):
            torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", [nets.densenet_12_40, nets.densenet_bc_100_12])
def test_densenet_maps_have_the_papers_sizes(build):
    with torch.device("meta"):
        model = build()
    layers = {layer.name: layer.output for layer in cost(model, (3, 32, 32)).layers}
    last = "conv2" if build is nets.densenet_bc_100_12 else "conv1"
    count = len(model.block1)
    assert layers["conv1"] == (24, 32, 32)
    assert [layers[f"block{n}.{count - 1}.{last}"] for n in (1, 2, 3)] == [(12, side, side) for side in (32, 16, 8)]
    wide = [model.get_submodule(f"transition{n}").conv for n in (1, 2)]
    share = 2 if build is nets.densenet_bc_100_12 else 1
    assert [conv.in_channels // conv.out_channels for conv in wide] == [share, share]
    layer_count = 1 + sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert layer_count == (100 if build is nets.densenet_bc_100_12 else 40)


def test_a_dense_layer_keeps_what_it_reads_and_adds_growth_maps():
    x = torch.randn(2, 10, 6, 6)
    for bottleneck in (False, True):
        layer = random_norms(DenseLayer(10, 4, bottleneck)).eval()
        kept = x.clone()
        with torch.inference_mode():
            out = layer(x)
            new = F.conv2d(layer.bn1(x).relu(), layer.conv1.weight, padding=0 if bottleneck else 1)
            if bottleneck:
                assert new.shape[1] == 16
                new = F.conv2d(layer.bn2(new).relu(), layer.conv2.weight, padding=1)
        assert torch.equal(x, kept)
        torch.testing.assert_close(out, torch.cat([kept, new], 1))


def test_densenet_computes_layer_by_layer_what_the_formula_says():
    """Every layer reads all maps before it in its block; a transition reads all of them."""
    model = random_norms(nets.initialize(nets.DenseNet(2, 3, bc=True, classes=5, in_channels=1), 0)).eval()
    x = torch.randn(2, 1, 8, 8)

    def composite(norm, conv, y):
        return conv(norm(y).relu())

    with torch.inference_mode():
        maps = model.conv1(x)
        for number in (1, 2, 3):
            seen = [maps]
            for layer in model.get_submodule(f"block{number}"):
                y = composite(layer.bn1, layer.conv1, torch.cat(seen, 1))
                seen.append(composite(layer.bn2, layer.conv2, y))
            maps = torch.cat(seen, 1)
            if number < 3:
                between = model.get_submodule(f"transition{number}")
                maps = F.avg_pool2d(composite(between.bn, between.conv, maps), 2)
        expected = model.linear(model.bn(maps).relu().mean((2, 3)))
        assert expected.shape == (2, 5)
        torch.testing.assert_close(model(x), expected)


def test_a_bottleneck_block_adds_its_shortcut_before_the_last_relu():
    block = random_norms(BottleneckBlock(8, 4, 2, projection=True)).eval()
    x = torch.randn(2, 8, 6, 6)
    with torch.inference_mode():
        y = block.bn1(F.conv2d(x, block.conv1.weight)).relu()
        y = block.bn2(F.conv2d(y, block.conv2.weight, stride=2, padding=1)).relu()
        y = block.bn3(F.conv2d(y, block.conv3.weight))
        around = block.shortcut[1](F.conv2d(x, block.shortcut[0].weight, stride=2))
        assert y.shape == (2, 16, 3, 3)
        torch.testing.assert_close(block(x), (y + around).relu())


def small_bottlenecks() -> nets.ResNet:
    shape = {"projection": True, "imagenet_stem": True, "block": BottleneckBlock}
    return random_norms(nets.initialize(nets.ResNet((2, 2), (8, 16), classes=5, **shape), 0)).eval()


def test_bottlenecks_are_pruned_inside_and_by_stage():
    model = small_bottlenecks()
    couplings = couplings_of(model)
    inside = [f"conv_{n}" for n in (2, 3, 5, 6, 8, 9, 11, 12)]
    assert set(couplings) == {*inside, "stage_1", "stage_2"}
    assert [couplings[name].ranked_by for name in inside[:3]] == ["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1"]
    selection = select(model, dict.fromkeys(couplings, 0.5))
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        smaller = slim(model, selection)(x)
        with masked(model, selection):
            assert torch.isfinite(smaller).all() and smaller.abs().max() > 0.1
            torch.testing.assert_close(smaller, model(x), rtol=1e-4, atol=1e-4)
        head, tail = split_before(model, "conv_9")
        torch.testing.assert_close(tail(head(x)), model(x))


def test_resnet50_names_every_coupling_once():
    with torch.device("meta"):
        couplings = nets.resnet50().couplings()
    numbers = [int(name.removeprefix("conv_")) for name in couplings if name.startswith("conv_")]
    assert numbers == [n for n in range(2, 50) if n % 3 != 1]
    assert couplings["stage_4"].consumers[-1] == "linear" and len(couplings["stage_3"].producers) == 7
