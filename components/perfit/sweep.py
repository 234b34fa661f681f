"""Averages the updates of a round side by side, and keeps none of their values.

A block of positions is read of every update and averaged, while it is in the processor's cache, before the next block
is read of any. So memory does not depend on how many updates there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from perfit.scratch import ReadBytes
from perfit.updates import set_in

Read = Callable[..., None]
"""(block, bits, values): fills in an update's values of a block; called for each block, in their order.

``block`` is the slice of positions, ``bits`` the packed mask of it (uint8), ``values`` float32, one for each set bit.
"""
StoreBlock = Callable[[slice, np.ndarray], None]
Sums = tuple[int, float, int]
"""What :func:`perfit.kernels.examine` returns, here for all of an update."""
Parts = Iterable[tuple[np.ndarray, np.ndarray]]
"""Of each update in a range: its positions, from the range's first (int64), and its values there (float32)."""
Rule = Callable[[np.ndarray, Parts, np.ndarray, np.ndarray], None]
"""(out, parts, base, holders): changes means of a range to what another rule makes of the updates."""

_BLOCK_VALUES = 2**21
"""Values of all updates in a block, about; two blocks are in memory."""
_LONGEST = 2**16
"""Values of one update in a block, about."""
_UNIT = 2048
"""Positions of which a block has a multiple."""
_RELEASED = 2**20
"""Positions after which the pages of base and result are released."""


@dataclass(frozen=True)
class Side:
    """An update in a sweep.

    Args:
        mask: Reads its packed mask: uint8, shape (ceil(N / 8),); bits after the last position are zero.
        values: Reads its values.
        count: How many those are.
        weight: How it counts in the mean.
        factor: Of its change, see :func:`perfit.kernels.set_mean`.
    """

    mask: ReadBytes
    values: Read
    count: int
    weight: int
    factor: float = 1


class _Block:
    """What is read of all updates: a block's bits and values, a row for each."""

    def __init__(self, clients: int, length: int):
        self.positions = slice(0, 0)
        self.bits = np.empty((clients, length // 8), np.uint8)
        self.values = np.empty((clients, length), np.float32)

    def parts(self) -> Parts:
        """Yield each update's part of the block."""
        for bits, values in zip(self.bits, self.values, strict=True):
            shared = set_in(bits, slice(0, self.positions.stop - self.positions.start))
            yield shared, values[: shared.size]


@dataclass(frozen=True)
class Sweep:
    """The mean of updates over the clients that share a position, as :func:`perfit.kernels.set_mean` has it.

    Args:
        sides: The updates.
        base: What they have changed, float32, shape (N,); empty for zeros.
        elsewhere: Value of the positions that too few share, float32, shape (N,) or a scalar.
        holders: How many of the updates share each position: unsigned, shape (N,); zeros if :meth:`run` is to count.
        counted: Whether it has been counted.
        min_holders: Positions that fewer share have no mean.
        threads: 1, or 2 to read a block while the last one is averaged; it changes nothing about the result.
        rule: In place of the mean; None for the mean.
    """

    sides: Sequence[Side]
    base: np.ndarray
    elsewhere: np.ndarray | float
    holders: np.ndarray
    counted: bool
    min_holders: int
    threads: int
    rule: Rule | None = None

    def run(self, store: StoreBlock, release: Callable[[], None]) -> tuple[list[Sums], float]:
        """Go through all positions once.

        One thread stores a result and reads a block while another averages the last one. Two that read are slower.

        Args:
            store: Takes blocks of the result, in any order.
            release: Called now and then.

        Returns:
            The sums of each update, and the sum of the squared changes of the result.
        """
        from perfit.kernels import SUMS

        shape, length, changes = (len(self.sides), SUMS), self._length(), []
        squares, largest = np.zeros(shape), np.zeros(shape, np.int32)
        now, last = (_Block(len(self.sides), length) for _ in range(2))
        done = slice(0, 0), np.empty(0, np.float32)
        with ThreadPoolExecutor(1) as pool:
            for number, positions in enumerate([*self._blocks(length), slice(0, 0)]):
                now.positions = positions
                averaging = pool.submit(self._average, last, squares, largest)
                if self.threads == 1:
                    wait([averaging])
                self._read(now)
                store(*done)
                *done, change = averaging.result()
                changes.append(change)
                now, last = last, now
                if number * length % _RELEASED < length:
                    release()
        store(*done)
        found = zip(largest.max(1).tolist(), squares.sum(1).tolist(), self.sides, strict=True)
        return [(most, total, side.count) for most, total, side in found], math.fsum(changes)

    @cached_property
    def _weights(self) -> np.ndarray:
        return np.array([side.weight for side in self.sides], dtype=np.float64)

    @cached_property
    def _factors(self) -> np.ndarray:
        return np.array([side.factor for side in self.sides], dtype=np.float64)

    def _length(self) -> int:
        """Return how many positions a block has."""
        clients = max(1, len(self.sides))
        values = min(_BLOCK_VALUES, _LONGEST * clients)
        length = values * self.holders.size // max(1, sum(side.count for side in self.sides))
        most = values // clients * (1 if self.rule else 8)  # a rule needs a number, and all need a bit, a position
        return max(_UNIT, min(length, most) // _UNIT * _UNIT)

    def _blocks(self, length: int) -> Iterator[slice]:
        size = self.holders.size
        return (slice(start, min(start + length, size)) for start in range(0, size, length))

    def _read(self, block: _Block) -> None:
        from perfit.kernels import count_set

        positions = block.positions
        if count := positions.stop - positions.start:
            for side, bits, values in zip(self.sides, block.bits[:, : -(-count // 8)], block.values, strict=True):
                side.mask(positions.start // 8, bits)
                side.values(positions, bits, values[: count_set(bits)])

    def _average(self, block: _Block, squares: np.ndarray, largest: np.ndarray) -> tuple[slice, np.ndarray, float]:
        """Average a block, and add to the updates' sums; return where, the result, the sum of its squared changes."""
        from perfit.kernels import add_holders, set_mean, squared_distance

        positions, masks, vectors = block.positions, row_addresses(block.bits), row_addresses(block.values)
        base, holders = self.base[positions], self.holders[positions]
        out = np.empty(holders.size, np.float32)
        out[:] = self.elsewhere if np.isscalar(self.elsewhere) else self.elsewhere[positions]
        if not self.counted:
            add_holders(masks, holders)
        shared = holders >= self.min_holders
        set_mean(masks, vectors, self._weights, self._factors, base, shared, out, squares, largest)
        if self.rule:
            self.rule(out, block.parts(), base, holders)
        return positions, out, squared_distance(out, base, shared) if base.size else 0.0


def row_addresses(rows: np.ndarray) -> np.ndarray:
    """Return where the rows of an array are in memory, uint64, for :mod:`perfit.kernels`; the caller keeps them."""
    return (rows.ctypes.data + rows.strides[0] * np.arange(len(rows))).astype(np.uint64)
