"""Compressed bytes: as small as the formula says, the same outputs in a fresh process, every harm noticed."""

import copy
import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from shrinkbook import nets
from shrinkbook.methods import clustered_bytes
from shrinkbook.methods.clustered_bytes import from_bytes, sizes, to_bytes
from shrinkbook.methods.clustered_layers import Codebook, cluster_conv, clustered_layers, codebooks, replace_layers

PERMUTATIONS = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(i)) for i in range(8)])


def plain(seed: int = 0) -> nn.Sequential:
    """Everything a file can hold: 7x7 and 3x3 kernels, groups, a 1x1 convolution, norms, a linear layer."""
    layers = (
        nn.Conv2d(3, 8, 7, stride=2, padding=3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, bias=False),
        nn.Conv2d(12, 10, 1),
        nn.Conv2d(10, 6, 3, groups=2),
        nn.Flatten(),
        nn.Linear(6 * 36, 5),
    )
    return nets.initialize(nn.Sequential(*layers), seed).eval()


def clustered(
    model: nn.Module, k: int, transforms: int = 1, scaled: bool = True, pruned: bool = False, seed: int = 0
) -> nn.Module:
    """All 3x3 layers on one codebook, larger ones on one of their own with 5 centroids, codes at random."""
    random = torch.Generator().manual_seed(seed)
    shared = Codebook(torch.randn(k, 3, 3, generator=random), PERMUTATIONS[:transforms])
    new = {}
    for path, conv in model.named_modules():
        if not isinstance(conv, nn.Conv2d) or conv.kernel_size == (1, 1):
            continue
        side, shape = conv.kernel_size[0], conv.weight.shape[:2]
        book = shared if side == 3 else Codebook(torch.randn(5, side, side, generator=random))
        index = torch.randint(len(book.centroids), shape, generator=random)
        transform = torch.randint(len(book.permutations), shape, generator=random)
        scale = torch.randn(shape, generator=random) if scaled else None
        kept = torch.rand(shape, generator=random) < 0.5 if pruned and side == 3 else None
        new[path] = cluster_conv(conv, book, index, transform, scale, kept)
    model = replace_layers(model, new)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var.uniform_(0.5, 2, generator=random)
            norm.num_batches_tracked += 70_000
    return model


def image(side: int = 16) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("k", [1, 2, 5, 256, 300])
@pytest.mark.parametrize(("transforms", "scaled", "pruned"), [(1, True, False), (8, False, True), (4, True, True)])
def test_written_and_read_is_the_same_network(k, transforms, scaled, pruned):
    model = clustered(plain(), k, transforms, scaled, pruned)
    other = plain(seed=1)
    before = copy.deepcopy(other.state_dict())
    data = to_bytes(model)
    read = from_bytes(data, other)
    assert torch.equal(read(image()), model(image()))
    assert to_bytes(read) == data
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    assert len(codebooks(read)) == 2 and read[3].codebook is read[5].codebook
    assert read[1].num_batches_tracked == 70_000
    for path, layer in clustered_layers(model).items():
        twin = read.get_submodule(path)
        chosen = slice(None) if layer.kept is None else layer.kept
        assert torch.equal(twin.index[chosen], layer.index[chosen])
        assert torch.equal(twin.transform[chosen], layer.transform[chosen])
        assert (twin.scale is None) == (layer.scale is None)
        assert (twin.kept is None) == (layer.kept is None) or torch.equal(twin.kept, layer.kept)


@pytest.mark.parametrize("transforms", [1, 2, 8])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("pruned", [True, False])
@pytest.mark.parametrize("k", [1, 32, 100])
def test_size_is_the_formula_and_a_stated_header(k, transforms, scaled, pruned):
    model = clustered(plain(), k, transforms, scaled, pruned)
    data = to_bytes(model, codebook_bits=16, pointwise_bits=16)
    parts = sizes(data)
    width = math.ceil(math.log2(k)) + int(math.log2(transforms))
    spatial = [model[3], model[5]]
    kernels = sum(int(layer.weight.abs().sum((2, 3)).count_nonzero()) for layer in spatial)
    assert (kernels < 12 * 8 + 6 * 5) == pruned
    assert parts["indices"] == math.ceil((kernels * width + 24 * 3) / 8)  # 7x7: 24 kernels, 5 centroids in 3 bits
    assert parts["scales"] == (2 * (kernels + 24) if scaled else 0)
    assert parts["masks"] == (math.ceil((12 * 8 + 6 * 5) / 8) if pruned else 0)
    assert parts["codebooks"] == 2 * (9 * k + 49 * 5)
    assert parts["pointwise"] == 2 * 120
    assert parts["rest"] == 4 * (8 + 4 * 8 + 10 + 6 + 6 * 36 * 5 + 5) + 8  # biases, norm, linear; a counter of 8 bytes
    assert sum(parts.values()) == len(data) and list(parts)[0] == "header"
    wide = sizes(to_bytes(model, rest_bits=16))
    assert wide["codebooks"] == 2 * parts["codebooks"] and wide["pointwise"] == 2 * parts["pointwise"]
    assert wide["rest"] == (parts["rest"] - 8) // 2 + 8


