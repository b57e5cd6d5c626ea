"""Weights on disk: safetensors only, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn


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
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: train the network again or correct the path")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            stored = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: delete it and train again") from error
    return state, {key: _value(text) for key, text in stored.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # another program's metadata are plain strings
        return text
