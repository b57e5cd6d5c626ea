"""The PruningNet of Liu et al. 2019, section 3.2: a network that writes the weights of pruned networks.

For every convolution two fully connected layers turn the width ratios of its block into a full weight tensor, of which
a pruned network takes the first output and input channels. Trained with one random width vector a batch, it tells how
good a width vector is without training it. The control `SharedWeights` has one weight tensor for all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from shrinkbook.measure.cost import Change, weight_count
from shrinkbook.methods.metapruning_candidates import Constraint, Evolution, Search
from shrinkbook.methods.metapruning_search import evolve, possible
from shrinkbook.methods.metapruning_space import Genes, MacCount, SearchSpace, free_widths_of

Kind = Literal["generated", "shared"]


class WeightGenerator(nn.Module):
    """FC(n -> hidden), ReLU, FC(hidden -> the full weight), cropped to the channels asked for.

    Both layers have biases: with a dead first layer it degenerates to ordinary shared weights.

    Args:
        inputs: ratios that describe the block.
        conv: the full convolution; gives the shape.
        hidden: units between the layers; 32 in the authors' code, 64 for MobileNetV2's bottlenecks.
    """

    def __init__(self, inputs: int, conv: nn.Conv2d, hidden: int = 32) -> None:
        super().__init__()
        self.shape = tuple(conv.weight.shape)
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, math.prod(self.shape))

    def forward(self, code: Tensor, out_channels: int, in_channels: int) -> Tensor:
        """(inputs,) -> (out_channels, in_channels, k, k): only the rows that survive the crop are multiplied."""
        out, read, *kernel = self.shape
        area = math.prod(kernel)
        hidden = F.relu(self.first(code))
        rows = self.second.weight.view(out, read * area, -1)[:out_channels, : in_channels * area]
        bias = self.second.bias.view(out, read * area)[:out_channels, : in_channels * area]
        return (rows @ hidden + bias).view(out_channels, in_channels, *kernel)

    def in_full(self, code: Tensor, out_channels: int, in_channels: int) -> Tensor:
        """The same the slow way, as the authors do it: generate everything, then crop."""
        weight = self.second(F.relu(self.first(code))).view(self.shape)
        return weight[:out_channels, :in_channels]


class SharedWeights(nn.Module):
    """The control without a generator: one weight tensor, cropped; what the ratios say is not looked at.

    Args:
        conv: the full convolution; gives the shape.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(conv.weight.shape))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, code: Tensor, out_channels: int, in_channels: int) -> Tensor:
        """-> (out_channels, in_channels, k, k)."""
        return self.weight[:out_channels, :in_channels]


