"""What low-cost collaborative layers save (Dong et al. 2017): zeros measured on images, operations counted."""

import copy
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from shrinkbook.measure.cost import cost, weight_count
from shrinkbook.methods.lccl import LCCL, Kind, Place, add_lccl, gates, watching


@dataclass(frozen=True)
class Sparsity:
    """How much of one gate is 0 over some images.

    Args:
        shares: (images,) share of zeros in each image's map, in double precision.
        channels: (1 or T,) share of zeros in each channel over all images.
    """

    shares: Tensor
    channels: Tensor

    @property
    def mean(self) -> float:
        """z, the mean share over the images."""
        return float(self.shares.mean())

    @property
    def spread(self) -> tuple[float, float]:
        """10 % and 90 % quantile over the images."""
        low, high = torch.quantile(self.shares, torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
        return low, high

    @property
    def idle(self) -> str:
        """``closed`` if everything was 0 on these images, ``open`` if nothing was, else empty.

        With one map for each output, closed ones among others are counted: ``3 of 16 closed``.
        """
        closed = int((self.channels == 1).sum())
        if 0 < closed < len(self.channels):
            return f"{closed} of {len(self.channels)} closed"
        return "closed" if closed else "open" if not self.channels.any() else ""


def sparsity(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Sparsity]:
    """The zeros of every gate over batches of images (N, C, H, W), by path.

    Raises:
        ValueError: the model is in training mode or has no gates, there are no images, a gate is not finite.
    """
    if model.training:
        raise ValueError("sparsity: the model is in training mode, where gates depend on the batch; call eval() first")
    return _zeros(model, batches)


def _zeros(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Sparsity]:
    """:func:`sparsity` in the model's own mode."""
    shares: dict[str, list[Tensor]] = {path: [] for path in gates(model)}
    channels: dict[str, list[Tensor]] = {path: [] for path in shares}

    def see(path: str, gate: Tensor) -> None:
        if not torch.isfinite(gate).all():
            raise ValueError(f"layer {path}: the gate holds NaN or infinity; go back to a state before it diverged")
        zeros = (gate == 0).double().mean((2, 3)).cpu()
        shares[path].append(zeros.mean(1))
        channels[path].append(zeros)

    images = 0
    with watching(model, see):
        for batch in batches:
            model(batch)
            images += len(batch)
    if not images:
        raise ValueError("sparsity: no images; give at least one batch")
    return {path: Sparsity(torch.cat(shares[path]), torch.cat(channels[path]).mean(0)) for path in shares}


def idle_gates(measured: Mapping[str, Sparsity]) -> dict[str, str]:
    """The layers of :func:`sparsity` whose gate decides nothing, and how: ``closed``, ``open`` or in part closed.

    Closed under running statistics is not closed for good: in training mode the statistics are the batch's, see
    :func:`dead_gates`.
    """
    return {path: layer.idle for path, layer in measured.items() if layer.idle}


def dead_gates(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, str]:
    """The layers whose gate is closed in training mode too, wholly or in part: no gradient of a loss reaches it there.

    Args:
        model: not changed, nor are its running statistics.
        batches: (N, C, H, W), of the size that it trains with.

    Raises:
        ValueError: as :func:`sparsity`, in either mode.
    """
    measured = _zeros(copy.deepcopy(model).train(), batches)
    return {path: how for path, how in idle_gates(measured).items() if how != "open"}


@dataclass(frozen=True)
class LayerSaving:
    """One gated convolution.

    Args:
        mac: multiply-accumulates of the convolution, H W k^2 C T, for one image.
        gate_mac: of its gate, H W k'^2 C T'.
        gate_mac_published: what the authors' code takes for it, MAC / C k'^2 / k^2: right only where C = T. On a grid
            g that is divided by g^2 (by H W where one value stands for the whole map), and pooling and enlargement
            cost C H W and T H W; they are free in ``gate_mac``.
        zeros: z, the mean share of zeros.
        maps: T', 1 or one for each output.
    """

    name: str
    mac: int
    gate_mac: int
    gate_mac_published: float
    zeros: float
    maps: int = 1

    @property
    def break_even(self) -> float:
        """The share of zeros from which the gate pays, (k'^2 T') / (k^2 T)."""
        return self.gate_mac / self.mac

    @property
    def removed(self) -> float:
        """Share of the layer's operations saved, z - (k'^2 T') / (k^2 T); negative if the gate costs more."""
        return self.zeros - self.break_even


@dataclass(frozen=True)
class Saving:
    """The gated convolutions, and of the whole network the multiply-accumulates of the plain one and the weights.

    Args:
        weights, weights_after: of convolutions and linear layers without the gates, and with them.
    """

    layers: tuple[LayerSaving, ...]
    mac: int
    weights: int
    weights_after: int

    @property
    def mac_after(self) -> float:
        """Multiply-accumulates left, gates included, for a mean image."""
        return self.mac - self._saved

    @property
    def removed(self) -> float:
        """Share of the network's operations saved: the layers' shares, weighted by their MAC."""
        return self._saved / self.mac

    @property
    def removed_of_gated(self) -> float:
        """The same among the gated convolutions only, stem, shortcuts and linear layer left out."""
        return self._saved / sum(layer.mac for layer in self.layers)

    @property
    def removed_published(self) -> float | None:
        """:attr:`removed_of_gated` as the authors' code prints it; None where a gate has more than one map."""
        if any(layer.maps > 1 for layer in self.layers):
            return None
        saved = sum(layer.zeros * layer.mac - layer.gate_mac_published for layer in self.layers)
        return saved / sum(layer.mac for layer in self.layers)

    @property
    def faster(self) -> float:
        """The other reading of a saving: operations before over operations left, less 1."""
        return self.mac / self.mac_after - 1

    @property
    def _saved(self) -> float:
        return sum(layer.removed * layer.mac for layer in self.layers)


def saving(model: nn.Module, input_shape: Sequence[int], zeros: Mapping[str, float]) -> Saving:
    """What the gates of a network save at these shares of zeros; batch norm, ReLU and the product are free.

    Args:
        model: with gates.
        input_shape: (channels, height, width) of one image.
        zeros: mean share of zeros by path, for every gate.

    Raises:
        ValueError: a gate without a share, a share without a gate or outside 0 to 1.
    """
    found = gates(model)
    if "" in found:
        raise ValueError("saving: the model is a single gated layer; give the network that holds it")
    if zeros.keys() != found.keys():
        raise ValueError(f"saving: shares of zeros for {sorted(zeros)}, gates are {sorted(found)}; give one a gate")
    macs = {layer.name: layer.mac for layer in cost(model, input_shape).layers}
    layers = []
    for name, gate in found.items():
        if not 0 <= zeros[name] <= 1:
            raise ValueError(f"saving: layer {name} has a share of zeros of {zeros[name]}; give 0 to 1")
        main = model.get_submodule(f"{name}.main")
        assert isinstance(main, nn.Conv2d)
        mac = macs[f"{name}.main"]
        published = _published(main, gate, mac)
        layers.append(LayerSaving(name, mac, macs[f"{name}.gate.conv"], published, zeros[name], gate.conv.out_channels))
    plain = sum(macs.values()) - sum(layer.gate_mac for layer in layers)
    added = sum(gate.conv.weight.numel() for gate in found.values())
    return Saving(tuple(layers), plain, weight_count(model) - added, weight_count(model))


def _published(main: nn.Conv2d, gate: LCCL, mac: int) -> float:
    """The cost of a gate in ``count_sparsity`` of the authors' train.lua."""
    pixels = math.prod(main.kernel_size)
    own = mac / main.in_channels * math.prod(gate.conv.kernel_size) / pixels
    if gate.grid == 1:
        return own
    positions = mac // (pixels * main.in_channels * main.out_channels)
    return own / (gate.grid**2 or positions) + (main.in_channels + main.out_channels) * positions


def compress(
    model: nn.Module,
    input_shape: Sequence[int],
    layers: Place | Collection[str] = "both",
    kind: Kind = "kxkxCx1",
    *,
    train: Callable[[nn.Module], object] | None = None,
    images: Iterable[Tensor] = (),
    seed: int = 0,
) -> tuple[nn.Module, Saving]:
    """Gate convolutions of a network, train them with it, and count what they save on images.

    Args:
        model: any network; copied. Fresh gates change what it computes, so that it has to be trained with them.
        input_shape: (channels, height, width) of one image.
        layers, kind, seed: of :func:`shrinkbook.methods.lccl.add_lccl`.
        train: trains the gated network in place by any loop.
        images: batches (N, C, H, W), none to count the gates' own cost, where nothing is skipped.

    Returns:
        The gated network, in the model's mode, and the report; :mod:`shrinkbook.methods.lccl_skip` runs it skipping.

    Raises:
        ValueError: as :func:`shrinkbook.methods.lccl.add_lccl`; a gate that is not finite.
    """
    gated = add_lccl(model, layers, kind, seed=seed)
    if train is not None:
        train(gated)
    zeros = dict.fromkeys(gates(gated), 0.0)
    batches = iter(images)
    if (first := next(batches, None)) is not None:
        zeros = {path: found.mean for path, found in sparsity(gated.eval(), chain([first], batches)).items()}
    return gated.train(model.training), saving(gated, input_shape, zeros)


def overhead(kind: Kind, kernel_size: int, out_channels: int) -> float:
    """(k'^2 T') / (k^2 T), the gate's cost as a share of its convolution: 1/T, 1/k^2 or 1/(k^2 T) without a grid."""
    return {"kxkxCx1": 1 / out_channels, "1x1xCxT": 1 / kernel_size**2, "1x1xCx1": 1 / kernel_size**2 / out_channels}[
        kind
    ]


def share_removed(printed: float, reading: Literal["removed", "faster"]) -> float:
    """The share of operations saved that a printed "speed-up" of so many percent means.

    Args:
        printed: 34.6 for "34.6 %".
        reading: ``removed``, that share itself; ``faster``, 1.346 times as fast: 1 - 1 / 1.346 = 0.257.
    """
    return printed / 100 if reading == "removed" else 1 - 1 / (1 + printed / 100)
