"""The architectures: printed costs, option-A shortcuts, starting weights."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shrinkbook import nets
from shrinkbook.measure.cost import cost, parameter_count, state_bytes


@pytest.mark.parametrize(
    ("build", "side", "mac", "weights", "parameters"),
    [
        (nets.vgg16, 32, 313_463_808, 14_977_728, 14_991_946),
        (lambda: nets.resnet_cifar(56), 32, 125_485_696, 848_944, 853_018),
        (lambda: nets.resnet_cifar(110), 32, 252_887_680, 1_719_856, None),
        (nets.resnet34, 224, 3_663_761_408, None, 21_797_672),
    ],
)
def test_costs_at_full_size(build, side, mac, weights, parameters):
    model = build()
    found = cost(model, (3, side, side))
    assert found.mac == mac
    assert weights in (None, found.weights)
    assert parameters in (None, parameter_count(model))


def test_resnet34_without_projections_is_the_papers_figure():
    found = cost(nets.resnet34(), (3, 224, 224)).without("shortcut")
    assert (found.mac, found.weights) == (3_644_493_824, 21_607_616)


def test_cost_agrees_with_pytorchs_own_counter():
    model = nets.resnet_cifar(20).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    assert cost(model, (3, 32, 32)).mac * 2 == counter.get_total_flops()


def test_cost_sees_layers_that_do_not_fit_and_leaves_the_network_alone():
    net = nets.resnet_cifar(8)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert cost(net, (3, 32, 32)) == cost(net, (3, 32, 32)) and net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net(torch.zeros(2, 3, 32, 32)).abs().sum() > 0  # its batch norms and linear layer still compute
    narrow = nets.resnet_cifar(8)
    narrow.bn1 = torch.nn.BatchNorm2d(15)
    with pytest.raises(RuntimeError, match="reads 15 channels gets 16"):
        cost(narrow, (3, 32, 32))
    narrow.bn1, narrow.linear = torch.nn.BatchNorm2d(16), torch.nn.Linear(63, 10)
    with pytest.raises(RuntimeError, match="reads 63 channels gets 64"):
        cost(narrow, (3, 32, 32))


def test_a_skeleton_has_all_shapes_and_no_numbers():
    net = nets.resnet_cifar(8).double().eval()
    net.linear.weight.requires_grad_(False)
    net.tied = net.linear
    bare = nets.skeleton(net)
    assert type(bare) is type(net) and not bare.training and bare.tied is bare.linear
    assert [(n, t.shape, t.dtype, t.requires_grad) for n, t in bare.state_dict(keep_vars=True).items()] == [
        (n, t.shape, t.dtype, t.requires_grad) for n, t in net.state_dict(keep_vars=True).items()
    ]
    assert all(tensor.is_meta for tensor in bare.state_dict().values())
    assert isinstance(bare.linear.weight, torch.nn.Parameter) and not any(t.is_meta for t in net.state_dict().values())


def test_state_bytes_is_what_a_checkpoint_holds():
    model = nets.resnet_cifar(20)
    floats = sum(t.numel() for t in model.state_dict().values() if t.dtype == torch.float32)
    counters = sum(t.numel() for t in model.state_dict().values() if t.dtype == torch.int64)
    assert state_bytes(model) == 4 * floats + 8 * counters


def test_padded_shortcut_keeps_maps_and_passes_gradient():
    from shrinkbook.nets.resnet import PaddedShortcut

    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    y = PaddedShortcut(16, 32, 2)(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()
    y.sum().backward()
    expected = torch.zeros(8, 8)
    expected[::2, ::2] = 1
    assert torch.equal(x.grad, expected.expand(2, 16, 8, 8))


def test_initialize_repeats_and_leaves_the_global_state_alone():
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    one, two = nets.initialize(nets.resnet_cifar(20), 3), None
    torch.random.set_rng_state(state)
    two = nets.initialize(nets.resnet_cifar(20), 3)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    other = nets.initialize(nets.resnet_cifar(20), 4)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)
    before = torch.random.get_rng_state()
    nets.initialize(two, 5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert abs(one.layer3[2].conv2.weight.std().item() / (2 / (9 * 64)) ** 0.5 - 1) < 0.05


def test_numbering_of_the_paper():
    couplings = nets.resnet_cifar(56).couplings()
    assert list(couplings) == [f"conv_{i}" for i in range(2, 55, 2)]
    assert [couplings[f"conv_{i}"].stage for i in (18, 20, 36, 38)] == [1, 2, 2, 3]
    assert list(nets.vgg16().couplings()) == [f"conv_{i}" for i in range(1, 14)]
    names = list(nets.resnet34().couplings())
    assert "stage_1" not in names and {"stage_2", "stage_3", "stage_4", "conv_32"} <= set(names)


def test_depths_and_sizes_that_do_not_exist():
    with pytest.raises(ValueError, match="depth 57 is not 6n"):
        nets.resnet_cifar(57)
    with pytest.raises(ValueError, match="vanishes"):
        nets.VGG(((8,), (8,), (8,), (8,)), hidden=8, side=8)