class PruningNet(nn.Module):
    """Weights for every network of a space, and batch norms of their own for every width of every position.

    Batch norms have no scale and shift, as in the authors' ResNet-50 and MobileNetV2. The classifier is an ordinary
    linear layer.

    Args:
        space: the networks.
        hidden: units between the two layers of each generator.
        kind: ``generated``, the paper's, or ``shared``, the control.

    Raises:
        ValueError: the network has parameters outside convolutions, batch norms and linear layers.
    """

    def __init__(self, space: SearchSpace, hidden: int = 32, kind: Kind = "generated") -> None:
        super().__init__()
        self.space = space
        self.weights = nn.ModuleDict()
        for path, conv in space.convolutions.items():
            inputs = len(space.codes[path])
            generated = kind == "generated" and inputs > 0  # a block of fixed widths has nothing to be told
            self.weights[_key(path)] = WeightGenerator(inputs, conv, hidden) if generated else SharedWeights(conv)
        self.norms = nn.ModuleDict()
        for path, name in space.norms.items():
            full = cast(nn.BatchNorm2d, space.skeleton.get_submodule(path)).num_features
            counts = {int(full * ratio) for ratio in space.ratios} if name else {full}
            bank = {str(count): nn.BatchNorm2d(count, affine=False) for count in sorted(counts)}
            self.norms[_key(path)] = nn.ModuleDict(bank)
        self.rest = nn.ModuleDict()
        for path, module in space.skeleton.named_modules():
            if isinstance(module, nn.Linear):
                self.rest[_key(path)] = nn.Linear(module.in_features, module.out_features, module.bias is not None)
            elif not isinstance(module, nn.Conv2d | nn.BatchNorm2d) and any(True for _ in module.parameters(False)):
                raise ValueError(f"{path} ({type(module).__name__}) has parameters that a PruningNet cannot write")
        bare = copy.deepcopy(space.skeleton)
        for path in space.norms:
            for part in ("weight", "bias"):
                bare.get_submodule(path).register_parameter(part, None)
        self._bare = (bare,)  # in a tuple: shapes on the meta device are no part of this module's own state
        self.register_buffer("_ratios", torch.tensor(space.ratios, dtype=torch.float32), persistent=False)

    def draw(self) -> Genes:
        """A random width vector, every gene uniform and independent (section 3.2), from PyTorch's global state."""
        return tuple(torch.randint(len(self.space.ratios), (len(self.space.names),)).tolist())

    def forward(self, x: Tensor, genes: Sequence[int] | None = None) -> Tensor:
        """Logits of the pruned network with these genes; in training, without genes, of a random one.

        Raises:
            ValueError: no genes in evaluation mode: there is no network to evaluate.
        """
        if genes is None:
            if not self.training:
                raise ValueError("a PruningNet in evaluation mode needs a width vector; draw() gives a random one")
            genes = self.draw()
        (bare,) = self._bare
        bare.train(self.training)
        widths = self.space.widths(genes)
        for path, conv in self.space.convolutions.items():
            if conv.groups > 1:
                cast(nn.Conv2d, bare.get_submodule(path)).groups = self.space.shape(path, widths)[0]
        return functional_call(bare, self._state(genes, widths), (x,))

    def _state(self, genes: Sequence[int], widths: Mapping[str, int]) -> dict[str, Tensor]:
        """What the plain network's own names stand for, but for the batch norms' scale and shift."""
        ratios = cast(Tensor, self._ratios)[list(genes)]
        state: dict[str, Tensor] = {}
        for path, conv in self.space.convolutions.items():
            out, read = self.space.shape(path, widths)
            code = ratios[list(self.space.codes[path])]
            state[f"{path}.weight"] = self.weights[_key(path)](code, out, read if conv.groups == 1 else 1)
        for path, name in self.space.norms.items():
            bank = cast(nn.ModuleDict, self.norms[_key(path)])
            norm = bank[str(widths[name])] if name else next(iter(bank.values()))
            state |= {f"{path}.{part}": tensor for part, tensor in norm.named_buffers()}
        for key, linear in self.rest.items():
            state |= {f"{key.replace('/', '.')}.{part}": tensor for part, tensor in linear.named_parameters()}
        return state

    @torch.no_grad()
    def candidate(self, genes: Sequence[int]) -> nn.Module:
        """The plain network with these genes, its weights written once: same outputs, no generator in it.

        Its batch-norm statistics were averaged over many other networks: measure them afresh before evaluating it.
        """
        widths = self.space.widths(genes)
        model = self.space.network(widths)
        state = {name: tensor.detach().clone() for name, tensor in self._state(genes, widths).items()}
        for path in self.space.norms:
            mean = state[f"{path}.running_mean"]
            state |= {f"{path}.weight": torch.ones_like(mean), f"{path}.bias": torch.zeros_like(mean)}
        model.load_state_dict(state, assign=True)
        return model.train(self.training)


@dataclass(frozen=True)
class Report(Change):
    """What `compress` found: the genes, widths by name, and the whole search; and what they cost."""

    genes: Genes
    widths: dict[str, int]
    search: Search


def compress(
    model: nn.Module,
    share: float,
    input_shape: Sequence[int],
    train: Callable[[PruningNet], object],
    accuracy: Callable[[nn.Module], float],
    space: SearchSpace | None = None,
    settings: Evolution | None = None,
    seed: int = 0,
) -> tuple[nn.Module, Report]:
    """Find the widths of a network within a share of its multiply-accumulates.

    Args:
        model: the full network, any that can be traced; it is not changed.
        share: of its multiply-accumulates that may be left, in (0, 1].
        input_shape: (channels, height, width) of one image.
        train: trains a PruningNet in place, in training mode, by any loop that feeds it batches.
        accuracy: of a plain network on images held out of training; measures its batch-norm statistics afresh first.
        space: what may be chosen; by default :func:`free_widths_of` the network at the paper's ratios.
        settings: of the evolutionary search.

    Returns:
        The best network found with its generated weights, which are a start for nothing: train it from scratch after
        `nets.initialize`, as the paper does. And what the search saw.

    Raises:
        ValueError: a share outside (0, 1], or one that no network meets.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share} of the multiply-accumulates must lie in (0, 1]")
    space = space or SearchSpace(model, free_widths_of(model))
    count = MacCount(space, input_shape)
    full = count((len(space.ratios) - 1,) * len(space.names))
    constraint = Constraint(count, share * full)
    possible(space, constraint, settings)
    pruning_net = PruningNet(space)
    train(pruning_net)
    pruning_net.eval()
    search = evolve(space, lambda genes: accuracy(pruning_net.candidate(genes)), constraint, settings, seed)
    genes = search.best.genes
    smaller = pruning_net.candidate(genes)
    counted = Change(full, count(genes), weight_count(model), weight_count(smaller))
    return smaller, Report(**asdict(counted), genes=genes, widths=space.widths(genes), search=search)


def _key(path: str) -> str:
    """A module path as a name that PyTorch allows for a child."""
    return path.replace(".", "/")
