"""Replayed steps against steps that are called; the comparison needs a GPU and is skipped without one."""

import pytest
import torch
from torch import Tensor, nn

from shrinkbook.experiments.networks import NETS
from shrinkbook.methods.lccl import add_lccl
from shrinkbook.nets import initialize
from shrinkbook.training.data import load
from shrinkbook.training.fit import Fit, fit
from shrinkbook.training.recipe import Recipe
from shrinkbook.training.replay import EAGER, Replay

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs")


def gated() -> nn.Module:
    return add_lccl(initialize(NETS["digits pre-activation ResNet"](), 0), seed=1000)


def trained(model: nn.Module, device: str, replay: bool, dtype: str = "float32") -> Fit:
    """Three epochs on digits: two learning rates and a warm-up, batches of 60 and a last one of 40."""
    recipe = Recipe(3, 60, 0.05, milestones=(0.7,), warmup=0.2, augment=True, dtype=dtype, nesterov=True)
    return fit(model, load("digits"), recipe, 0, device, replay=replay)


def test_a_processor_calls_the_step() -> None:
    seen: list[float] = []

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(images.sum().item())  # a GPU could not record this
        return images, labels

    replayed = Replay(step, tuple)
    for number in range(2 * EAGER):
        images = torch.full((2, 1), float(number))
        assert replayed(images, torch.zeros(2))[0] is images
    assert seen == [2.0 * number for number in range(2 * EAGER)]


@GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replayed_training_ends_where_called_training_does(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    called, replayed = gated(), gated()
    first, second = trained(called, "cuda", False, dtype), trained(replayed, "cuda", True, dtype)
    losses = [[row["loss"] for row in one.history] for one in (first, second)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for (name, one), two in zip(called.state_dict().items(), replayed.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3, msg=name)


@GPU
def test_a_step_is_recorded_once_for_each_shape_and_rate() -> None:
    calls: list[tuple[int, float]] = []
    rate = [1.0]
    weight = torch.zeros(1, device="cuda")

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        calls.append((len(images), rate[0]))
        weight.add_(rate[0] * images.sum())
        return weight.clone(), labels

    replayed = Replay(step, lambda: rate[0])
    total = 0.0
    for value in (1.0, 0.5):
        rate[0] = value
        for number in range(10):
            for size in (2, 3):
                images = torch.full((size, 1), float(number), device="cuda")
                total += value * size * number
                found, _ = replayed(images, torch.zeros(size, device="cuda"))
                assert found.item() == total
    assert len(calls) == 2 * 2 * (EAGER + 1)


@GPU
def test_a_step_that_reads_a_value_back_is_refused() -> None:
    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images * images.sum().item(), labels

    replayed, ones = Replay(step, tuple), torch.ones(2, device="cuda")
    for _ in range(EAGER):
        replayed(ones, ones)
    with pytest.raises(RuntimeError):
        replayed(ones, ones)
