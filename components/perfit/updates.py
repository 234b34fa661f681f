"""What a client sends to the server, and how packed masks are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Update:
    """What a client sends to the server.

    Args:
        mask: The shared positions as ``np.packbits`` packs them: uint8, shape (ceil(N / 8),); bits after the last
            position are zero.
        size: Number of positions N.
        vectors: float32, shape (number of shared positions,), by name.
        samples: Number of the client's training records: its weight.

    Raises:
        ValueError: There are no samples, or a vector has another dtype or shape.
    """

    mask: np.ndarray
    size: int
    vectors: Mapping[str, np.ndarray]
    samples: int

    def __post_init__(self):
        if self.samples < 1:
            raise ValueError(f"an update of {self.samples} samples has no weight")
        for name, vector in self.vectors.items():
            if vector.dtype != np.float32 or vector.shape != (self.count,) or not vector.flags.c_contiguous:
                raise ValueError(f"{name} is {vector.dtype}{vector.shape}, want float32{(self.count,)}")

    @cached_property
    def count(self) -> int:
        """Number of shared positions."""
        return count_bits(self.mask)

    @classmethod
    def at(cls, positions: np.ndarray, vectors: Mapping[str, np.ndarray], samples: int) -> Update:
        """Return the update at some positions: bool, shape (N,)."""
        return cls(np.packbits(positions), positions.size, vectors, samples)

    @property
    def positions(self) -> np.ndarray:
        """The shared positions: bool, shape (N,)."""
        return np.unpackbits(self.mask, count=self.size).view(bool)

    def part(self, name: str, positions: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return what a vector has in a range of positions.

        Returns:
            Which of these positions the client shares (int64, counted from the range's first), and its values there
            (float32).
        """
        byte = positions.start // 8
        before = count_bits(self.mask[:byte]) + set_in(self.mask, slice(8 * byte, positions.start)).size
        shared = set_in(self.mask, positions)
        return shared, self.vectors[name][before : before + shared.size]


def set_in(mask: np.ndarray, positions: slice) -> np.ndarray:
    """Return which positions of a range are set in a packed mask, uint8: int64, counted from the range's first."""
    byte, bit = divmod(positions.start, 8)
    bits = np.unpackbits(mask[byte : -(-positions.stop // 8)], count=positions.stop - 8 * byte).view(bool)
    return np.flatnonzero(bits[bit:])  # indexing with a boolean array takes seven times as long


def count_bits(mask: np.ndarray) -> int:
    """Return the number of set bits of a packed mask, uint8."""
    words = mask[: mask.size // 8 * 8].view(np.uint64)  # an eighth of the numbers to add
    rest = mask[8 * words.size :]
    return int(np.bitwise_count(words).sum(dtype=np.int64)) + int(np.bitwise_count(rest).sum(dtype=np.int64))
