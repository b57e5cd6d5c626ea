"""Steps that experiments of several papers take: train a baseline, load it, keep what a verdict over images needs."""

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shrinkbook.experiments.experiment import Context, Diverged
from shrinkbook.experiments.networks import NETS
from shrinkbook.experiments.run import load_parent
from shrinkbook.methods.lccl import LCCLConv2d, gates, with_zeros
from shrinkbook.methods.metapruning import PruningNet
from shrinkbook.methods.metapruning_space import Genes
from shrinkbook.nets import initialize
from shrinkbook.training.data import DataSet
from shrinkbook.training.evaluate import evaluate, recalibrate_batch_norm


def baseline(run: Context) -> None:
    """Train the network from scratch by the recipe in the settings."""
    run.load_data()
    model = initialize(NETS[run.config["net"]](), run.seed)
    run.train(model, run.recipe(run.config["recipe"]), "train", resume=run.unit.checkpoint, replay=True)
    run.stage("original", model)


def trained(run: Context) -> nn.Module:
    """The parent's network in evaluation mode, measured as stage ``original``.

    Raises:
        Diverged: its weights are no numbers.
    """
    run.load_data()
    model = load_parent(run, NETS[run.config["net"]]()).eval()
    run.stage("original", model)
    if not finite(model):
        raise Diverged(f"{run.unit.experiment.name} seed {run.seed}: its parent's network diverged, nothing to work on")
    return model


def finite(model: nn.Module) -> bool:
    """Whether all weights and statistics are numbers."""
    return all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def original(run: Context) -> float:
    """Accuracy of the unpruned network."""
    return run.stages["original"]["accuracy"]["last"]


def note_images(run: Context, path: str, correct: Sequence[Tensor], ratios: int = 1) -> None:
    """Keep right answers per image for the bootstrap over images.

    Args:
        path: ``group.name``, as claims name it.
        correct: one tensor a layer or network, (images,), right answers summed over ratios.
        ratios: how many pruned networks each of them sums over.
    """
    group, name = path.split(".")
    run.per_image.setdefault(group, {})[name] = packed(torch.stack(list(correct)).sum(0))
    run.measurements.setdefault("per_image_configs", {}).setdefault(group, {})[name] = len(correct) * ratios


def packed(counts: Tensor) -> str:
    """Right answers per image (uint8), compressed for a run file."""
    return base64.b64encode(zlib.compress(counts.to(torch.uint8).numpy().tobytes(), 9)).decode()


def rounded(values: Sequence[float], digits: int = 3) -> list[float]:
    """For run files: enough digits to draw and compare, not the noise behind them."""
    return [round(float(value), digits) for value in values]


@dataclass
class Proxy:
    """Accuracy of a width vector with generated weights: batch norms measured afresh, then held-out images."""

    net: PruningNet
    data: DataSet
    images: int
    device: str

    def __call__(self, genes: Genes) -> float:
        return self._measured_afresh(self.net.candidate(genes))

    def both(self, genes: Genes) -> tuple[float, float]:
        """The same before and after batch norms are measured."""
        candidate = self.net.candidate(genes)
        before = evaluate(candidate, self.data, self.device).accuracy
        return before, self._measured_afresh(candidate)

    def _measured_afresh(self, candidate: nn.Module) -> float:
        recalibrate_batch_norm(candidate, self.data, self.images, self.device)
        return evaluate(candidate, self.data, self.device).accuracy


def layer_inputs(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """What every module reads when the network sees ``image``, by module path."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        return lambda module, inputs: seen.__setitem__(name, inputs[0].detach().clone())

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in model.named_modules() if name]
    with torch.inference_mode():
        model(image)
    for handle in handles:
        handle.remove()
    return seen


def close(gated: nn.Module, x: Tensor, zeros: Mapping[str, float]) -> None:
    """Shift every gate of a network, first to last, until it is 0 at its share of the positions on these images."""
    for path in gates(gated):
        layer = gated.get_submodule(path)
        assert isinstance(layer, LCCLConv2d)
        gated.set_submodule(path, with_zeros(layer, layer_inputs(gated, x)[path], zeros[path]))
