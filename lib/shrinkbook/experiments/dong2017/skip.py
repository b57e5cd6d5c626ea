"""Time skipping against the dense matrix product and the framework's convolution, over shares of zeros and shapes."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from shrinkbook import nets
from shrinkbook.evidence import claims
from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.steps import close
from shrinkbook.measure.latency import in_mode, latency, saved
from shrinkbook.methods.lccl import LCCL, LCCLConv2d, add_lccl, gates, responses, with_zeros
from shrinkbook.methods.lccl_saving import overhead, saving
from shrinkbook.methods.lccl_skip import Im2colConv, SkippingConv, WholeIm2colConv, skipping
from shrinkbook.nets import initialize

AT = 0.6  # share of zeros at which claims compare
WIDE = 64  # channels from which claims compare
DENSE = ("im2col in blocks", "im2col at once")  # forms of the dense product of im2col rows
FRAMEWORK = ("framework", "framework, channels last")


def timed(run: Context) -> None:
    """Each shape (channels, side) at each share of zeros: dense im2col and GEMM, the framework, both kinds skipping.

    The dense product is the faster of two forms of it. Gates are computed, too. Zeros are set by shifting the gate's
    batch norm on the very input that is timed.
    """
    config, points = run.config, []
    generator = torch.Generator().manual_seed(run.seed)
    for channels, side in config["shapes"]:
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        initialize(conv, run.seed)
        x = torch.randn(config["batch"], channels, side, side, generator=generator).relu()
        x = x.contiguous(memory_format=torch.channels_last)
        plain = {
            "im2col in blocks": Im2colConv(conv), "im2col at once": WholeIm2colConv(conv), "framework": conv,
            "framework, channels last": in_mode(conv, "channels_last"),
        }  # fmt: skip
        for zeros in config["zeros"]:
            models: dict[str, Any] = dict(plain)
            for kind in ("kxkxCx1", "1x1xCxT") if zeros == AT else ("kxkxCx1",):
                gate = LCCL(conv, kind)
                initialize(gate, run.seed + 1000)
                models[kind] = SkippingConv(with_zeros(LCCLConv2d(conv, gate), x, zeros))
            found = latency(models, x, config["rounds"], config["warmup"], run.seed)
            seconds = {name: timing.median for name, timing in found.items()}
            open_share = models["kxkxCx1"].main.positions / (config["batch"] * side**2)
            points.append(
                {"channels": channels, "side": side, "zeros": zeros, "closed": 1 - open_share, "seconds": seconds}
            )
        run.progress(f"{channels} x {side} x {side} timed")
    run.measurements["points"] = points
    wide = [point for point in points if point["zeros"] == AT and point["channels"] >= WIDE]
    gains = {kind: [dense(p["seconds"]) / p["seconds"][kind] for p in wide] for kind in ("kxkxCx1", "1x1xCxT")}
    run.measurements["skip"] = {
        "shared_gain": [gain - 1 for gain in gains["kxkxCx1"]],
        "shared": float(np.median(gains["kxkxCx1"])),
        "pointwise": float(np.median(gains["1x1xCxT"])),
        "dense": 1.0,
        "measured": 100 * float(np.median([1 - 1 / gain for gain in gains["kxkxCx1"]])),
        "theoretical": 100 * float(np.median([AT - overhead("kxkxCx1", 3, p["channels"]) for p in wide])),
    }
    run.measurements["break_even"] = {f"{c}x{s}x{s}": break_even(points, c, s) for c, s in config["shapes"]}


def network_speed(run: Context) -> None:
    """ResNet-18 and 34 at the printed savings: the share of the time that skipping really saves.

    Weights are random: the same share of every gate is closed, on the very image that is timed, so that the network
    saves what the paper prints. Masks are hard, since untrained products of so many gates overflow. Dense is the plain
    network with those convolutions as im2col and GEMM, in the faster form; beside it stands the framework's network.
    """
    config, paper = run.config, claims.load("dong2017")
    shape = (3, config["side"], config["side"])
    x = torch.randn(config["batch"], *shape, generator=torch.Generator().manual_seed(run.seed))
    for depth in (18, 34):
        row = f"imagenet/ResNet-{depth}-LCCL"
        printed = paper.cell(f"{row}/saved").number
        assert printed is not None
        plain = initialize(nets.preact_resnet_imagenet(depth), run.seed).eval()
        gated = add_lccl(plain, hard=True, seed=run.seed + 1000)
        zeros = zeros_for(gated, shape, printed / 100)
        close(gated, x, dict.fromkeys(gates(gated), zeros))
        models = {
            "im2col in blocks": dense_twin(plain, gates(gated), Im2colConv),
            "im2col at once": dense_twin(plain, gates(gated), WholeIm2colConv), "framework": plain,
            "framework, channels last": in_mode(plain, "channels_last"), "skipping": skipping(gated),
        }  # fmt: skip
        found = latency(models, x, config["rounds"], config["warmup"], run.seed)
        seconds = {name: timing.median for name, timing in found.items()}
        im2col, other = (found[min(names, key=seconds.__getitem__)] for names in (DENSE, FRAMEWORK))
        kept = {path: (value != 0).double().mean().item() for path, value in responses(gated, x).items()}
        counted = saving(gated, shape, {path: 1 - share for path, share in kept.items()})
        measured = saved(im2col, found["skipping"])
        run.cell(f"speed/ResNet-{depth}-LCCL/theoretical", 100 * counted.removed)
        run.cell(f"speed/ResNet-{depth}-LCCL/measured", measured.median)
        run.measurements[f"ResNet-{depth}"] = {
            "zeros": 100 * zeros, "theoretical": 100 * counted.removed, "measured": measured.median,
            "low": measured.low, "high": measured.high,
            "against framework": saved(other, found["skipping"]).median, "seconds": seconds,
        }  # fmt: skip
        run.progress(f"ResNet-{depth} timed")


def zeros_for(gated: nn.Module, shape: tuple[int, ...], removed: float) -> float:
    """The share of zeros, the same in every gate, at which a network saves this share of its multiply-accumulates."""
    none, every = (saving(gated, shape, dict.fromkeys(gates(gated), share)).removed for share in (0.0, 1.0))
    return (removed - none) / (every - none)


def dense_twin(plain: nn.Module, paths: Iterable[str], form: Callable[[nn.Conv2d, str], nn.Module]) -> nn.Module:
    """A copy whose convolutions at these paths run as im2col and matrix product, in one of the two forms."""
    twin = copy.deepcopy(plain).eval()
    for path in paths:
        conv = twin.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
        twin.set_submodule(path, form(conv, path))
    return twin


def dense(seconds: Mapping[str, float]) -> float:
    """The faster of the two dense products of im2col rows."""
    return min(seconds[name] for name in DENSE)


def framework(seconds: Mapping[str, float]) -> float:
    """The faster of the framework's two layouts."""
    return min(seconds[name] for name in FRAMEWORK)


def break_even(points: list[dict[str, Any]], channels: int, side: int) -> float | None:
    """The share of zeros from which skipping beats the framework's faster layout, interpolated; None if never."""
    curve = []
    for point in points:
        if (point["channels"], point["side"]) == (channels, side):
            curve.append((point["zeros"], framework(point["seconds"]) / point["seconds"]["kxkxCx1"]))
    for (z, gain), (next_z, next_gain) in zip([(curve[0][0], curve[0][1]), *curve], curve, strict=False):
        if next_gain >= 1:
            return next_z if gain >= 1 or next_gain == gain else z + (1 - gain) / (next_gain - gain) * (next_z - z)
    return None
