"""A clustered network as bytes, as small as the ratios of Son et al. 2018 (section on compression) say, and back.

Layout, little-endian: magic, version, length of the header text, length of the whole, SHA-256 of all else; the header
as JSON; then the parts, each padded to whole bytes once:

- ``codebooks``: the centroids, 32 or 16 bits a number;
- ``indices``: for each kept kernel ceil(log2 k) + ceil(log2 T) bits, index then transform, highest bit first;
- ``masks``: one bit a kernel, only for layers with pruned kernels;
- ``scales``: 16 bits for each kept kernel, nothing for N variants;
- ``pointwise``: weights of the convolutions that are not clustered, 32 or 16 bits;
- ``rest``: everything else of the state dict (linear layers, norms, biases), 32 or 16 bits; whole numbers as they are.
"""

import copy
import hashlib
import json
import math
import struct
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from shrinkbook.methods.clustered_layers import (
    ClusteredConv2d,
    Codebook,
    cluster_conv,
    clustered_layers,
    codebooks,
    replace_layers,
)
from shrinkbook.methods.kernel_sizes import index_bits

MAGIC = b"\x89CLUSTER"
VERSION = 1
START = struct.Struct("<8sIIQ")
PREFIX = START.size + hashlib.sha256().digest_size
PARTS = ("codebooks", "indices", "masks", "scales", "pointwise", "rest")
Bits = Literal[16, 32]


def to_bytes(model: nn.Module, *, codebook_bits: Bits = 32, pointwise_bits: Bits = 32, rest_bits: Bits = 32) -> bytes:
    """Write a network with clustered layers.

    Args:
        model: at least one layer clustered by :func:`~shrinkbook.methods.clustered_layers.cluster_conv`.
        codebook_bits: of a centroid's numbers.
        pointwise_bits: of the weights of other convolutions (1x1 in the paper).
        rest_bits: of all other numbers that are not whole.

    Raises:
        ValueError: nothing is clustered, a number that its precision cannot hold, other bits than 16 or 32.
    """
    layers, books = clustered_layers(model), codebooks(model)
    if not layers:
        raise ValueError(f"to_bytes: {type(model).__name__} has no clustered layer; cluster it first")
    precision = {"codebooks": codebook_bits, "pointwise": pointwise_bits, "rest": rest_bits}
    for part, bits in precision.items():
        if bits not in (16, 32):
            raise ValueError(f"to_bytes: {part} cannot be written at {bits!r} bits; choose 16 or 32")
    streams: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    header: dict[str, Any] = {"precision": precision, "codebooks": [], "layers": [], "pointwise": [], "rest": []}
    for number, book in enumerate(books):
        header["codebooks"].append([list(book.centroids.shape), book.permutations.tolist()])
        streams["codebooks"].append(_array(f"codebook {number}", book.centroids, codebook_bits))
    for path, layer in layers.items():
        book, kept = layer.codebook, layer.kept
        pruned, scaled = kept is not None, layer.scale is not None
        number = next(i for i, other in enumerate(books) if other is book)
        header["layers"].append([path, list(layer.index.shape), number, scaled, pruned])
        chosen = torch.ones_like(layer.index, dtype=torch.bool) if kept is None else kept
        index_bits, transform_bits = _widths(book)
        codes = (layer.index[chosen].long() << transform_bits) | layer.transform[chosen].long()
        streams["indices"].append(_to_bits(codes.cpu().numpy(), index_bits + transform_bits))
        if pruned:
            streams["masks"].append(chosen.flatten().cpu().numpy().astype(np.uint8))
        if layer.scale is not None:
            streams["scales"].append(_array(f"{path}.scale", layer.scale[chosen], 16))
    for name, (part, tensor) in _others(model).items():
        array = _array(name, tensor, precision[part])
        header[part].append([name, list(tensor.shape), array.dtype.str])
        streams[part].append(array)
    packed = {part: np.packbits(_joined(streams[part])).tobytes() for part in ("indices", "masks")}
    payload = [packed[part] if part in packed else b"".join(map(np.ndarray.tobytes, streams[part])) for part in PARTS]
    header["sizes"] = dict(zip(PARTS, map(len, payload), strict=True))
    text = json.dumps(header, separators=(",", ":")).encode()
    body = b"".join([text, *payload])
    whole = PREFIX + len(body)
    start = START.pack(MAGIC, VERSION, len(text), whole)
    return start + _digest(start, body) + body


