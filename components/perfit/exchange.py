"""What crosses between the clients and the server: at which positions, and in what type.

In int8 a block of values shares one scale, and values are rounded up or down at random, so that the expectation is
exact (stochastic rounding, as in QSGD, Alistarh et al., 2017, arXiv 1610.02132).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import ml_dtypes
import numpy as np
from pydantic import Field

from perfit.sections import Section

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "int8": np.int8}
BLOCK = 128
"""Values of an int8 vector that share a scale."""
_LEVELS = 127


class Exchange(Section):
    """What clients and the server send each other.

    Args:
        holders: Positions that fewer of a round's clients share are not exchanged: each client keeps its own value.
        dtype: Type of the values on the wire, in both directions.
        top: Fraction of the changes, the largest ones, that a client uploads (FLASC, arXiv 2406.05233).
        masks_first: Whether a client whose architecture the server does not know yet uploads it alone, also in the
            first round. It has an effect only on methods with a search.
    """

    holders: int = Field(default=2, ge=1)
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "bfloat16"
    top: float = Field(default=1.0, gt=0, le=1)
    masks_first: bool = False

    @property
    def sends_changes(self) -> bool:
        """Whether clients upload the changes of their values, which lose less by rounding, in place of the values."""
        return self.dtype != "float32" or self.top < 1

    def largest(self, changes: np.ndarray) -> np.ndarray:
        """Return which of the changes, float32 of shape (n,), are uploaded: bool, shape (n,); ties go to the first."""
        chosen = np.ones(changes.size, dtype=bool)
        if self.top < 1:
            chosen[np.argsort(-np.abs(changes), kind="stable")[self.count(changes.size) :]] = False
        return chosen

    def count(self, positions: int) -> int:
        """Return how many of the changes at so many positions are uploaded: at least one, if there are any."""
        return min(positions, max(1, round(self.top * positions)))


@dataclass(frozen=True)
class Packed:
    """A vector on the wire.

    Args:
        values: One of ``DTYPES``, shape (n,).
        scales: float32, shape (ceil(n / BLOCK),): the unit of the values in each block; empty unless they are int8.
    """

    values: np.ndarray
    scales: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))

    def unpack(self) -> np.ndarray:
        """Return the vector that the receiver sees, float32, shape (n,)."""
        values = self.values.astype(np.float32, copy=False)
        return values * np.repeat(self.scales, BLOCK)[: values.size] if self.scales.size else values


def pack(vector: np.ndarray, dtype: str, seed: int) -> Packed:
    """Round a vector to the type on the wire.

    Args:
        vector: float32, shape (n,).
        dtype: A name in ``DTYPES``. Floating-point types round to nearest, ties to even.
        seed: Of the stochastic rounding to int8.
    """
    if dtype != "int8":
        return Packed(vector.astype(DTYPES[dtype], copy=False))
    starts = np.arange(0, vector.size, BLOCK)
    scales = np.maximum.reduceat(np.abs(vector), starts) / np.float32(_LEVELS) if vector.size else vector
    units = np.repeat(scales, BLOCK)[: vector.size]
    levels = np.divide(vector, units, out=np.zeros_like(vector), where=units > 0)
    levels = np.floor(levels + np.random.default_rng(seed).random(vector.size, dtype=np.float32))
    return Packed(np.clip(levels, -_LEVELS, _LEVELS).astype(np.int8), scales)


@dataclass(frozen=True)
class Transfer:
    """Vectors on the wire, at some positions.

    Args:
        positions: bool, shape (N,).
        vectors: Each of the length of the positions, by name.
    """

    positions: np.ndarray
    vectors: Mapping[str, Packed] = field(default_factory=dict)

    def unpack(self) -> dict[str, np.ndarray]:
        """Return the vectors that the receiver sees, each float32, of the length of the positions, by name."""
        return {name: packed.unpack() for name, packed in self.vectors.items()}