def test_vgg16_has_the_size_of_the_paper():
    """4.913 MB for the kernels of VGG-16-C256, 11.98 times less: fact of the arithmetic, now a file."""
    data = to_bytes(clustered(nets.vgg16(), 256))
    parts = sizes(data)
    assert parts["indices"] == 1_634_496 and parts["scales"] == 2 * 1_634_496 and parts["codebooks"] == 4 * 9 * 256
    written = parts["indices"] + parts["scales"] + parts["codebooks"]
    assert round(written / 1e6, 3) == 4.913 and round(4 * 14_710_464 / written, 2) == 11.98
    assert parts["masks"] == parts["pointwise"] == 0 and parts["header"] < 8_000
    read = clustered_layers(from_bytes(data, nets.vgg16()))
    model = clustered_layers(clustered(nets.vgg16(), 256))
    assert all(torch.equal(read[path].weight, layer.weight) for path, layer in model.items())


@pytest.mark.parametrize("bits", [{"codebook_bits": 16}, {"pointwise_bits": 16}, {"rest_bits": 16}])
def test_half_precision_is_the_network_rounded(bits):
    model = clustered(plain(), 32, 2)
    read = from_bytes(to_bytes(model, **bits), plain())
    assert not torch.equal(read(image()), model(image()))
    rounded = {
        "codebook_bits": [book.centroids for book in codebooks(model)],
        "pointwise_bits": [model[4].weight],
        "rest_bits": [model[i].bias for i in (0, 1, 4, 5, 7)]
        + [model[1].weight, model[1].running_mean, model[1].running_var, model[7].weight],
    }
    for tensor in rounded[next(iter(bits))]:
        tensor.data = tensor.data.half().float()
    assert torch.equal(read(image()), model(image()))
    assert read[1].num_batches_tracked == 70_000


def test_a_fresh_process_gives_the_same_outputs(tmp_path):
    model = clustered(plain(), 100, 4, pruned=True)
    (tmp_path / "network").write_bytes(to_bytes(model, codebook_bits=16, rest_bits=16))
    script = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_clustered_bytes as here