def sizes(data: bytes) -> dict[str, int]:
    """Bytes of each part, ``header`` (everything but the parts) first; they sum to the length of the data.

    Raises:
        ValueError: as :func:`from_bytes` for data that is not a whole, unharmed file.
    """
    header, start = _header(data)
    return {"header": start, **header["sizes"]}


def from_bytes(data: bytes, model: nn.Module) -> nn.Module:
    """Read what :func:`to_bytes` wrote.

    Args:
        data: the whole file.
        model: the same architecture with plain convolutions, any weights; copied, gives precision, device and mode.

    Returns:
        A clustered network with the outputs of the one that was written, bit for bit if everything was written at 32
        bits and the network is in single precision; else of that network with its numbers rounded alike.

    Raises:
        ValueError: foreign, truncated or damaged data, another version, another architecture.
    """
    header, start = _header(data)
    bounds = dict(zip(PARTS, accumulate((header["sizes"][part] for part in PARTS[:-1]), initial=start), strict=True))
    streams = {
        part: _Stream(np.frombuffer(data, np.uint8, header["sizes"][part], bound)) for part, bound in bounds.items()
    }
    for part in ("indices", "masks"):
        streams[part] = _Stream(np.unpackbits(streams[part].array))
    twin = copy.deepcopy(model)
    convs = {
        path: _conv(twin, path, shape, header["codebooks"][number][0]) for path, shape, number, *_ in header["layers"]
    }
    books: list[Codebook] = []
    for number, (shape, permutations) in enumerate(header["codebooks"]):
        like = next(convs[path].weight for path, _, used, *_ in header["layers"] if used == number)
        values = streams["codebooks"].tensor(shape, f"<f{header['precision']['codebooks'] // 8}")
        books.append(Codebook(values.to(like), torch.tensor(permutations)))
    new: dict[str, nn.Module] = {}
    for path, shape, number, scaled, pruned in header["layers"]:
        book = books[number]
        kept = streams["masks"].tensor(shape, "u1").bool() if pruned else torch.ones(shape, dtype=torch.bool)
        kernels = int(kept.sum())
        index_bits, transform_bits = _widths(book)
        width = index_bits + transform_bits
        codes = torch.zeros(shape, dtype=torch.int64)
        codes[kept] = torch.from_numpy(_from_bits(streams["indices"].take(kernels * width), kernels, width))
        scale = None
        if scaled:
            scale = torch.zeros(shape)
            scale[kept] = streams["scales"].tensor([kernels], "<f2").float()
        mask = (1 << transform_bits) - 1
        new[path] = cluster_conv(convs[path], book, codes >> transform_bits, codes & mask, scale, kept)
    twin = replace_layers(twin, new)
    _fill(twin, header, streams)
    return twin


