"""EVBMF ranks of a whole network against `numpy.linalg.svd` of every unfolding: `python -m shrinkbook.bench.ranks`.

The usual ports call a full singular value decomposition for each unfolding. Ours takes the eigenvalues of the small
Gram matrix, and finding the noise variance is in its time. Weights are random: the time of either does not depend on
them. The two alternate, unfolding by unfolding, within one process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from shrinkbook.bench import write
from shrinkbook.methods.tucker_layers import input_unfolding, kernel_of, output_unfolding
from shrinkbook.methods.vbmf import evbmf
from shrinkbook.nets import alexnet, vgg16_imagenet


def unfoldings(net: str) -> Iterator[tuple[str, Tensor]]:
    """Every unfolding whose rank a compression needs: VGG-16's thirteen convolutions, all eight layers of AlexNet."""
    model = {"vgg16": vgg16_imagenet, "alexnet": alexnet}[net]()
    generator = torch.Generator().manual_seed(0)
    for name, module in model.named_children():
        if not isinstance(module, nn.Conv2d | nn.Linear) or (net == "vgg16" and isinstance(module, nn.Linear)):
            continue
        kernel = kernel_of(module, (256, 6, 6) if name == "fc6" else None).detach()
        kernel = torch.randn(kernel.shape, generator=generator)
        for part, weights in enumerate(kernel.chunk(getattr(module, "groups", 1))):
            if name not in ("conv1", "conv1_1", "fc7", "fc8"):
                yield f"{name}.{part} input", input_unfolding(weights)
            yield f"{name}.{part} output", output_unfolding(weights)


def compare(net: str) -> dict[str, float]:
    """Seconds of either way, summed over the unfoldings, and how many there were."""
    ours = svd = 0.0
    count = 0
    for name, matrix in unfoldings(net):
        started = time.perf_counter()
        evbmf(matrix)
        ours += time.perf_counter() - started
        entries = matrix.double().numpy()
        started = time.perf_counter()
        np.linalg.svd(entries, full_matrices=False)
        svd += time.perf_counter() - started
        count += 1
        print(f"\r{net}: {name}    ", end="", file=sys.stderr)
    print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    return {"ours": ours, "svd": svd, "ratio": svd / ours, "unfoldings": count}


def main() -> int:
    """Print the table, write build/bench-ranks.json."""
    print(f"EVBMF ranks of every unfolding, seconds; {torch.get_num_threads()} threads, float64")
    print(f"{'network':<12}{'unfoldings':>12}{'numpy svd':>12}{'ours':>10}{'ratio':>9}")
    results = {}
    for net in ("vgg16", "alexnet"):
        r = results[net] = compare(net)
        print(f"{net:<12}{r['unfoldings']:>12}{r['svd']:>12.2f}{r['ours']:>10.2f}{r['ratio']:>8.1f}x", flush=True)
    write("ranks", {"threads": torch.get_num_threads(), "networks": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
