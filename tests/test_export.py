"""Export: every kind of network of the suite survives it, and what does not is named with its remedy."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shrinkbook.experiments.networks import NETS
from shrinkbook.measure import export as module
from shrinkbook.measure.export import LAYERS, TOLERANCE, ExportError, difference, export, missing
from shrinkbook.methods import filter_pruning, kernel_clustering, lccl, tucker
from shrinkbook.nets import initialize

if reason := missing():
    pytest.skip(reason, allow_module_level=True)

IMAGE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def pruned() -> nn.Module:
    base = initialize(NETS["digits VGG"](), 0)
    return filter_pruning.compress(base, {"conv_2": 0.35, "conv_5": 0.6})[0]  # 10 and 13 maps left


def low_rank() -> nn.Module:
    base = initialize(NETS["digits VGG"](), 0)
    convs = {name: (5, 7) for name, m in base.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels >= 16}
    linear = {name: 6 for name, m in base.named_modules() if isinstance(m, nn.Linear)}
    return tucker.compress(base, {**convs, **linear}, input_shape=(1, 8, 8))[0]


FORMS = {
    "original": lambda: initialize(NETS["digits ResNet"](), 0),
    "projections": lambda: initialize(NETS["digits ResNet with projections"](), 0),
    "pruned to odd widths": pruned,
    "Tucker and SVD": low_rank,
    "clustered": lambda: kernel_clustering.compress(initialize(NETS["digits ResNet"](), 0), 16)[0],
    "LCCL, shared map": lambda: lccl.add_lccl(initialize(NETS["digits pre-activation ResNet"](), 0)),
    "LCCL, one map each": lambda: lccl.add_lccl(initialize(NETS["digits pre-activation ResNet"](), 0), kind="1x1xCxT"),
}


@pytest.mark.parametrize("form", FORMS)
def test_outputs_are_torchs_in_both_precisions(form: str, tmp_path: Path) -> None:
    model = FORMS[form]().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = export(model, IMAGE, form, tmp_path)
    assert found.error["fp32"] < 1e-5 and 1e-6 < found.error["fp16"] < TOLERANCE["fp16"]
    with torch.no_grad():
        assert np.array_equal(found.expected(), model(IMAGE)[0].numpy())
    assert found.shape == (1, 8, 8) and found.outputs == 10 and found.mac > 0
    assert set(module.layers(found.path("model.param").read_text())) <= LAYERS
    assert bool(found.notes) == (form == "clustered")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_grouped_convolution_that_reads_the_input(kernel: int, tmp_path: Path) -> None:
    """Maps of 27 x 27 do not fill multiples of 16 bytes, which ncnn's grouped convolutions take for granted."""
    image = torch.randn(1, 118, 27, 27, generator=torch.Generator().manual_seed(0))
    layer = initialize(nn.Conv2d(118, 256, kernel, groups=2), 0)
    assert export(nn.Sequential(layer), image, "conv2.last", tmp_path).error["fp32"] < 1e-5


def test_the_clustered_file_is_as_large_as_the_dense_one(tmp_path: Path) -> None:
    dense = export(FORMS["original"](), IMAGE, "dense", tmp_path)
    shared = export(FORMS["clustered"](), IMAGE, "clustered", tmp_path)
    assert shared.file_bytes == dense.file_bytes
    assert shared.notes == ("clustered kernels are written as the dense ones they stand for",)


def test_the_cache_goes_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = export(FORMS["original"](), IMAGE, "a", tmp_path)
    monkeypatch.setattr(module, "_convert", None)  # a second conversion would fail
    assert export(FORMS["original"](), IMAGE, "b", tmp_path) == type(first)(**{**asdict(first), "name": "b"})
    monkeypatch.undo()
    other = FORMS["original"]()
    with torch.no_grad():
        next(other.parameters())[0, 0, 0, 0] += 1e-3
    assert export(other, IMAGE, "a", tmp_path).key != first.key
    assert len(list(tmp_path.iterdir())) == 2


def test_the_key_is_the_same_in_another_process(tmp_path: Path) -> None:
    here = export(FORMS["original"](), IMAGE, "a", tmp_path / "here").key
    code = (
        "import sys, torch; from pathlib import Path; from shrinkbook.experiments.networks import NETS;"
        "from shrinkbook.measure.export import export; from shrinkbook.nets import initialize;"
        "image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0));"
        "print(export(initialize(NETS['digits ResNet'](), 0), image, 'a', Path(sys.argv[1])).key)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], capture_output=True, text=True)
    assert done.stdout.strip() == here, done.stderr


class Slicing(nn.Module):
    """The option-A shortcut as most code writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, ::2, ::2].mean((2, 3))


class Sorting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sort(1)[0]


class Cumulative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, 1).flatten(1)


class Infinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x / 0).flatten(1)


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


WRONG = {
    "layer Tensor.slice cannot run in ncnn: x[:, :, ::2, ::2] is written F.max_pool2d(x, 1, 2)": Slicing,
    "layer aten::sort cannot run in ncnn: export the network up to its logits": Sorting,
    "layer CumulativeSum cannot run in ncnn: write it with layers of measure/runner/layers.txt": Cumulative,
    "PyTorch's own outputs are not finite": Infinite,
    "returns tuple; export a network with one tensor as output": Two,
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_exported_is_named_with_its_remedy(message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export(WRONG[message](), IMAGE, "mine", tmp_path)
    assert str(caught.value).startswith("mine: ") and message in str(caught.value), str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_batch_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"one image \(1, c, h, w\), got \(4, 1, 8, 8\)"):
        export(FORMS["original"](), IMAGE.expand(4, -1, -1, -1), "mine", tmp_path)


def test_wrong_outputs_are_not_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = module._convert

    def damaged(traced: object, shape: torch.Size, name: str, folder: Path) -> None:
        convert(traced, shape, name, folder)
        weights = np.fromfile(folder / "model.bin", np.float32)
        weights[-5] += 0.1
        weights.tofile(folder / "model.bin")

    monkeypatch.setattr(module, "_convert", damaged)
    with pytest.raises(ExportError, match="outputs in ncnn differ from PyTorch's by"):
        export(FORMS["original"](), IMAGE, "mine", tmp_path)
    assert not list(tmp_path.iterdir())


def test_difference_sees_shapes_and_infinities() -> None:
    expected = np.array([1.0, -4.0], np.float32)
    assert difference(expected + np.float32(0.04), expected) == pytest.approx(0.01, rel=1e-4)
    assert difference(expected[:1], expected) == np.inf
    assert difference(np.array([1.0, np.nan], np.float32), expected) == np.inf


def test_every_layer_of_the_runner_is_known_to_ncnn() -> None:
    import ncnn

    assert [name for name in sorted(LAYERS) if ncnn.layer_to_index(name) < 0] == []
