"""The code of the book's page on networks of one's own, and of the README: as it stands, block after block."""

import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from plain_nets import PlainMobileNetV2, PlainResNet
from torch import nn

from shrinkbook import notebooks
from shrinkbook.evidence import store
from shrinkbook.measure.cost import cost, weight_count
from shrinkbook.methods import (
    clustered_bytes,
    congruent_distillation,
    dafl,
    dafl_training,
    kernel_clustering,
    lccl,
    lccl_saving,
    metapruning,
    tucker,
)

PAGES = {"page": notebooks.folder() / "book" / "own_network.md", "README": store.root() / "README.md"}
SHAPE = (3, 32, 32)


def blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGES[name].read_text(encoding="utf-8"), re.M | re.S)


def small_torchvision() -> ModuleType:
    """Networks of ours with the structure and names of torchvision's, narrow."""
    module = ModuleType("torchvision")
    module.models = SimpleNamespace(
        resnet18=lambda num_classes=1000: PlainResNet(widths=(10, 12, 16, 32), classes=num_classes),
        mobilenet_v2=lambda num_classes=1000: PlainMobileNetV2(num_classes),
    )
    return module


@pytest.mark.parametrize("name", PAGES)
def test_blocks_run_on_networks_with_the_same_structure(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision", small_torchvision())
    run(name, capsys)


@pytest.mark.parametrize("name", PAGES)
def test_blocks_run_with_torchvision(name, capsys):
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # without its operators it raises the second
        pytest.skip(f"torchvision does not import here: {error}")
    run(name, capsys)


def run(name: str, capsys) -> None:
    namespace: dict = {}
    found = blocks(name)
    assert found
    for block in found:
        torch.manual_seed(0)
        exec(compile(block, PAGES[name].name, "exec"), namespace)
        body = [line for line in block.splitlines() if line and not line.startswith(("import", "from"))]
        if block is not found[0] or name == "README":
            assert len(body) <= 5, block
            assert capsys.readouterr().out.strip(), block
    report = namespace["report"]
    after = report.bytes_after if hasattr(report, "bytes_after") else report.weights_after
    assert after < (report.bytes if hasattr(report, "bytes") else report.weights)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return PlainResNet((1, 1), (12, 16), classes=4).eval()


def test_reports_of_all_methods_say_what_the_networks_cost():
    """The names that they have in common, against counting both networks."""
    model = resnet()
    before = cost(model, SHAPE)

    smaller, report = tucker.compress(model, {"layer1.0.conv1": (4, 4), "fc": 2}, input_shape=SHAPE)
    after = cost(smaller, SHAPE)
    assert (report.mac, report.mac_after) == (before.mac, after.mac)
    assert (report.weights, report.weights_after) == (before.weights, after.weights)

    gated, report = lccl_saving.compress(model, SHAPE)
    after = cost(gated, SHAPE)
    assert (report.mac, report.mac_after) == (before.mac, after.mac), "nothing is skipped without images"
    assert (report.weights, report.weights_after) == (before.weights, after.weights)

    clustered, report = kernel_clustering.compress(model, 32, sizes={7: 8}, max_iterations=3)
    convolutions = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Conv2d))
    assert report.bytes == 4 * convolutions
    parts = clustered_bytes.sizes(clustered_bytes.to_bytes(clustered))
    written = sum(parts[name] for name in ("codebooks", "indices", "masks", "scales", "pointwise"))
    assert report.bytes_after == written < report.bytes


def test_gating_trains_measures_and_leaves_the_network_alone():
    model, seen = resnet().train(), []
    x = torch.randn(8, *SHAPE)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def train(network: nn.Module) -> None:
        seen.append(list(lccl.gates(network)))
        network.train()(x)

    gated, report = lccl_saving.compress(model, SHAPE, "first", train=train, images=x.split(3))
    assert seen == [["layer1.0.conv1", "layer2.0.conv1"]] and gated.training
    want = {path: layer.mean for path, layer in lccl_saving.sparsity(gated.eval(), [x]).items()}
    assert {layer.name: layer.zeros for layer in report.layers} == pytest.approx(want)
    assert 0 < report.layers[0].zeros < 1
    assert report.mac_after == pytest.approx(report.mac * (1 - report.removed))
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_widths_of_a_network_without_a_word_are_searched():
    model = PlainMobileNetV2()
    settings = metapruning.Evolution(4, 1, 1, generations=2, parents=2)
    smaller, report = metapruning.compress(model, 0.6, SHAPE, lambda net: net(torch.randn(4, *SHAPE)), lambda net: 0.0,
                                           settings=settings)  # fmt: skip
    assert cost(smaller, SHAPE).mac == report.mac_after <= 0.6 * report.mac
    assert (report.weights, report.weights_after) == (weight_count(model), weight_count(smaller))
    assert report.widths["features.0.0"] == smaller.features[0][0].out_channels


def students() -> tuple[nn.Module, nn.Module]:
    teacher = resnet().train()
    torch.manual_seed(1)
    return teacher, PlainResNet((1,), (8,), classes=4)


def check_student(teacher: nn.Module, state: dict, student: nn.Module, report, names: set[str]) -> None:
    before, after = cost(teacher, SHAPE), cost(student, SHAPE)
    assert (report.mac, report.mac_after) == (before.mac, after.mac)
    assert (report.weights, report.weights_after) == (before.weights, after.weights)
    assert report.history.keys() == names and {len(values) for values in report.history.values()} == {30}
    assert report.history["distillation"][-1] < report.history["distillation"][0]
    assert teacher.training and all(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in teacher.state_dict().items())


def test_a_student_learns_by_congruence():
    teacher, student = students()
    state = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    batches = [(torch.randn(8, *SHAPE), torch.tensor([0, 1, 2, 3] * 2))] * 30
    optimiser = torch.optim.SGD(student.parameters(), lr=0.02)
    trained, report = congruent_distillation.compress(teacher, student, batches, optimiser, beta=1.0)
    assert trained is student and report.images == 240
    check_student(teacher, state, student, report, {"distillation", "congruence"})
    with pytest.raises(ValueError, match="no batch of images and labels"):
        congruent_distillation.compress(teacher, student, [], optimiser, beta=1.0)


def test_a_student_learns_without_data():
    teacher, student = students()
    state = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    generator = dafl.Generator(side=32, channels=3, latent=10, width=8)
    optimisers = torch.optim.Adam(generator.parameters(), 1e-3), torch.optim.SGD(student.parameters(), lr=0.05)
    trained, report = dafl_training.compress(teacher, student, "fc", generator, optimisers, steps=30, batch=8)
    assert trained is student and report.images == 240
    check_student(teacher, state, student, report, {"distillation", "one_hot", "entropy", "activation", "mean_entropy"})
    with pytest.raises(ValueError, match="0 steps train nothing"):
        dafl_training.compress(teacher, student, "fc", generator, optimisers, steps=0)
