"""What low-cost collaborative layers must do (Dong et al. 2017): the gate, the product, and skipping what is closed."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shrinkbook.course.checks.compare import agree, drawn
from shrinkbook.course.checks.refusals import refused

Gate = Callable[..., nn.Module]  # (main, kind, norm) -> a module with conv and norm, x -> M
Gated = Callable[..., nn.Module]  # (main, gate, hard=, relu=) -> a module, x -> Y
Skip = Callable[..., Tensor]  # (x, conv, gate map, relu) -> Y
KINDS = ("kxkxCx1", "1x1xCxT", "1x1xCx1")


class Multiplications(TorchFunctionMode):
    """Counts those of the products of matrices, linear layers and convolutions that PyTorch is asked for meanwhile.

    PyTorch has a counter of its own; the first use of that one takes seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), getattr(func, "__name__", "")
        if name in ("matmul", "__matmul__", "mm", "bmm", "mv", "dot", "inner"):
            self.count += result.numel() * args[0].shape[-1]
        elif name in ("addmm", "baddbmm"):
            self.count += result.numel() * args[1].shape[-1]
        elif name in ("linear", "conv2d"):
            self.count += result.numel() * args[1][0].numel()
        elif name == "einsum":
            axes = args[0].replace(" ", "").split("->")[0].split(",")
            sizes = {
                letter: size
                for part, one in zip(axes, args[1:], strict=True)
                for letter, size in zip(part, one.shape, strict=True)
            }
            self.count += math.prod(sizes.values())
        return result


class FixedGate(nn.Module):
    """A gate that gives one map whatever it sees; ``conv`` says what it fits."""

    def __init__(self, main: nn.Conv2d, gate_map: Tensor) -> None:
        super().__init__()
        stride: Any = main.stride
        self.conv = nn.Conv2d(main.in_channels, gate_map.shape[1], 1, stride=stride, bias=False)
        self.map = nn.Parameter(gate_map)

    def forward(self, x: Tensor) -> Tensor:
        return self.map


def convolution(inputs: int = 4, outputs: int = 6, kernel: int = 3, stride: int = 1, seed: int = 0) -> nn.Conv2d:
    """A convolution with bias, padded to keep the map's size at stride 1, in double precision."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2).double()
    with torch.no_grad():
        for number, parameter in enumerate((conv.weight, conv.bias)):
            assert parameter is not None
            parameter.copy_(drawn(*parameter.shape, seed=seed + number))
    return conv


def gate_map(shape: tuple[int, ...], zeros: float, seed: int) -> Tensor:
    """Positive numbers, and 0 at exactly this share of the positions."""
    values = drawn(*shape, seed=seed).abs().flatten() + 0.1
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    values[order[: round(zeros * len(values))]] = 0
    return values.view(shape)


def gate_has_the_shapes(gate_class: Gate, kind: str, kernel: int, stride: int) -> None:
    """Kernel, channels, stride and padding of W', no bias, a batch norm over its maps or none at all."""
    main = convolution(kernel=kernel, stride=stride)
    gate = gate_class(main, kind).double().eval()
    maps, side = (6 if kind == "1x1xCxT" else 1), (kernel if kind == "kxkxCx1" else 1)
    conv, norm = gate.conv, gate.norm
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d), f"{kind}: conv and norm are not both set"
    shape, right = tuple(conv.weight.shape), (maps, 4, side, side)
    assert shape == right, f"{kind}: the gate's weight has shape {shape}; expected {right}"
    assert conv.bias is None, f"{kind}: the gate's convolution has a bias, which the batch norm would take out again"
    assert norm.num_features == maps, f"{kind}: the batch norm has {norm.num_features} maps; the gate has {maps}"
    found = tuple(gate(drawn(2, 4, 7, 5, seed=0)).shape)
    expected = (2, maps, *main(drawn(2, 4, 7, 5, seed=0)).shape[2:])
    assert found == expected, f"{kind}: the gate's map is {found}, expected {expected}: stride and padding of W?"
    plain = gate_class(main, kind, norm=False).norm
    assert not isinstance(plain, nn.BatchNorm2d), "norm=False should leave the batch norm out: nn.Identity does nothing"


