"""A latency look-up table for a search over widths (Liu et al. 2019): each layer at each width, on one device."""

import torch
from torch import nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.networks import NETS
from shrinkbook.experiments.phone.measuring import policy, target_of
from shrinkbook.experiments.phone.subjects import part, subject
from shrinkbook.experiments.steps import layer_inputs
from shrinkbook.measure.blocks import measure
from shrinkbook.methods.filter_pruning import couplings_of
from shrinkbook.nets import initialize

Shape = tuple[int, int]


def widths(run: Context) -> None:
    """Measure every convolution that a coupling of the network lets vary, with batch norm and ReLU, at each width.

    Layers that are alike are measured once; the stem and the classifier are ``rest``.
    """
    from shrinkbook.experiments.phone.tables import lookup_table  # here: pandas and matplotlib take long to import

    model = initialize(NETS[run.config["network"]](), run.seed).eval()
    image = torch.randn(1, *run.config["shape"], generator=torch.Generator().manual_seed(run.seed))
    seen = layer_inputs(model, image)
    shapes: dict[str, set[Shape]] = {}
    for coupling in couplings_of(model).values():
        full = _conv(model, coupling.producers[0]).out_channels
        for width in sorted({max(1, round(full * share)) for share in run.config["shares"]}):
            for path in coupling.producers:
                shapes.setdefault(path, set()).add((width, _conv(model, path).in_channels))
            for path in coupling.consumers:
                shapes.setdefault(path, set()).add((_conv(model, path).out_channels, width))
    alike: dict[str, nn.Module] = {}
    inputs: dict[str, tuple[int, ...]] = {}
    names: dict[str, dict[str, str]] = {}
    for path, found in shapes.items():
        conv, side = _conv(model, path), tuple(seen[path].shape[2:])
        for out, read in sorted(found):
            name = f"{out}x{read} {conv.kernel_size} stride {conv.stride} on {side}"
            names.setdefault(path, {})[f"{out}x{read}"] = name
            inputs[name] = (read, *side)
            layer = nn.Conv2d(read, out, conv.kernel_size, conv.stride, conv.padding, bias=False)  # type: ignore[arg-type]
            alike[name] = nn.Sequential(layer, nn.BatchNorm2d(out), nn.ReLU())
    ends = {
        "stem": part(nn.Sequential(model.conv1, model.bn1, nn.ReLU()), image),  # type: ignore[arg-type]
        "classifier": part(model.linear, seen["linear"]),  # type: ignore[arg-type]
    }
    every = {**ends, **{name: (initialize(module, run.seed), inputs[name]) for name, module in alike.items()}}
    exported = run.config["engine"] == "ncnn"
    subjects = [subject(name, *one, run.seed, exported) for name, one in every.items()]
    with target_of(run) as target:
        measured = measure(target, subjects, policy(run), run.seed, run.progress)
    rows = {row["model"]: row for row in measured if row["precision"] == "fp32"}
    layers = {path: {shape: rows[name] for shape, name in found.items()} for path, found in names.items()}
    run.measurements["table"] = lookup_table([rows[name] for name in ends], layers)
    run.measurements["layers_alike"] = len(alike)


def _conv(model: nn.Module, path: str) -> nn.Conv2d:
    found = model.get_submodule(path)
    if not isinstance(found, nn.Conv2d):
        raise ValueError(f"{path} is {type(found).__name__}: a look-up table is of networks that vary convolutions")
    return found
