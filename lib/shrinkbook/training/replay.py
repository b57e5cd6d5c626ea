"""A training step recorded as a CUDA graph and replayed: small networks wait for launches of kernels, not for sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

EAGER = 3
"""Steps of a kind that run as they are before one is recorded: libraries and optimisers allocate what they keep."""
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images, labels) -> two tensors on their device; changes weights, statistics and the optimiser's state in place."""


class Replay:
    """Calls a step, on a GPU by replaying its kernels: the same kernels on the same memory.

    Recorded once for each shape of the images, and anew when the constants change. On a processor the step is called.
    A replay repeats what the recorded call did, so whatever the step decides in Python, on the host, must be the same
    in every call; what it draws on the device is drawn afresh.

    Args:
        step: what to call.
        constants: the plain numbers that a recording holds, such as learning rates.
    """

    def __init__(self, step: Step, constants: Callable[[], Hashable]) -> None:
        self.step, self.constants = step, constants
        self._constants: Hashable = None
        self._calls = Counter[Hashable]()
        self._recorded: dict[Hashable, _Recording] = {}

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step on this batch.

        Raises:
            RuntimeError: a step that cannot be recorded, such as one that reads a value back from the device.
        """
        if not images.is_cuda:
            return self.step(images, labels)
        if self.constants() != self._constants:
            self._constants = self.constants()
            self._calls.clear()
            self._recorded.clear()
        kind = (images.shape, images.stride())
        self._calls[kind] += 1
        if self._calls[kind] <= EAGER:
            return self.step(images, labels)
        if kind not in self._recorded:
            self._recorded[kind] = _Recording(self.step, images, labels)
        return self._recorded[kind](images, labels)


class _Recording:
    def __init__(self, step: Step, images: Tensor, labels: Tensor) -> None:
        self.inputs = torch.empty_like(images), torch.empty_like(labels)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):  # records, computes nothing
            self.outputs = step(*self.inputs)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.inputs[0].copy_(images)
        self.inputs[1].copy_(labels)
        self.graph.replay()
        return self.outputs[0].clone(), self.outputs[1].clone()  # the next replay overwrites them
