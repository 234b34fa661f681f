"""Averages the updates of a round while they are read, all side by side, and keeps none of their values.

A block of positions is read of every update and averaged, while it is in the processor's cache, before the next block
is read of any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from perfit.updates import count_bits

Read = Callable[..., None]
"""(block, bits, values): fills in an update's values of a block; called for each block, in their order.

``block`` is the slice of positions, ``bits`` the packed mask of it (uint8), ``values`` float32, one for each set bit.
"""
StoreBlock = Callable[[slice, np.ndarray], None]
Sums = tuple[int, float, int]
"""What :func:`perfit.kernels.examine` returns, here for all of an update."""

_BLOCK_VALUES = 2**21
"""Values of all updates in a block, about; two blocks are in memory."""
_LONGEST = 2**16
"""Values of one update in a block, about."""
_UNIT = 2048
"""Positions of which a block has a multiple."""
_RELEASED = 2**20
"""Positions after which the pages of masks, base and result are released."""


@dataclass(frozen=True)
class Sweep:
    """The mean of updates over the clients that share a position, as :func:`perfit.kernels.set_mean` has it.

    Args:
        masks: Of each update, packed, uint8, shape (ceil(N / 8),); bits after the last position are zero.
        weights: Of each update.
        base: What the updates have changed, float32, shape (N,).
        holders: How many of the updates share each position, filled in by :meth:`run`: unsigned, shape (N,), zero.
        min_holders: Positions that fewer share keep their value.
        threads: In how many threads; it changes nothing about the result.
    """

    masks: Sequence[np.ndarray]
    weights: Sequence[int]
    base: np.ndarray
    holders: np.ndarray
    min_holders: int
    threads: int

    def run(self, reads: Sequence[Read], store: StoreBlock, release: Callable[[], None]) -> tuple[list[Sums], float]:
        """Go through all positions once.

        Args:
            reads: What reads each update; threads read different ones.
            store: Takes blocks of the result, in any order.
            release: Called now and then.

        Returns:
            The sums of each update, and the sum of the squared changes of the result.
        """
        count, length, changes = len(self.masks), self._length(), []
        values = [np.empty((count, length), np.float32) for _ in range(2)]
        found: list[Sums] = [(0, 0.0, 0)] * count
        averaged = slice(0, 0)
        with ThreadPoolExecutor(self.threads) as pool:
            for number, block in enumerate([*self._blocks(length), slice(0, 0)]):
                now, last = values[number % 2], values[number % 2 - 1]

                def work(thread: int, block=block, now=now, averaged=averaged, last=last) -> None:
                    changes.append(self._average(averaged, last, thread, store))
                    self._take(block, now, thread, reads, found)

                list(pool.map(work, range(self.threads)))
                averaged = block
                if number * length % _RELEASED < length:
                    release()
        return found, math.fsum(changes)

    def _length(self) -> int:
        """Return how many positions a block has."""
        total = max(1, sum(count_bits(mask) for mask in self.masks))
        values = min(_BLOCK_VALUES, _LONGEST * len(self.masks))
        return max(_UNIT, values * self.base.size // total // _UNIT * _UNIT)

    @cached_property
    def _constants(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        masks = np.array([mask.ctypes.data for mask in self.masks], dtype=np.uint64)
        return masks, np.array(self.weights, dtype=np.float64), np.ones(len(self.masks))

    def _blocks(self, length: int) -> Iterator[slice]:
        size = self.base.size
        return (slice(start, min(start + length, size)) for start in range(0, size, length))

    def _take(self, block: slice, into: np.ndarray, thread: int, reads: Sequence[Read], found: list[Sums]) -> None:
        """Read and examine a thread's share of the updates."""
        from perfit.kernels import count_set, examine

        base = self.base[block]
        for update in range(thread, len(self.masks) if base.size else 0, self.threads):
            bits = self.masks[update][block.start // 8 : -(-block.stop // 8)]
            values = into[update, : count_set(bits)]
            reads[update](block, bits, values)
            largest, squares, count = examine(bits, values, base)
            before = found[update]
            found[update] = (max(before[0], largest), before[1] + squares, before[2] + count)

    def _average(self, block: slice, values: np.ndarray, thread: int, store: StoreBlock) -> float:
        """Average a thread's share of the positions; return the sum of the squared changes."""
        from perfit.kernels import add_holders, count_set, set_mean, squared_distance

        share = -(-(block.stop - block.start) // self.threads // _UNIT) * _UNIT
        part = slice(block.start + thread * share, min(block.start + (thread + 1) * share, block.stop))
        if part.start >= part.stop:
            return 0.0
        ahead = slice(block.start // 8, part.start // 8)
        cursors = np.array([count_set(mask[ahead]) if thread else 0 for mask in self.masks], dtype=np.int64)
        vectors = (values.ctypes.data + values.strides[0] * np.arange(len(values))).astype(np.uint64)
        base, out, holders = self.base[part], self.base[part].copy(), self.holders[part]
        masks, weights, ones = self._constants
        add_holders(masks, part.start, holders)
        shared = holders >= self.min_holders
        set_mean(masks, vectors, cursors, part.start, weights, ones, base, shared, out)
        store(part, out)
        return squared_distance(out, base, shared)
