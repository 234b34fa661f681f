"""Averages the updates of a round while they are read, all side by side, and keeps none of their values.

A block of positions is read of every update and averaged, while it is in the processor's cache, before the next block
is read of any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Read = Callable[..., None]
"""(update, block, bits, values): fills in an update's values of a block.

``block`` is the slice of positions, ``bits`` the packed mask of it (uint8), ``values`` float32, one for each set bit.
"""
StoreBlock = Callable[[slice, np.ndarray], None]
Sums = tuple[int, float, int]
"""What :func:`perfit.kernels.examine` returns, here for all of an update."""

_BLOCK_VALUES = 2**21
"""Values of all updates that are in memory at a time, at most; twice, if there are few updates."""
_LONGEST, _UNIT = 2**16, 2048
"""Most positions of a block, and of what it has a multiple."""
_RELEASED = 2**20
"""Positions after which the pages of masks, base and result are released."""


@dataclass(frozen=True)
class Sweep:
    """The mean of updates over the clients that share a position, as :func:`perfit.kernels.set_mean` has it.

    Args:
        masks: Of each update, packed, uint8, shape (ceil(N / 8),); bits after the last position are zero.
        weights: Of each update.
        base: What the updates have changed, float32, shape (N,).
        shared: bool, shape (N,): the positions to average; the others keep their value.
        threads: In how many threads; it changes nothing about the result.
    """

    masks: Sequence[np.ndarray]
    weights: Sequence[int]
    base: np.ndarray
    shared: np.ndarray
    threads: int

    def run(self, read: Read, store: StoreBlock, release: Callable[[], None]) -> list[Sums]:
        """Go through all positions once.

        Args:
            read: Called for each block and update, in the order of the blocks; threads read different updates.
            store: Takes blocks of the result, in any order.
            release: Called now and then.

        Returns:
            The sums of each update.
        """
        count = len(self.masks)
        length = min(_LONGEST, max(_UNIT, _BLOCK_VALUES // max(1, count) // _UNIT * _UNIT))
        values = [np.empty((count, length), np.float32) for _ in range(2)]
        found: list[Sums] = [(0, 0.0, 0)] * count
        averaged = slice(0, 0)
        with ThreadPoolExecutor(self.threads) as pool:
            for number, block in enumerate([*self._blocks(length), slice(0, 0)]):
                now, last = values[number % 2], values[number % 2 - 1]

                def work(thread: int, block=block, now=now, averaged=averaged, last=last) -> None:
                    self._average(averaged, last, thread, store)
                    self._take(block, now, thread, read, found)

                list(pool.map(work, range(self.threads)))
                averaged = block
                if number * length % _RELEASED < length:
                    release()
        return found

    @cached_property
    def _constants(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        masks = np.array([mask.ctypes.data for mask in self.masks], dtype=np.uint64)
        return masks, np.array(self.weights, dtype=np.float64), np.ones(len(self.masks))

    def _blocks(self, length: int) -> Iterator[slice]:
        size = self.base.size
        return (slice(start, min(start + length, size)) for start in range(0, size, length))

    def _take(self, block: slice, into: np.ndarray, thread: int, read: Read, found: list[Sums]) -> None:
        """Read and examine a thread's share of the updates."""
        from perfit.kernels import count_set, examine

        base = self.base[block]
        for update in range(thread, len(self.masks) if base.size else 0, self.threads):
            bits = self.masks[update][block.start // 8 : -(-block.stop // 8)]
            values = into[update, : count_set(bits)]
            read(update, block, bits, values)
            largest, squares, count = examine(bits, values, base)
            before = found[update]
            found[update] = (max(before[0], largest), before[1] + squares, before[2] + count)

    def _average(self, block: slice, values: np.ndarray, thread: int, store: StoreBlock) -> None:
        """Average a thread's share of the positions."""
        from perfit.kernels import count_set, set_mean

        share = -(-(block.stop - block.start) // self.threads // _UNIT) * _UNIT
        part = slice(block.start + thread * share, min(block.start + (thread + 1) * share, block.stop))
        if part.start >= part.stop:
            return
        ahead = slice(block.start // 8, part.start // 8)
        cursors = np.array([count_set(mask[ahead]) if thread else 0 for mask in self.masks], dtype=np.int64)
        vectors = (values.ctypes.data + values.strides[0] * np.arange(len(values))).astype(np.uint64)
        base, out = self.base[part], self.base[part].copy()
        masks, weights, ones = self._constants
        set_mean(masks, vectors, cursors, part.start, weights, ones, base, self.shared[part], out)
        store(part, out)
