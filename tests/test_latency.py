"""Latency: paired rounds, ratios that follow the work, modes left as they were."""

import time

import pytest
import torch
from torch import nn

from shrinkbook.bench.throughput import UsualImages
from shrinkbook.measure.latency import Timing, latency, saved
from shrinkbook.training.augment import crop_flip
from shrinkbook.training.data import DataSet


class Sleep(nn.Module):
    """A network that takes a known time and notes when it ran and in which mode."""

    def __init__(self, seconds, log):
        super().__init__()
        self.seconds, self.log = seconds, log

    def forward(self, x):
        self.log.append((self, self.training, torch.is_grad_enabled()))
        time.sleep(self.seconds)
        return x


def test_medians_follow_the_work_and_rounds_are_interleaved():
    log = []
    slow, fast = Sleep(0.012, log), Sleep(0.004, log)
    slow.train()
    timings = latency({"slow": slow, "fast": fast}, torch.zeros(1), runs=12, warmup=2, seed=3)
    assert 0.011 < timings["slow"].median < 0.03 and 0.0035 < timings["fast"].median < 0.011
    assert timings["fast"].low <= timings["fast"].median <= timings["fast"].high
    assert len(timings["slow"].raw) == timings["slow"].runs == 12
    assert len(log) == 2 * (12 + 2)
    rounds = [tuple(module.seconds for module, *_ in log[i : i + 2]) for i in range(0, len(log), 2)]
    assert set(rounds) == {(0.012, 0.004), (0.004, 0.012)}  # each model once a round, in both orders
    assert not any(training or gradients for _, training, gradients in log)
    assert slow.training
    assert 40 < saved(timings["slow"], timings["fast"]).median < 80


def test_saved_pairs_the_rounds():
    base = Timing(2.0, 1.0, 4.0, 3, [1.0, 2.0, 4.0])
    other = Timing(1.0, 0.5, 2.0, 3, [0.5, 1.0, 2.0])  # half the time in every round, although the machine drifts
    halved = saved(base, other)
    assert (halved.median, halved.low, halved.high) == (50.0, 50.0, 50.0)
    assert saved(other, base).median == -100.0
    with pytest.raises(ValueError, match="one latency call"):
        saved(base, Timing(1.0, 1.0, 1.0, 1, [1.0]))


def test_nothing_to_time_is_an_error():
    with pytest.raises(ValueError, match="at least one model"):
        latency({}, torch.zeros(1))


def test_the_bench_compares_the_same_augmented_images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (12, 32, 32, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
    data = DataSet(
        "noise", x, torch.arange(12) % 10, x, torch.arange(12) % 10, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 10, ""
    )
    usual = UsualImages(data)
    for index in range(12):
        torch.manual_seed(index)
        image, label = usual[index]
        torch.manual_seed(index)  # the usual pipeline draws top, left, flip
        draws = torch.tensor(
            [[int(torch.randint(0, 9, (1,))), int(torch.randint(0, 9, (1,))), int(torch.rand(1) < 0.5)]]
        )
        ours = data.normalise(crop_flip(x[index : index + 1], draws, 4))[0]
        torch.testing.assert_close(image, ours, rtol=1e-5, atol=1e-5)
        assert label == index % 10
