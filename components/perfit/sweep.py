"""Averages the updates of a round side by side, and keeps none of their values.

A block of positions is read of every update and averaged, while it is in the processor's cache, before the next block
is read of any. So memory does not depend on how many updates there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
"""Positions of which a thread's share of a block has a multiple."""
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

    def parts(self, start: int, stop: int, cursors: Sequence[int]) -> Parts:
        """Yield each update's part in a range of the block."""
        for bits, values, before in zip(self.bits, self.values, cursors, strict=True):
            shared = set_in(bits, slice(start, stop))
            yield shared, values[before : before + shared.size]


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
        threads: In how many threads; it changes nothing about the result.
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

    def run(self, store: StoreBlock, release: Callable[[], None], examined: bool) -> tuple[list[Sums], float]:
        """Go through all positions once.

        Args:
            store: Takes blocks of the result, in any order.
            release: Called now and then.
            examined: Whether to examine what is read.

        Returns:
            The sums of each update, if examined, and the sum of the squared changes of the result.
        """
        length, changes = self._length(), []
        found: list[Sums] = [(0, 0.0, 0)] * len(self.sides)
        now, last = (_Block(len(self.sides), length) for _ in range(2))
        with ThreadPoolExecutor(self.threads) as pool:
            for number, positions in enumerate([*self._blocks(length), slice(0, 0)]):
                now.positions = positions

                def work(thread: int, now: _Block = now, last: _Block = last) -> None:
                    changes.append(self._average(last, thread, store))
                    self._read(now, thread, found if examined else None)

                list(pool.map(work, range(self.threads)))
                now, last = last, now
                if number * length % _RELEASED < length:
                    release()
        return found, math.fsum(changes)

    @cached_property
    def _weights(self) -> np.ndarray:
        return np.array([side.weight for side in self.sides], dtype=np.float64)

    @cached_property
    def _factors(self) -> np.ndarray:
        return np.array([side.factor for side in self.sides], dtype=np.float64)

    def _length(self) -> int:
        """Return how many positions a block has."""
        clients, unit = max(1, len(self.sides)), _UNIT * self.threads
        values = min(_BLOCK_VALUES, _LONGEST * clients)
        length = values * self.holders.size // max(1, sum(side.count for side in self.sides))
        most = values // clients * (1 if self.rule else 8)  # a rule needs a number, and all need a bit, a position
        return max(unit, min(length, most) // unit * unit)

    def _blocks(self, length: int) -> Iterator[slice]:
        size = self.holders.size
        return (slice(start, min(start + length, size)) for start in range(0, size, length))

    def _read(self, block: _Block, thread: int, found: list[Sums] | None) -> None:
        """Read a thread's share of the updates, and examine it."""
        from perfit.kernels import count_set, examine

        positions = block.positions
        base, count = self.base[positions], positions.stop - positions.start
        for update in range(thread, len(self.sides) if count else 0, self.threads):
            bits = block.bits[update, : -(-count // 8)]
            self.sides[update].mask(positions.start // 8, bits)
            values = block.values[update, : count_set(bits)]
            self.sides[update].values(positions, bits, values)
            if found is not None:
                largest, squares, number = examine(bits, values, base)
                before = found[update]
                found[update] = (max(before[0], largest), before[1] + squares, before[2] + number)

    def _average(self, block: _Block, thread: int, store: StoreBlock) -> float:
        """Average a thread's share of the positions; return the sum of the squared changes."""
        from perfit.kernels import add_holders, count_set, set_mean, squared_distance

        first, end = block.positions.start, block.positions.stop
        share = -(-(end - first) // self.threads // _UNIT) * _UNIT
        part = slice(first + thread * share, min(first + (thread + 1) * share, end))
        if part.start >= part.stop:
            return 0.0
        start, stop = part.start - first, part.stop - first
        before = [count_set(bits[: start // 8]) if thread else 0 for bits in block.bits]
        base, holders, out = self.base[part], self.holders[part], np.empty(stop - start, np.float32)
        out[:] = self.elsewhere if np.isscalar(self.elsewhere) else self.elsewhere[part]
        masks, vectors = row_addresses(block.bits), row_addresses(block.values)
        if not self.counted:
            add_holders(masks, start, holders)
        shared = holders >= self.min_holders
        cursors = np.array(before, dtype=np.int64)
        set_mean(masks, vectors, cursors, start, self._weights, self._factors, base, shared, out)
        if self.rule:
            self.rule(out, block.parts(start, stop, before), base, holders)
        store(part, out)
        return squared_distance(out, base, shared) if base.size else 0.0


def row_addresses(rows: np.ndarray) -> np.ndarray:
    """Return where the rows of an array are in memory, uint64, for :mod:`perfit.kernels`; the caller keeps them."""
    return (rows.ctypes.data + rows.strides[0] * np.arange(len(rows))).astype(np.uint64)