def gate_is_the_formula(gate_class: Gate, kind: str, stride: int, seed: int) -> None:
    """M = ReLU(BN(W' * X)), position by position, from the gate's own weights and statistics."""
    gate = gate_class(convolution(stride=stride), kind).double()
    conv: Any = gate.conv
    norm: Any = gate.norm
    with torch.no_grad():
        for number, tensor in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
            tensor.copy_(drawn(*tensor.shape, seed=seed + number).abs() * 0.5 + 0.3 * (number != 2))
        norm.bias.neg_()
        conv.weight.copy_(drawn(*conv.weight.shape, seed=seed + 4))
        x = drawn(2, 4, 7, 5, seed=seed + 5)
        gate.eval()
        linear = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
        shift = norm.bias[:, None, None] - norm.running_mean[:, None, None] * scale
        right = by_hand(x, conv) * scale + shift
        mistakes = {
            "the ReLU comes before the batch norm; it must be last, or the gate is not 0 anywhere": linear.relu()
            * scale
            + shift,
            "the ReLU is missing": right,
            "the batch norm is missing": linear.relu(),
        }
        agree(f"the gate of kind {kind}", gate(x), right.clamp(min=0), mistakes)


def by_hand(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The convolution without its bias, patch by patch."""
    kh, kw = conv.kernel_size
    padding: Any = conv.padding
    patches = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    height, width = ((patches.shape[2 + n] - conv.kernel_size[n]) // conv.stride[n] + 1 for n in (0, 1))
    output = x.new_zeros(len(x), conv.out_channels, height, width)
    for i, j in itertools.product(range(height), range(width)):
        top, left = i * conv.stride[0], j * conv.stride[1]
        seen = patches[:, :, top : top + kh, left : left + kw].flatten(1)
        output[:, :, i, j] = seen @ conv.weight.detach().flatten(1).T
    return output


def output_is_the_product(gated_class: Gated, maps: int, stride: int, seed: int) -> None:
    """Y = (W * X) . M, with M for each output or one for all."""
    main = convolution(stride=stride, seed=seed)
    x = drawn(2, 4, 7, 5, seed=seed + 2)
    with torch.no_grad():
        response = by_hand(x, main) + _column(main.bias)
        gate = gate_map((2, maps, *response.shape[2:]), 0.4, seed + 3)
        mistakes = {
            "this is the response where the gate is open; the gate's value is a factor": response * (gate > 0),
            "this is the response without the gate": response,
            "the gate is added; it is a factor": response + gate,
            "a ReLU of the response was taken; that is the reading relu=True": response.relu() * gate,
        }
        agree("the output of the gated layer", gated_class(main, FixedGate(main, gate))(x), response * gate, mistakes)
        lower = FixedGate(main, gate[:, :, :-1])
        refused("a gate whose map is lower than the response", lambda: gated_class(main, lower)(x))


def other_readings(gated_class: Gated, seed: int) -> None:
    """``relu``: ReLU(W * X) . M. ``hard``: factor 1 where M > 0, while the gradient passes as if M were the factor."""
    main = convolution(seed=seed)
    x, weights = drawn(2, 4, 7, 5, seed=seed + 2), drawn(2, 6, 7, 5, seed=seed + 4)
    gate = gate_map((2, 1, 7, 5), 0.4, seed + 3)
    with torch.no_grad():
        response = by_hand(x, main) + _column(main.bias)
        with_relu = gated_class(main, FixedGate(main, gate), relu=True)(x)
        agree("the output with relu=True", with_relu, response.relu() * gate, {"there is no ReLU": response * gate})
    hard = FixedGate(main, gate)
    output = gated_class(main, hard, hard=True)(x)
    agree("the output with hard=True", output, response * (gate > 0), {"the factor is M, not 1": response * gate})
    (output * weights).sum().backward()
    assert hard.map.grad is not None and hard.map.grad.any(), (
        "with hard=True the gate gets no gradient and cannot learn: add gate - gate.detach(), which is 0, to the mask"
    )
    agree("the gate's gradient with hard=True", hard.map.grad, (response * weights).sum(1, keepdim=True))


def patches_are_cut_out(
    im2col: Callable[[Tensor, tuple[int, ...]], Tensor], kernel: int, stride: int, padding: int, seed: int
) -> None:
    """(N, H', W', k, k, C): what lies under the kernel at each output position, zeros outside of the map."""
    x = drawn(2, 3, 7, 6, seed=seed)
    found = im2col(x, (kernel, kernel, stride, stride, padding, padding))
    padded = F.pad(x, (padding,) * 4)
    height, width = ((padded.shape[axis] - kernel) // stride + 1 for axis in (2, 3))
    right = x.new_zeros(2, height, width, kernel, kernel, 3)
    for i, j in itertools.product(range(height), range(width)):
        piece = padded[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
        right[:, i, j] = piece.permute(0, 2, 3, 1)
    channels_first = right.permute(0, 1, 2, 5, 3, 4)
    mistakes = {"rows and columns of the patch are exchanged": right.transpose(3, 4)}
    if channels_first.shape == right.shape:
        mistakes["the channels come last"] = channels_first
    agree(f"the patches for kernel {kernel}, stride {stride}, padding {padding}", found, right, mistakes)


def skipping_is_exact(skip: Skip, conv: nn.Conv2d, x: Tensor, gate: Tensor, relu: bool) -> None:
    """What is skipped changes nothing: the dense response times the gate."""
    with torch.no_grad():
        response = conv(x)
        bias = _column(conv.bias)
        response, plain = (response.relu(), response) if relu else (response, response)
        mistakes = {
            "open positions hold the response without the gate's value": response * (gate != 0),
            "the bias is missing": (plain - bias).relu() * gate if relu else (plain - bias) * gate,
            "the bias must be inside of the product": (plain - bias) * gate + bias,
        }
        if relu:
            mistakes["relu=True takes the ReLU of the response before the product"] = plain * gate
        agree("the output of the skipping convolution", skip(x, conv, gate, relu), response * gate, mistakes)


def closed_positions_are_not_computed(skip: Skip, conv: nn.Conv2d, x: Tensor, gate: Tensor) -> None:
    """Multiplications are those of the open positions, counted where matrices are multiplied."""
    each = conv.weight[0].numel() * (conv.out_channels if gate.shape[1] == 1 else 1)
    kept, right = int((gate != 0).sum()), int((gate != 0).sum()) * each
    with torch.no_grad(), Multiplications() as counter:
        skip(x, conv, gate, False)
    found = counter.count
    every = gate.numel() * each
    why = "use one product of matrices, of the open rows alone"
    if found == every and right != every:
        why = "everything was computed; take the open rows before you multiply, not after"
    elif found == 0 and right:
        why = "no product of matrices was seen; multiply rows of patches with the matrix by @"
    assert found == right, (
        f"{kept} of {gate.numel()} positions are open, {right:,} multiplications; yours: {found:,}. {why}"
    )


def example(
    maps: int, zeros: float, seed: int, kernel: int = 3, stride: int = 1, inputs: int = 4, outputs: int = 6
) -> tuple[nn.Conv2d, Tensor, Tensor]:
    """A convolution, an input and a gate's map with this share of zeros, for the two checks above."""
    conv = convolution(inputs, outputs, kernel, stride, seed)
    x = drawn(2, inputs, 9, 8, seed=seed + 2)
    return conv, x, gate_map((2, maps, *conv(x).shape[2:]), zeros, seed + 3)


def overheads_are_counted(overhead: Callable[[str, int, int], float], kernel: int, outputs: int) -> None:
    """The gate's multiply-accumulates over the convolution's, layer against layer."""
    main = nn.Conv2d(5, outputs, kernel)
    for kind in KINDS:
        maps, side = (outputs if kind == "1x1xCxT" else 1), (kernel if kind == "kxkxCx1" else 1)
        right = nn.Conv2d(5, maps, side).weight.numel() / main.weight.numel()
        mistakes = {"this is its inverse": 1 / right, "this is the share that is left": 1 - right}
        agree(f"overhead({kind!r}, {kernel}, {outputs})", overhead(kind, kernel, outputs), right, mistakes)


def shuts_the_share(shift_gate: Callable[[nn.Module, Tensor, float], nn.Module], gate: nn.Module, zeros: float) -> None:
    """A copy of a gate that is 0 at this share of the positions of x; the one that was given is as before.

    Args:
        shift_gate: (gate, x, share of zeros) -> gate.
    """
    gate, x = gate.double().eval(), drawn(3, 4, 10, 10, seed=0)
    before = gate(x).detach()
    with torch.no_grad():
        found = float((shift_gate(gate, x, zeros)(x) == 0).double().mean())
    assert math.isclose(found, zeros, abs_tol=1.5 / before.numel()), f"{found:.1%} of the gate are 0, not {zeros:.1%}"
    agree("the gate that was given, afterwards,", gate(x), before)


def _column(bias: Tensor | None) -> Tensor:
    """The bias against maps (N, T, H, W)."""
    assert bias is not None
    return bias[:, None, None]
