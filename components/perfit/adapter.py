"""Sparse adapters: a personal architecture (mask) and the values at its positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from perfit.space import LoraSpace


@dataclass(frozen=True)
class SparseAdapter:
    """Values of a LoRA at some of the positions of the expanded space, zero at the others.

    Args:
        space: The expanded space of N positions.
        mask: bool, shape (N,): the positions that the client holds.
        values: float32, shape (budget,): the values at these positions, in their order.

    Raises:
        ValueError: The shapes or dtypes do not fit together.
    """

    space: LoraSpace
    mask: np.ndarray
    values: np.ndarray

    def __post_init__(self):
        if self.mask.shape != (self.space.size,) or self.mask.dtype != bool:
            raise ValueError(f"mask is {self.mask.dtype}{self.mask.shape}, want bool({self.space.size},)")
        if self.values.shape != (self.budget,) or self.values.dtype != np.float32:
            raise ValueError(f"values are {self.values.dtype}{self.values.shape}, want float32({self.budget},)")

    @property
    def budget(self) -> int:
        """Number of positions held."""
        return int(np.count_nonzero(self.mask))

    def dense(self) -> np.ndarray:
        """Return all N positions, float32, zero off the mask."""
        flat = np.zeros(self.space.size, dtype=np.float32)
        flat[self.mask] = self.values
        return flat


def mask_hash(space: LoraSpace, mask: np.ndarray) -> str:
    """Return a mask's identifier; mask is bool, shape (N,)."""
    return packed_hash(space, np.packbits(mask))


def packed_hash(space: LoraSpace, packed: np.ndarray) -> str:
    """Return the identifier of a packed mask: the BLAKE3, in hex, of the shapes of the space and the bits."""
    digest = blake3(space.text.encode())
    digest.update(packed)
    return digest.hexdigest()
