"""Time skipping against the dense matrix product and the framework's convolution, over shares of zeros and shapes."""

from typing import Any

import numpy as np
import torch
from torch import nn

from shrinkbook.experiments.run import Context
from shrinkbook.measure.latency import in_mode, latency
from shrinkbook.methods.lccl import LCCL, LCCLConv2d, with_zeros
from shrinkbook.methods.lccl_saving import overhead
from shrinkbook.methods.lccl_skip import Im2colConv, SkippingConv
from shrinkbook.nets import initialize

AT = 0.6  # share of zeros at which claims compare
WIDE = 64  # channels from which claims compare


def timed(run: Context) -> None:
    """Each shape (channels, side) at each share of zeros: dense im2col and GEMM, the framework, both kinds skipping.

    Gates are computed, too. Zeros are set by shifting the gate's batch norm on the very input that is timed.
    """
    config, points = run.config, []
    generator = torch.Generator().manual_seed(run.seed)
    for channels, side in config["shapes"]:
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        initialize(conv, run.seed)
        x = torch.randn(config["batch"], channels, side, side, generator=generator).relu()
        x = x.contiguous(memory_format=torch.channels_last)
        dense = {
            "im2col": Im2colConv(conv), "framework": conv, "framework, channels last": in_mode(conv, "channels_last")
        }  # fmt: skip
        for zeros in config["zeros"]:
            models = dict(dense)
            for kind in ("kxkxCx1", "1x1xCxT") if zeros == AT else ("kxkxCx1",):
                gate = LCCL(conv, kind)
                initialize(gate, run.seed + 1000)
                models[kind] = SkippingConv(with_zeros(LCCLConv2d(conv, gate), x, zeros))
            found = latency(models, x, config["rounds"], config["warmup"], run.seed)
            seconds = {name: timing.median for name, timing in found.items()}
            points.append({"channels": channels, "side": side, "zeros": zeros, "seconds": seconds})
        run.progress(f"{channels} x {side} x {side} timed")
    run.measurements["points"] = points
    wide = [point for point in points if point["zeros"] == AT and point["channels"] >= WIDE]
    gains = {kind: [p["seconds"]["im2col"] / p["seconds"][kind] for p in wide] for kind in ("kxkxCx1", "1x1xCxT")}
    run.measurements["skip"] = {
        "shared_gain": [gain - 1 for gain in gains["kxkxCx1"]],
        "shared": float(np.median(gains["kxkxCx1"])),
        "pointwise": float(np.median(gains["1x1xCxT"])),
        "dense": 1.0,
        "measured": 100 * float(np.median([1 - 1 / gain for gain in gains["kxkxCx1"]])),
        "theoretical": 100 * float(np.median([AT - overhead("kxkxCx1", 3, p["channels"]) for p in wide])),
    }
    run.measurements["break_even"] = {f"{c}x{s}x{s}": break_even(points, c, s) for c, s in config["shapes"]}


def break_even(points: list[dict[str, Any]], channels: int, side: int) -> float | None:
    """The share of zeros from which skipping beats the framework's faster layout, interpolated; None if never."""
    curve = []
    for point in points:
        if (point["channels"], point["side"]) == (channels, side):
            seconds = point["seconds"]
            framework = min(seconds["framework"], seconds["framework, channels last"])
            curve.append((point["zeros"], framework / seconds["kxkxCx1"]))
    for (z, gain), (next_z, next_gain) in zip([(curve[0][0], curve[0][1]), *curve], curve, strict=False):
        if next_gain >= 1:
            return next_z if gain >= 1 or next_gain == gain else z + (1 - gain) / (next_gain - gain) * (next_z - z)
    return None