torch.set_num_threads(int(sys.argv[3]))
data = (Path(sys.argv[1]) / "network").read_bytes()
torch.save(here.from_bytes(data, here.plain(seed=5))(here.image()), Path(sys.argv[1]) / "outputs")
"""
    here, threads = __file__.rsplit("/", 1)[0], str(torch.get_num_threads())
    subprocess.run([sys.executable, "-c", script, str(tmp_path), here, threads], check=True)
    for tensor in (*(book.centroids for book in codebooks(model)), *model[1].parameters(), *model[1].buffers()):
        tensor.data = tensor.data.half().float() if tensor.is_floating_point() else tensor.data
    for layer in (model[0], model[4], model[5], model[7]):
        layer.bias.data = layer.bias.data.half().float()
    model[7].weight.data = model[7].weight.data.half().float()
    assert torch.equal(torch.load(tmp_path / "outputs"), model(image()))


def test_precision_and_mode_are_those_of_the_given_network():
    data = to_bytes(clustered(plain(), 32))
    read = from_bytes(data, plain().double().train())
    assert read[3].weight.dtype == read[7].weight.dtype == torch.float64 and read[3].training
    assert torch.equal(from_bytes(data, plain())[7].weight.double(), read[7].weight)
    torch.testing.assert_close(from_bytes(data, plain())[3].weight.double(), read[3].weight, rtol=1e-6, atol=0)
    frozen = plain()
    frozen[3].weight.requires_grad_(False)
    assert not from_bytes(data, frozen)[3].scale.requires_grad


def test_shared_modules_and_tied_weights_are_written_once():
    model = plain()
    model.twice = model[3]
    model.tied = nn.Linear(6 * 36, 5)
    model.tied.weight = model[7].weight
    unclustered = copy.deepcopy(model)
    data = to_bytes(clustered(model, 32))
    alone = sizes(to_bytes(clustered(plain(), 32)))
    assert sizes(data)["indices"] == alone["indices"] and sizes(data)["rest"] == alone["rest"] + 4 * 5
    read = from_bytes(data, unclustered)
    assert read.twice is read[3] and read.tied.weight is read[7].weight
    assert torch.equal(read[3].weight, model[3].weight) and torch.equal(read.tied.weight, model.tied.weight)


@pytest.fixture(scope="module")
def data() -> bytes:
    return to_bytes(clustered(plain(), 32, 2, pruned=True))


def test_every_truncation_is_noticed(data):
    for length in (*range(1, 400), *range(400, len(data), 37), len(data) - 1):
        with pytest.raises(ValueError, match="compressed bytes: truncated"):
            sizes(data[:length])
    with pytest.raises(ValueError, match="followed by something else"):
        from_bytes(data + b"\0", plain())


def test_every_bit_flip_is_noticed(data):
    for position in (*range(120), *range(120, len(data), 101), len(data) - 1):
        harmed = bytearray(data)
        harmed[position] ^= 1 << position % 8
        with pytest.raises(ValueError, match="compressed bytes: "):
            sizes(bytes(harmed))


@pytest.mark.parametrize("foreign", [b"", b"PK\3\4 a zip file", b"\x89PNG\r\n\x1a\n" + bytes(90), b"{}"])
def test_foreign_bytes(foreign):
    with pytest.raises(ValueError, match="no clustered network, it does not start with the magic number"):
        from_bytes(foreign, plain())


def test_another_version(data):
    later = bytearray(data)
    later[8] = 2
    with pytest.raises(ValueError, match="version 2, this library reads 1"):
        from_bytes(bytes(later), plain())


def with_layer(path: int, layer: nn.Module) -> nn.Module:
    model = plain()
    model[path] = layer
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (plain()[:3], "3 is a plain convolution, to be clustered in the file, missing in the network"),
        (with_layer(3, nn.Linear(8, 12)), "3 is a plain convolution, to be clustered in the file, a Linear in the"),
        (clustered(plain(), 4), "0 is a plain convolution, to be clustered in the file, a ClusteredConv2d in the"),
        (
            with_layer(3, nn.Conv2d(8, 14, 3)),
            r"3 is kernels \(12, 8, 3, 3\) in the file, kernels \(14, 8, 3, 3\) in the network",
        ),
        (with_layer(3, nn.Conv2d(8, 12, 5)), r"3 is kernels \(12, 8, 3, 3\) in the file, kernels \(12, 8, 5, 5\) in"),
        (with_layer(3, nn.Conv2d(8, 12, 3)), "3.bias is missing in the file, there in the network"),
        (with_layer(1, nn.Identity()), "1.bias is stored in the file, missing in the network"),
        (with_layer(7, nn.Linear(6 * 36, 9)), r"7.weight is \(5, 216\) in the file, \(9, 216\) in the network"),
    ],
)
def test_another_architecture(data, model, words):
    with pytest.raises(ValueError, match=f"compressed bytes: another architecture, {words}"):
        from_bytes(data, model)


def test_what_cannot_be_written():
    with pytest.raises(ValueError, match="Sequential has no clustered layer; cluster it first"):
        to_bytes(plain())
    with pytest.raises(ValueError, match="rest cannot be written at 8 bits; choose 16 or 32"):
        to_bytes(clustered(plain(), 4), rest_bits=8)
    model = clustered(plain(), 4)
    model[1].running_var[2] = 70_000
    assert from_bytes(to_bytes(model), plain())[1].running_var[2] == 70_000
    with pytest.raises(ValueError, match=r"1.running_var holds a number that is not finite at 16 bits"):
        to_bytes(model, rest_bits=16)
    model[3].scale.data[0, 0] = 70_000
    with pytest.raises(ValueError, match=r"3.scale holds a number that is not finite at 16 bits"):
        to_bytes(model)


def test_the_header_names_what_is_inside(data):
    text = int.from_bytes(data[12:16], "little")
    header = json.loads(data[clustered_bytes.PREFIX :][:text])
    assert [entry[0] for entry in header["layers"]] == ["0", "3", "5"]
    assert header["precision"] == {"codebooks": 32, "pointwise": 32, "rest": 32}
