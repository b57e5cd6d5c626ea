"""Images per second of this library's training step beside the usual loop: `python -m shrinkbook.bench.throughput`.

The usual loop is what most repositories run on CIFAR: a Dataset of PIL images with RandomCrop(32, padding=4),
RandomHorizontalFlip, ToTensor and Normalize, a DataLoader with two workers, float32, contiguous tensors. Ours takes
the same images, batch, network, loss and optimiser: resident uint8 data, vectorised augmentation, channels-last, fused
SGD, and bfloat16 autocast where the processor has units for it. The two alternate within one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from shrinkbook.bench import write
from shrinkbook.nets.resnet import resnet_cifar
from shrinkbook.nets.vgg import vgg16
from shrinkbook.training.data import STORED, DataError, DataSet, load
from shrinkbook.training.fit import PADDING, Recipe, autocast_dtype, batches, optimiser_of, train_step

ROUNDS = 5
NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: resnet_cifar(20),
    "resnet56": lambda: resnet_cifar(56),
    "resnet110": lambda: resnet_cifar(110),
    "vgg16": vgg16,
}


class UsualImages(Dataset[tuple[Tensor, int]]):
    """torchvision's CIFAR-10 with the four usual transforms, written out, so that the bench needs no torchvision.

    The same seed gives the same tensors as torchvision's own transforms, at about half of their time.
    """

    def __init__(self, data: DataSet) -> None:
        self.images = np.ascontiguousarray(data.x_train.permute(0, 2, 3, 1).numpy())
        self.labels = data.y_train.tolist()
        self.mean, self.std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = ImageOps.expand(Image.fromarray(self.images[index]), border=PADDING, fill=0)
        top, left = (int(torch.randint(0, 2 * PADDING + 1, (1,))) for _ in range(2))
        image = image.crop((left, top, left + 32, top + 32))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return tensor.sub_(self.mean).div_(self.std), self.labels[index]


def usual_steps(model: nn.Module, data: DataSet, recipe: Recipe, device: torch.device) -> Iterator[int]:
    """Train as usual, for ever; yields the number of images after every step."""
    model.to(device).train()
    optimiser = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    loader = DataLoader(
        UsualImages(data),
        recipe.batch,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    while True:
        for images, labels in loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
            yield len(labels)


def our_steps(model: nn.Module, data: DataSet, recipe: Recipe, device: torch.device) -> Iterator[int]:
    """Train with the parts that `fit` is made of, for ever; yields the number of images after every step."""
    data = data.to(device)
    model.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = optimiser_of(model, recipe)
    network = cast(nn.Module, torch.compile(model)) if recipe.compile else model
    whole = len(data.y_train) - len(data.y_train) % recipe.batch  # as drop_last above
    for epoch in range(sys.maxsize):
        for images, labels in batches(data, torch.arange(whole), recipe, seed=0, epoch=epoch):
            train_step(network, optimiser, images, labels, recipe.dtype)
            yield len(labels)


def compare(net: str, data: DataSet, recipe: Recipe, seconds: float, device: torch.device) -> dict[str, Any]:
    """Both loops in alternating rounds.

    Returns:
        usual, ours: images per second, medians over the rounds; ratio: median of the rounds' own ratios, with low and
        high their extremes; rounds: every pair.
    """
    torch.manual_seed(0)
    loops = {
        "usual": usual_steps(NETS[net](), data, recipe, device),
        "ours": our_steps(NETS[net](), data, recipe, device),
    }
    for loop in loops.values():
        for _ in range(3):  # workers started, kernels chosen, graphs compiled
            next(loop)
    rounds: list[dict[str, float]] = []
    for turn in range(ROUNDS):
        order = list(loops) if turn % 2 == 0 else list(reversed(loops))
        rounds.append({name: _rate(loops[name], seconds / ROUNDS, device) for name in order})
    ratios = [pair["ours"] / pair["usual"] for pair in rounds]
    medians = {name: statistics.median(pair[name] for pair in rounds) for name in loops}
    return medians | {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "rounds": rounds}


def _rate(loop: Iterator[int], seconds: float, device: torch.device) -> float:
    images, started = 0, time.perf_counter()
    while images == 0 or time.perf_counter() - started < seconds:
        images += next(loop)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return images / (time.perf_counter() - started)


def bench_data() -> tuple[DataSet, str]:
    """CIFAR-10 where it is cached, else random images of its shape (the speed is the same), and which of the two."""
    try:
        return load("cifar10"), "CIFAR-10"
    except DataError:
        layout, stream = STORED["cifar10"], torch.Generator().manual_seed(0)
        images = torch.randint(256, (5000, 32, 32, 3), generator=stream, dtype=torch.uint8).permute(0, 3, 1, 2)
        labels = torch.randint(10, (5000,), generator=stream)
        assert layout.mean is not None and layout.std is not None  # CIFAR-10 has constants
        empty = images[:0], labels[:0]
        return DataSet(
            "random", images, labels, *empty, layout.mean, layout.std, 10, ""
        ), "random images, CIFAR-10 is not cached"


def main(arguments: list[str] | None = None) -> int:
    """Print the table, write build/bench-training.json."""
    parser = argparse.ArgumentParser(prog="python -m shrinkbook.bench.throughput", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--nets", default="resnet20,resnet56,vgg16", help=f"any of {', '.join(NETS)}")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each loop of each network")
    parser.add_argument("--compile", action="store_true", help="compile our step (worth it for long runs)")
    options = parser.parse_args(arguments)
    nets = options.nets.split(",")
    if unknown := [net for net in nets if net not in NETS]:
        parser.error(f"unknown network {unknown[0]!r}: choose from {', '.join(NETS)}")
    device, (data, source) = torch.device(options.device), bench_data()
    recipe = Recipe(
        epochs=1, batch=options.batch, lr=0.01, augment=True, dtype=autocast_dtype(device), compile=options.compile
    )
    setting = f"{device.type}, {torch.get_num_threads()} threads, batch {recipe.batch}, ours in {recipe.dtype}"
    print(f"training images per second on {source}; {setting}{', compiled' if recipe.compile else ''}")
    print(f"{'network':<12}{'usual':>10}{'ours':>10}{'ratio':>9}   (rounds)")
    results = {}
    for net in nets:
        results[net] = compare(net, data, recipe, options.seconds, device)
        r = results[net]
        print(
            f"{net:<12}{r['usual']:>10.1f}{r['ours']:>10.1f}{r['ratio']:>8.2f}x   ({r['low']:.2f}-{r['high']:.2f})",
            flush=True,
        )
    write(
        "training",
        {
            "setting": setting,
            "data": source,
            "compile": recipe.compile,
            "torch": torch.__version__,
            "networks": results,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
