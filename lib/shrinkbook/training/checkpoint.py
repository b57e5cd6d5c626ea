"""Weights and training runs on disk: safetensors only, written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from shrinkbook.training.recipe import Recipe

STATE = {"momentum_buffer": "momentum", "step": "step", "exp_avg": "first", "exp_avg_sq": "second"}  # of optimisers


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; one line that names the file and the remedy."""


def save(model: nn.Module | Mapping[str, Tensor], path: Path | str, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write a model's state, or a mapping of tensors, with metadata (JSON values) in one atomic step.

    Raises:
        CheckpointError: the file cannot be written; an older one stays as it was.
    """
    path = Path(path)
    state = model.state_dict() if isinstance(model, nn.Module) else model
    # A copy of its own for each name: safetensors refuses shared and strided storage.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    content = safetensors.torch.save(tensors, {key: json.dumps(value) for key, value in (metadata or {}).items()})
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}): free space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def load(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata of a checkpoint.

    Raises:
        CheckpointError: missing, truncated or damaged file.
    """
    with _opened(Path(path)) as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return state, _metadata(file)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: train the network again or correct the path")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: delete it and train again") from error


def _metadata(file: Any) -> dict[str, Any]:
    return {key: _value(text) for key, text in (file.metadata() or {}).items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # another program's metadata are plain strings
        return text


def save_training(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    identity: dict[str, Any],
    history: list[dict[str, Any]],
    best: dict[str, Tensor] | None,
) -> None:
    """Weights, the optimiser's state and the history of a training run, to continue from."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{STATE[key]}/{name}"] = value
    tensors |= {f"best/{name}": tensor for name, tensor in (best or {}).items()}
    save(tensors, path, {**identity, "history": history})


def complete(path: Path) -> bool:
    """Whether a training run that saves here has ended: all its epochs are there, or its loss was no number."""
    if not path.exists():
        return False
    with _opened(path) as file:  # its weights may be large and are not asked for
        metadata = _metadata(file)
    history = metadata["history"]
    return len(history) == metadata["recipe"]["epochs"] or history[-1]["loss"] is None


def resume_training(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, identity: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Tensor] | None]:
    """Fill model and optimiser as :func:`save_training` found them; returns the history and the best weights.

    Raises:
        ValueError: the file belongs to a run with another identity, or holds another network.
    """
    tensors, metadata = load(path)
    for key, value in identity.items():
        found = metadata.get(key)
        if key == "recipe" and found is not None:  # a field that came later had its default then
            found = {field.name: field.default for field in dataclasses.fields(Recipe)} | found
        if found != value:
            raise ValueError(f"{path} belongs to another run (its {key} differs): delete it or name another checkpoint")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, **{part: {} for part in STATE.values()}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    try:
        model.load_state_dict(parts["model"])
    except RuntimeError as error:
        raise ValueError(f"{path} holds another network: delete it or name another checkpoint") from error
    for name, parameter in model.named_parameters():
        for key, part in STATE.items():
            if (stored := parts[part].get(name)) is None:
                continue
            if stored.shape == parameter.shape:
                # The parameter's own strides: the fused kernel walks both memories side by side.
                stored = torch.empty_like(parameter).copy_(stored).detach()
            optimiser.state[parameter][key] = stored.to(parameter.device)
    return metadata["history"], parts["best"] or None
