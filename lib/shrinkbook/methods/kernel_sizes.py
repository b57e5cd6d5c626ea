"""What clustered kernels take (Son et al. 2018): bits of indices, scales and codebooks, layer by layer and in all."""

from dataclasses import asdict, dataclass
from typing import Any

WEIGHT_BITS = 32  # of an uncompressed weight
SCALE_BITS = 16  # of a scale, half precision


def index_bits(k: int, transforms: int = 1) -> int:
    """Bits that name one of k centroids and one of the transforms: log2 k + log2 T, each rounded up."""
    return (k - 1).bit_length() + (transforms - 1).bit_length()


def bits(kernels: int, k: int, area: int = 9, transforms: int = 1, scaled: bool = True, codebook_bits: int = 32) -> int:
    """Size of clustered kernels: N (log2 k + log2 T + b_s) + k b h w, with b_s = 16, or 0 without scales.

    Args:
        kernels: N.
        area: numbers in a kernel, h w.
        codebook_bits: b, of a number in the codebook: 32, or 16 as some printed ratios count it.
    """
    each = index_bits(k, transforms) + SCALE_BITS * scaled
    return kernels * each + k * area * codebook_bits


def ratio(
    kernels: int, k: int, area: int = 9, transforms: int = 1, scaled: bool = True, codebook_bits: int = 32
) -> float:
    """Compression ratio of the clustered kernels, N 32 h w over :func:`bits`."""
    return kernels * area * WEIGHT_BITS / bits(kernels, k, area, transforms, scaled, codebook_bits)


@dataclass(frozen=True)
class Layer:
    """A clustered layer: its kernels, those that are not zero, the number of its codebook, bits for each kept kernel.

    ``error`` is the relative error of the weights, ||W - W'|| / ||W||; None where nothing was clustered.
    """

    name: str
    kernels: int
    kept: int
    area: int
    codebook: int
    k: int
    index_bits: int
    scale_bits: int
    error: float | None


@dataclass(frozen=True)
class Group:
    """A codebook of k centroids for so many kernels of this area, and how its k-means ended (None if planned only)."""

    k: int
    area: int
    kernels: int
    inertia: float | None = None
    iterations: int | None = None
    converged: bool | None = None


@dataclass(frozen=True)
class Other:
    """A convolution that stays as it is, its weights, and why."""

    name: str
    weights: int
    note: str


@dataclass(frozen=True)
class Report:
    """What was clustered and what that takes. Sizes cover weights of convolutions only, without linear layers."""

    layers: tuple[Layer, ...]
    codebooks: tuple[Group, ...]
    others: tuple[Other, ...]

    @property
    def bits_before(self) -> int:
        """Bits of the clustered layers' weights at 32 bits."""
        return sum(layer.kernels * layer.area for layer in self.layers) * WEIGHT_BITS

    def bits_after(self, codebook_bits: int = 32) -> int:
        """Indices and scales of the kept kernels, and the codebooks; without :attr:`mask_bits`, as in the paper."""
        kernels = sum(layer.kept * (layer.index_bits + layer.scale_bits) for layer in self.layers)
        return kernels + sum(group.k * group.area for group in self.codebooks) * codebook_bits

    @property
    def mask_bits(self) -> int:
        """One bit for each kernel of the layers that hold zero kernels."""
        return sum(layer.kernels for layer in self.layers if layer.kept < layer.kernels)

    @property
    def bytes(self) -> int:
        """Bytes of all convolutions' weights before, at 32 bits each."""
        return (self.bits_before + self._others * WEIGHT_BITS) // 8

    @property
    def bytes_after(self) -> int:
        """Bytes after, with :attr:`mask_bits`, other convolutions and codebooks at 32 bits; a last one is filled up."""
        return -(-(self.bits_after() + self.mask_bits + self._others * WEIGHT_BITS) // 8)

    def ratio(self, codebook_bits: int = 32) -> float:
        """Compression ratio of the clustered layers."""
        return self.bits_before / self.bits_after(codebook_bits)

    def whole_ratio(self, pointwise_bits: int = 32, codebook_bits: int = 32) -> float:
        """Compression ratio of all convolutions, the others held at ``pointwise_bits`` a weight."""
        after = self.bits_after(codebook_bits) + self._others * pointwise_bits
        return (self.bits_before + self._others * WEIGHT_BITS) / after

    @property
    def _others(self) -> int:
        return sum(other.weights for other in self.others)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a clustered layer, for a table."""
        return [asdict(layer) for layer in self.layers]
