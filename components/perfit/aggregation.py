"""Personalised parameter-wise aggregation (PerFIT, arXiv 2402.16919, section 3), and robust rules in place of the mean.

The new global value of a position is the mean over the clients that hold it, weighted by their sample counts; a
position that no client holds keeps its value. If all masks are equal, this is the weighted mean of FedAvg (arXiv
1602.05629) and FedIT (arXiv 2305.05644).

The median and the trimmed mean (Yin et al., 2018, arXiv 1803.01498, definitions 1 and 2) take the place of the mean at
positions with at least three holders. They count every client the same: a claimed sample count is no protection.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from perfit.robustness import Measure, Scale, capped, measure, measure_of, root_mean_square, scales
from perfit.scratch import ReadBytes, Scratch, reader
from perfit.sections import Section
from perfit.sweep import Parts, Read, Rule, Side, Sums, Sweep, row_addresses
from perfit.updates import Update

MIN_HOLDERS = 3
"""With fewer values a median or a trimmed mean is the mean."""
Part = tuple[np.ndarray, np.ndarray, int]
"""A client's part in a range: the positions that it shares, from the range's first (int64), its values, its weight."""
MAX_THREADS = 2
"""Threads that verify and average updates."""
_BLOCK_VALUES = 2**21
"""Values of all clients that are averaged before their pages are released, about."""
_HEADER_BYTES = 2**16
"""Room before an average, for the header of a file that has no other vector."""
_UNIT = 2048
"""Positions of which a block has a multiple."""


class Aggregation(Section):
    """How a round's updates become one.

    Args:
        rule: What is taken of the values of a position's holders.
        trim: ``trimmed_mean`` leaves out this fraction of them at either end, at least one.
        max_share: Maximum share of one client in the sum of all weights, in a round of at least three updates.
        clip: A client's change is cut to this multiple of the clients' median change, in such a round; None for never.
    """

    rule: Literal["mean", "trimmed_mean", "median"] = "mean"
    trim: float = Field(default=0.2, gt=0, lt=0.5)
    max_share: float = Field(default=0.5, gt=0, le=1)
    clip: float | None = Field(default=3.0, gt=0)


class Cohort:
    """The updates of a round, and what the options make of them position by position.

    The updates' arrays are kept as they are: give it arrays of a :class:`perfit.scratch.Scratch`, and memory does not
    depend on the number of clients. Positions are averaged in blocks, each over all clients in the order of their ids:
    so the result does not depend on the order in which updates come.

    Sums are float64: the product of a float32 value and a sample count is then exact, so that a position held by one
    client keeps that client's value bit for bit.

    Args:
        names: Names of the shared vectors.
        base: What the updates have changed, float32, shape (N,), by name; a vector that is missing here is a change
            already.
        population: Returns how many clients of the federation share each position, int, shape (N,); called only by
            methods whose rule depends on it.
        options: How to average.
        weighted: Whether clients count by their samples; otherwise all count the same.
        min_holders: A position that fewer of the updates share has no average.
        release: Called whenever a few megabytes of the arrays have been read.
        scratch: Where averages are kept; None for in memory.
    """

    def __init__(
        self,
        names: Iterable[str],
        base: Mapping[str, np.ndarray],
        population: Callable[[], np.ndarray],
        options: Aggregation,
        *,
        weighted: bool = True,
        min_holders: int = 1,
        release: Callable[[], None] = lambda: None,
        scratch: Scratch | None = None,
    ):
        self._names, self._base = set(names), base
        self.size = next(iter(base.values())).size
        """Number of positions N."""
        self.population = population
        self._options, self._weighted, self._min_holders, self._release = options, weighted, min_holders, release
        self._scratch = scratch
        self._updates: dict[str, Update] = {}
        self._measures: dict[str, Measure] = {}
        self._holders: np.ndarray | None = None
        self._swept: dict[str, tuple[np.ndarray, float]] = {}

    def measure(self, update: Update) -> Measure:
        """Measure an update that may be added.

        Raises:
            ValueError: It belongs to another space, or has other vectors.
        """
        if update.size != self.size or set(update.vectors) != self._names:
            raise ValueError(
                f"cannot average {sorted(update.vectors)} over {update.size} positions into "
                f"{sorted(self._names)} over {self.size}"
            )
        return measure(update, self._base, self._release)

    def add(self, client: str, update: Update, measured: Measure | None = None) -> None:
        """Add a client's update; several threads may do so at a time.

        Args:
            client: The client's id.
            update: Its update.
            measured: What :meth:`measure` returned, if it has been called.

        Raises:
            ValueError: As :meth:`measure`, or the client has an update already.
        """
        measured = measured or self.measure(update)
        if self._updates.setdefault(client, update) is not update:
            raise ValueError(f"{client!r} has an update already")
        self._measures[client] = measured
        self._holders = None

    def announce(self, client: str, update: Update) -> None:
        """Add a client's update without its vectors, for :meth:`sweep`; several threads may do so at a time."""
        self.add(client, update, Measure(update.samples, {}, {}))

    def sweep(self, name: str, reads: Mapping[str, Read]) -> None:
        """Average the only vector of the announced updates while it is read: by the mean, without clipping.

        Its values are kept nowhere. Whether an update may count is known only afterwards, from its measure: if one may
        not, or if it is to be clipped (:attr:`scales`), the average is worthless.

        Args:
            name: The vector's.
            reads: What reads an update, by client.
        """
        result, found, squares = self._sweep(name, reads, self._base[name])
        for (client, update), sums in zip(self._updates_in_order(), found, strict=True):
            self._measures[client] = measure_of(update.samples, {name: sums})
        self._swept[name] = result, squares

    @property
    def clients(self) -> list[str]:
        """The clients with an update, in the order in which they are averaged."""
        return sorted(self._updates)

    @property
    def measures(self) -> dict[str, Measure]:
        """Measures of the updates, by client, in the order of their ids."""
        return {client: self._measures[client] for client in self.clients}

    @property
    def holders(self) -> np.ndarray:
        """How many of the updates share each position, of the smallest unsigned type, shape (N,)."""
        if self._holders is None:
            from perfit.kernels import add_holders

            holders, masks = self._no_holders(), [self._reader(update.mask) for update in self._updates.values()]
            length = max(_UNIT, 8 * _BLOCK_VALUES // max(1, len(masks)) // _UNIT * _UNIT)
            bits = np.empty((len(masks), length // 8), np.uint8)
            for start in range(0, self.size, length):
                block = slice(start, min(start + length, self.size))
                for read, row in zip(masks, bits, strict=True):
                    read(start // 8, row[: -(-(block.stop - start) // 8)])
                add_holders(row_addresses(bits), holders[block])
            self._holders = holders
        return self._holders

    def _no_holders(self) -> np.ndarray:
        dtype = np.min_scalar_type(len(self._updates))
        memory = mmap.mmap(-1, self.size * dtype.itemsize)  # given back at once, not kept by the allocator
        return np.frombuffer(memory, dtype)

    @property
    def shared(self) -> np.ndarray:
        """The positions that have an average: bool, shape (N,)."""
        return self.shared_in(slice(None))

    def shared_in(self, positions: slice) -> np.ndarray:
        """Return :attr:`shared` in a range of positions."""
        return self.holders[positions] >= self._min_holders

    @property
    def scales(self) -> dict[str, Scale]:
        """How each update counts, by client."""
        options = self._options
        return scales(self.measures, max_share=options.max_share, clip=options.clip, weighted=self._weighted)

    @property
    def limited(self) -> dict[str, Scale]:
        """The scales of the updates that count for less than they would without limits, by client."""
        return {c: scale for c, scale in self.scales.items() if scale.limits(self._measures[c], self._weighted)}

    @property
    def positions_shared(self) -> int:
        """How many positions have an average."""
        return self._count_held(self._min_holders)

    @property
    def positions_by_mean(self) -> int:
        """At how many shared positions the mean is taken: all, or those with too few holders for a robust rule."""
        by_rule = 0 if self._options.rule == "mean" else self._count_held(max(self._min_holders, MIN_HOLDERS))
        return self.positions_shared - by_rule

    def _count_held(self, least: int) -> int:
        blocks = (self.holders[start : start + _BLOCK_VALUES] for start in range(0, self.size, _BLOCK_VALUES))
        return sum(int(np.count_nonzero(block >= least)) for block in blocks)

    def average(self, name: str, elsewhere: np.ndarray) -> np.ndarray:
        """Return a vector averaged by the options' rule.

        Args:
            name: The vector's.
            elsewhere: Value of the positions that too few shared, float32, shape (N,) or a scalar.

        Returns:
            float32, shape (N,); read-only in a scratch file.
        """
        if name in self._swept:
            return self._from_sweep(name, elsewhere)
        reads = {client: self._read_in_order(update.vectors[name]) for client, update in self._updates_in_order()}
        return self._sweep(name, reads, elsewhere)[0]

    def _sweep(
        self, name: str, reads: Mapping[str, Read], elsewhere: np.ndarray | float
    ) -> tuple[np.ndarray, list[Sums], float]:
        """Return a vector's average, and what :meth:`perfit.sweep.Sweep.run` does."""
        scales, base = self.scales, self._base.get(name, np.zeros(0, np.float32))
        sides = []
        for (client, update), scale in zip(self._updates_in_order(), scales.values(), strict=True):
            mask, factor = self._reader(update.mask), scale.factors.get(name, 1)
            sides.append(Side(mask, reads[client], update.count, scale.weight, factor))
            self._release()  # of the mask, which has been counted
        counted = self._holders is not None
        holders = self._holders if counted else self._no_holders()
        rule = None if self._options.rule == "mean" else self._robust_rule([side.factor for side in sides])
        result, store_block = self._new_vector()
        sweep = Sweep(sides, base, elsewhere, holders, counted, self._min_holders, threads(), rule)
        found, squares = sweep.run(store_block, self._release)
        self._holders = holders
        return result, found, squares

    def _updates_in_order(self) -> list[tuple[str, Update]]:
        return [(client, self._updates[client]) for client in self.clients]

    def _reader(self, array: np.ndarray) -> ReadBytes:
        return self._scratch.reader(array) if self._scratch else reader(array)

    def _read_in_order(self, vector: np.ndarray) -> Read:
        """Return what reads the values of a whole update, from the first to the last."""
        read_bytes, done = self._reader(vector), 0

        def read(block: slice, bits: np.ndarray, values: np.ndarray) -> None:
            nonlocal done
            read_bytes(done, values.view(np.uint8))
            done += values.nbytes

        return read

    def _robust_rule(self, factors: Sequence[float]) -> Rule:
        def set_robust(out: np.ndarray, parts: Parts, base: np.ndarray, holders: np.ndarray) -> None:
            where = holders >= max(self._min_holders, MIN_HOLDERS)
            _set_robust(out, parts, base, factors, where, self._options)

        return set_robust

    def _from_sweep(self, name: str, elsewhere: np.ndarray) -> np.ndarray:
        vector, _ = self._swept[name]
        return vector if elsewhere is self._base[name] else np.where(self.shared, vector, elsewhere).astype(np.float32)

    def change(self, name: str, values: np.ndarray) -> float:
        """Return the root mean square of the shared positions' change to ``values``, float32, shape (N,)."""
        from perfit.kernels import squared_distance

        vector, squares = self._swept.get(name, (None, 0.0))
        if vector is not values:
            squares = 0.0
            for start in range(0, self.size, _BLOCK_VALUES):
                block = slice(start, start + _BLOCK_VALUES)
                squares += squared_distance(values[block], self._base[name][block], self.shared_in(block))
                self._release()
        return root_mean_square(squares, self.positions_shared)

    def _new_vector(self) -> tuple[np.ndarray, Callable[[slice, np.ndarray], None]]:
        """Return a vector, float32, shape (N,), and what sets a block of it."""
        if self._scratch is None:
            result = np.empty(self.size, np.float32)
            return result, result.__setitem__
        scratch, start = self._scratch, self._scratch.reserve(4 * self.size, _HEADER_BYTES)
        vector = scratch.view(start, 4 * self.size).view(np.float32)
        return vector, lambda block, out: scratch.write(start + 4 * block.start, memoryview(out).cast("B"))

    def parts(self, name: str, positions: slice) -> Iterator[Part]:
        """Yield each client's part in a range of positions, within the limits, in the order of the clients' ids.

        For rules that do not go position by position.
        """
        base = self._base.get(name, np.zeros(0, np.float32))[positions]
        for client, scale in self.scales.items():
            shared, values = self._updates[client].part(name, positions)
            yield shared, _clipped(values, base, shared, scale.factors.get(name, 1)), scale.weight
            self._release()

    def capped(self, weights: Sequence[int]) -> list[int]:
        """Return weights of a rule's own, in the order of the clients' ids, none with more than its share."""
        return capped(weights, self._options.max_share)


def threads() -> int:
    """Return in how many threads this process verifies and averages updates."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, MAX_THREADS)


def _clipped(values: np.ndarray, base: np.ndarray, positions: np.ndarray, factor: float) -> np.ndarray:
    """Return values (float32) of which only a fraction of the change from ``base``, or from zero, is left."""
    if factor == 1:
        return values
    start = base[positions].astype(np.float64) if base.size else 0.0
    return (start + factor * (values - start)).astype(np.float32)


def _set_robust(
    result: np.ndarray,
    parts: Parts,
    base: np.ndarray,
    factors: Sequence[float],
    where: np.ndarray,
    options: Aggregation,
) -> None:
    """Set some positions of a block (bool, shape (P,)), each with enough holders, by a robust rule."""
    stack = np.full((len(factors), result.size), np.nan, dtype=np.float32)
    for row, (positions, values), factor in zip(stack, parts, factors, strict=True):
        row[positions] = _clipped(values, base, positions, factor)
    stack = np.sort(stack[:, where], axis=0)  # NaN last
    count = np.count_nonzero(~np.isnan(stack), axis=0)
    cut = (count - 1) // 2 if options.rule == "median" else np.maximum(1, (options.trim * count).astype(np.int64))
    rank = np.arange(len(factors))[:, np.newaxis]
    kept = (rank >= cut) & (rank < count - cut)
    result[where] = np.sum(stack, axis=0, where=kept, dtype=np.float64) / np.count_nonzero(kept, axis=0)


def aggregate(previous: np.ndarray, updates: Iterable[Update], min_holders: int = 1) -> np.ndarray:
    """Average the values of updates, parameter by parameter, without limits.

    >>> import numpy as np
    >>> first = Update.at(np.array([True, True, False]), {"values": np.float32([1, 4])}, samples=1)
    >>> second = Update.at(np.array([False, True, False]), {"values": np.float32([8])}, samples=3)
    >>> aggregate(np.float32([0, 0, 5]), [first, second])
    array([1., 7., 5.], dtype=float32)

    Args:
        previous: Global values, float32, shape (N,).
        updates: Updates of the same space, each with the vector ``values``; consumed one at a time.
        min_holders: A position that fewer updates share keeps its value.

    Returns:
        New global values, float32, shape (N,).

    Raises:
        ValueError: An update belongs to another space.
    """
    options = Aggregation(max_share=1, clip=None)
    population = np.zeros(previous.size, dtype=int)
    cohort = Cohort(["values"], {"values": previous}, lambda: population, options, min_holders=min_holders)
    for number, update in enumerate(updates):
        cohort.add(str(number), update)
    return cohort.average("values", previous)