class _Stream:
    """Bytes, or bits in bytes of their own, read one piece after another."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.position = 0

    def take(self, count: int) -> np.ndarray:
        self.position += count
        return self.array[self.position - count : self.position]

    def tensor(self, shape: Iterable[int], dtype: str) -> Tensor:
        shape = tuple(shape)
        piece = self.take(math.prod(shape) * np.dtype(dtype).itemsize)
        return torch.from_numpy(piece.view(dtype).reshape(shape).copy())


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """The header and where the parts start, after everything that can be checked without a network."""
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise ValueError("compressed bytes: this is no clustered network, it does not start with the magic number")
    if len(data) < PREFIX:
        raise ValueError(f"compressed bytes: truncated, {len(data)} bytes are fewer than the {PREFIX} of the start")
    _, version, text, whole = START.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"compressed bytes: version {version}, this library reads {VERSION}; write the file again")
    if len(data) != whole:
        what = "truncated" if len(data) < whole else "followed by something else"
        raise ValueError(f"compressed bytes: {what}, {len(data)} bytes where the file says {whole}")
    if _digest(data[: START.size], memoryview(data)[PREFIX:]) != data[START.size : PREFIX]:
        raise ValueError("compressed bytes: damaged, the checksum does not match; fetch or write the file again")
    start = PREFIX + text
    return json.loads(data[PREFIX:start]), start


def _digest(start: bytes, body: bytes | memoryview) -> bytes:
    checksum = hashlib.sha256(start)
    checksum.update(body)
    return checksum.digest()


def _others(model: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """What clustering does not cover, each tensor once: name in the state dict -> part and tensor."""
    covered: set[int] = set()
    for layer in clustered_layers(model).values():
        tensors = (
            layer.index,
            layer.transform,
            layer.scale,
            layer.kept,
            *layer.codebook.state_dict(keep_vars=True).values(),
        )
        covered |= {id(tensor) for tensor in tensors if tensor is not None}
    kernels = {id(module.weight) for module in model.modules() if _is_plain(module)}
    found: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in covered:
            covered.add(id(tensor))
            found[name] = ("pointwise" if id(tensor) in kernels else "rest", tensor)
    return found


def _fill(model: nn.Module, header: dict[str, Any], streams: dict[str, _Stream]) -> None:
    """Copy everything that is not clustered into the network."""
    others = _others(model)
    listed = {entry[0]: part for part in ("pointwise", "rest") for entry in header[part]}
    for name in sorted(others.keys() ^ listed.keys()):
        raise _other_architecture(
            name, "stored" if name in listed else "missing", "there" if name in others else "missing"
        )
    for part in ("pointwise", "rest"):
        for name, shape, dtype in header[part]:
            tensor = others[name][1]
            if tuple(tensor.shape) != tuple(shape):
                raise _other_architecture(name, tuple(shape), tuple(tensor.shape))
            with torch.no_grad():
                tensor.copy_(streams[part].tensor(shape, dtype))


def _conv(model: nn.Module, path: str, shape: list[int], centroids: list[int]) -> nn.Conv2d:
    """The plain convolution that a clustered layer of the file replaces."""
    module = dict(model.named_modules()).get(path)
    if not isinstance(module, nn.Conv2d) or not _is_plain(module):
        found = "missing" if module is None else f"a {type(module).__name__}"
        raise _other_architecture(path, "a plain convolution, to be clustered", found)
    expected, weight = (*shape, *centroids[1:]), tuple(module.weight.shape)
    if weight != expected:
        raise _other_architecture(path, f"kernels {expected}", f"kernels {weight}")
    return module


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and not isinstance(module, ClusteredConv2d)


def _other_architecture(name: str, file: object, network: object) -> ValueError:
    return ValueError(f"compressed bytes: another architecture, {name} is {file} in the file, {network} in the network")


def _widths(book: Codebook) -> tuple[int, int]:
    """Bits of an index and of a transform."""
    return index_bits(len(book.centroids)), index_bits(1, book.transforms)


def _array(name: str, tensor: Tensor, bits: int) -> np.ndarray:
    """Numbers at 16 or 32 bits, whole numbers as they are; refuses what would come back as infinity or NaN."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float16 if bits == 16 else torch.float32)
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"to_bytes: {name} holds a number that is not finite at {bits} bits; write 32 or repair it"
            )
    array = tensor.contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _to_bits(codes: np.ndarray, width: int) -> np.ndarray:
    """Whole numbers (n,) as (n width,) bits, highest first."""
    return ((codes[:, None] >> np.arange(width - 1, -1, -1)) & 1).astype(np.uint8).ravel()


def _from_bits(bits: np.ndarray, count: int, width: int) -> np.ndarray:
    """The inverse: (n width,) bits as (n,) int64."""
    return bits.reshape(count, width) @ (1 << np.arange(width - 1, -1, -1, dtype=np.int64))


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.uint8)
