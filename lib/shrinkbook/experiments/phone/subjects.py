"""The networks that are measured, original first, by the names of the papers' tables."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from shrinkbook import nets
from shrinkbook.evidence import store
from shrinkbook.experiments.head_to_head.arms import HALF as HALF_GONE
from shrinkbook.experiments.head_to_head.arms import QUARTER as QUARTER_LEFT
from shrinkbook.experiments.head_to_head.forms import built
from shrinkbook.experiments.kim2016.cost import ORIGINALS, RANKS, compressed
from shrinkbook.experiments.li2017.models import INPUTS, PRUNED, by_stage
from shrinkbook.experiments.networks import NETS
from shrinkbook.measure.blocks import Subject
from shrinkbook.measure.cost import cost
from shrinkbook.measure.export import export
from shrinkbook.methods import filter_pruning, kernel_clustering, lccl, tucker
from shrinkbook.nets import initialize

Named = dict[str, tuple[nn.Module, tuple[int, ...]]]
CIFAR = (3, 32, 32)
HALF = "ResNet-20, half of each first convolution"


def named(net: str, seed: int) -> Named:
    """Networks of a set by name, each with the shape of its input; weights do not matter for time, so they are random.

    Raises:
        ValueError: an unknown set.
    """
    if net not in _SETS:
        raise ValueError(f"unknown set {net!r}; there are {', '.join(_SETS)}")
    return _SETS[net](net, seed)


def subject(name: str, module: nn.Module, shape: tuple[int, ...], seed: int, exported: bool) -> Subject:
    """A network ready to be measured, with its files if there is something to make them."""
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
    counted = cost(module, shape).mac
    files = export(module, image, name, store.build_dir() / "phone" / "models") if exported else None
    return Subject(name, module.eval(), image, counted, files)


def _resnet20(net: str, seed: int) -> Named:
    base = initialize(NETS["ResNet-20"](), seed)
    return {net: (base, CIFAR), HALF: (_halved(base), CIFAR)}


def _forms(net: str, seed: int) -> Named:
    base = initialize(NETS["ResNet-20"](), seed)
    ranks = {
        name: (module.in_channels // 2, module.out_channels // 2)
        for name, module in base.named_modules()
        if isinstance(module, nn.Conv2d) and module.in_channels >= 16
    }
    forms: dict[str, nn.Module] = {
        "ResNet-20": base,
        HALF: _halved(base),
        "ResNet-20, Tucker-2 at half ranks": tucker.compress(base, ranks, input_shape=CIFAR)[0],
        "ResNet-20, 64 centroids as dense kernels": kernel_clustering.compress(base, 64, max_iterations=5, seed=seed)[
            0
        ],
    }
    return {name: (module, CIFAR) for name, module in forms.items()}


def _head_to_head(net: str, seed: int) -> Named:
    """The forms of the head-to-head that are plain smaller networks, by the names of its arms."""
    base = initialize(NETS["ResNet-20"](), seed).eval()
    chosen = ("pruned 50", "tucker 50", "pruned 25", "tucker 25", "pruned+tucker 25")
    forms = {arm.name: form for arm, _, form in built(base, CIFAR, (HALF_GONE, QUARTER_LEFT), 64) if arm.name in chosen}
    return {"original": (base, CIFAR), **{name: (_settled(form, CIFAR, seed), CIFAR) for name, form in forms.items()}}


def _lccl(net: str, seed: int) -> Named:
    base = initialize(NETS["pre-activation ResNet-20"](), seed)
    gated = lccl.add_lccl(base)
    for gate in lccl.gates(gated).values():  # near 1: a product of many random gates would amplify rounding errors
        assert isinstance(gate.norm, nn.BatchNorm2d)
        nn.init.constant_(gate.norm.weight, 0.1)
        nn.init.constant_(gate.norm.bias, 1.0)
    names = ("pre-activation ResNet-20", "pre-activation ResNet-20 with LCCLs, computed densely")
    return {name: (_settled(module, CIFAR, seed), CIFAR) for name, module in zip(names, (base, gated), strict=True)}


def _li2017(net: str, seed: int) -> Named:
    plain = net.removesuffix(" for CIFAR")
    base, shape = initialize(NETS[plain](), seed), INPUTS[plain]
    pruned = {
        name: (filter_pruning.compress(base, one.ratios)[0], shape)
        for name, one in PRUNED.items()
        if one.net == plain and not name.endswith("-C")
    }
    return {plain: (base, shape), **pruned}


def kim2016(net: str, seed: int) -> tuple[nn.Module, nn.Module, tucker.Report]:
    """A network of table 1 and its compressed form with random weights, and the report on the latter."""
    ranks = "printed" if net in ("AlexNet", "VGG-16") else "common share"
    model, smaller, report = compressed(net, RANKS[ranks](net))
    filled = [initialize(one.to_empty(device="cpu"), seed).eval() for one in (model, smaller)]
    return filled[0], filled[1], report


def _kim2016(net: str, seed: int) -> Named:
    model, smaller, _ = kim2016(net, seed)
    shape = (3, ORIGINALS[net][1], ORIGINALS[net][1])
    return {net: (model, shape), f"{net}*": (smaller, shape)}


def _mobilenet(net: str, seed: int) -> Named:
    """MobileNetV1 and its uniformly narrower forms, the baselines of Liu et al. 2019, table 1."""
    widths = {net: 1.0, **{f"{net}, width {width}": width for width in (0.75, 0.5, 0.25)}}
    shape = (3, 224, 224)  # settled, because random weights leave nothing of an image after 27 layers to be compared
    return {
        name: (_settled(initialize(nets.mobilenet_v1(width), seed), shape, seed), shape)
        for name, width in widths.items()
    }


def part(module: nn.Module, seen: Tensor) -> tuple[nn.Module, tuple[int, ...]]:
    """A part of a network and the shape of what it reads, as an image; linear layers read a flattened one."""
    if seen.ndim == 2:
        return nn.Sequential(nn.Flatten(1), module), (seen.shape[1], 1, 1)
    return module, tuple(seen.shape[1:])


def _halved(base: nn.Module) -> nn.Module:
    return filter_pruning.compress(base, by_stage("ResNet-20", (0.5, 0.5, 0.5)))[0]


def _settled(model: nn.Module, shape: tuple[int, ...], seed: int) -> nn.Module:
    """Batch norms have seen one batch of noise: what many random layers do to a number would overflow or vanish."""
    norms: list[Any] = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, *shape, generator=torch.Generator().manual_seed(seed)))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


_SETS: dict[str, Callable[[str, int], Named]] = {
    "ResNet-20": _resnet20,
    "forms of ResNet-20": _forms,
    "head to head": _head_to_head,
    "LCCL": _lccl,
    **dict.fromkeys(("VGG-16 for CIFAR", "ResNet-56", "ResNet-34"), _li2017),
    "MobileNetV1": _mobilenet,
    **dict.fromkeys(ORIGINALS, _kim2016),
}
