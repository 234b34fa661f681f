"""Personalised parameter-wise aggregation (PerFIT, arXiv 2402.16919, section 3), and robust rules in place of the mean.

The new global value of a position is the mean over the clients that hold it, weighted by their sample counts; a
position that no client holds keeps its value. If all masks are equal, this is the weighted mean of FedAvg (arXiv
1602.05629) and FedIT (arXiv 2305.05644).

The median and the trimmed mean (Yin et al., 2018, arXiv 1803.01498, definitions 1 and 2) take the place of the mean at
positions with at least three holders. They count every client the same: a claimed sample count is no protection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from perfit.robustness import Measure, Scale, capped, measure, scales
from perfit.sections import Section
from perfit.updates import Update, UpdateSpool

MIN_HOLDERS = 3
"""With fewer values a median or a trimmed mean is the mean."""
_BLOCK = 2**15
"""Positions that are averaged at once: sums of so many stay in a core's cache."""
_STACKED = 2**23
"""Values of a block that are sorted at once, at most."""

Part = tuple[np.ndarray, np.ndarray, int]
"""A client's part in a block: the positions that it shares (int64), its values there (float32), its weight.

Positions are numbers, not a mask: indexing with a boolean array takes seven times as long.
"""


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

    The updates are kept in a temporary file and read block by block, each block over all clients in the order of
    their ids. So memory does not depend on the number of clients, nor the result on the order in which updates come.

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
    ):
        self._names, self._base = set(names), base
        self._size = next(iter(base.values())).size
        self.population = population
        self._options, self._weighted, self._min_holders = options, weighted, min_holders
        self._spool = UpdateSpool(self._size)
        self.holders = np.zeros(self._size, dtype=np.uint32)
        """How many of the updates share each position, shape (N,)."""
        self.measures: dict[str, Measure] = {}
        """Measures of the updates, by client."""

    def add(self, client: str, update: Update) -> None:
        """Add a client's update.

        Raises:
            PerfitError: The disk is full.
            ValueError: The update belongs to another space, has other vectors, or the client has one already.
        """
        if update.positions.shape != (self._size,) or set(update.vectors) != self._names:
            raise ValueError(
                f"cannot average {sorted(update.vectors)} over {update.positions.shape} into "
                f"{sorted(self._names)} over {(self._size,)}"
            )
        self._spool.add(client, update)
        self.measures[client] = measure(update, self._base)
        self.holders += update.positions

    @property
    def shared(self) -> np.ndarray:
        """The positions that have an average: bool, shape (N,)."""
        return self.holders >= self._min_holders

    @property
    def scales(self) -> dict[str, Scale]:
        """How each update counts, by client."""
        options = self._options
        return scales(self.measures, max_share=options.max_share, clip=options.clip, weighted=self._weighted)

    @property
    def limited(self) -> dict[str, Scale]:
        """The scales of the updates that count for less than they would without limits, by client."""
        return {c: scale for c, scale in self.scales.items() if scale.limits(self.measures[c], self._weighted)}

    @property
    def positions_by_mean(self) -> int:
        """At how many shared positions the mean is taken: all, or those with too few holders for a robust rule."""
        by_mean = self.shared if self._options.rule == "mean" else self.shared & (self.holders < MIN_HOLDERS)
        return int(np.count_nonzero(by_mean))

    def average(self, name: str, elsewhere: np.ndarray) -> np.ndarray:
        """Return a vector averaged by the options' rule.

        Args:
            name: The vector's.
            elsewhere: Value of the positions that too few shared, float32, shape (N,) or a scalar.

        Returns:
            float32, shape (N,).
        """
        rule, scales, result = self._options.rule, self.scales, np.empty(self._size, dtype=np.float32)
        result[:] = elsewhere
        length = _BLOCK if rule == "mean" else min(_BLOCK, max(8, _STACKED // max(len(self._spool), 1) // 8 * 8))
        for block, parts in self._spool.blocks(name, length):
            parts = self._scaled(name, block, parts, scales)
            if rule == "mean":
                _set_mean(result[block], parts)
            else:
                _set_robust(result[block], [*parts], self.holders[block], self._options)
        return np.where(self.shared, result, elsewhere).astype(np.float32, copy=False)

    def parts(self, name: str, positions: slice) -> Iterator[Part]:
        """Yield each client's part in a range of positions, within the limits, in the order of the clients' ids.

        For rules that do not go position by position. Numbers of positions count from the range's first.
        """
        clients = sorted(self.measures)
        parts = ((client, *self._spool.read(client, name, positions)) for client in clients)
        return self._scaled(name, positions, parts, self.scales)

    def capped(self, weights: Sequence[int]) -> list[int]:
        """Return weights of a rule's own, in the order of the clients' ids, none with more than its share."""
        return capped(weights, self._options.max_share)

    def _scaled(
        self,
        name: str,
        block: slice,
        parts: Iterable[tuple[str, np.ndarray, np.ndarray]],
        scales: Mapping[str, Scale],
    ) -> Iterator[Part]:
        for client, shared, values in parts:
            scale = scales[client]
            if name in scale.factors:
                start = self._base[name][block][shared].astype(np.float64) if name in self._base else 0.0
                values = (start + scale.factors[name] * (values - start)).astype(np.float32)
            yield shared, values, scale.weight


def _set_mean(result: np.ndarray, parts: Iterable[Part]) -> None:
    """Set the positions of a block that somebody holds to the weighted mean."""
    total = np.full(result.size, -0.0)  # -0.0 + -0.0 keeps its sign, 0.0 + -0.0 does not
    weights = np.zeros(result.size)
    for shared, values, weight in parts:
        total[shared] += weight * values.astype(np.float64)
        weights[shared] += weight
    np.divide(total, weights, out=result, where=weights > 0, casting="same_kind")


def _set_robust(result: np.ndarray, parts: list[Part], holders: np.ndarray, options: Aggregation) -> None:
    """Set the positions of a block with enough holders by a robust rule, and the others by the mean."""
    _set_mean(result, parts)
    many = holders >= MIN_HOLDERS
    if not many.any():
        return
    stack = np.full((len(parts), result.size), np.nan, dtype=np.float32)
    for row, (shared, values, _) in zip(stack, parts, strict=True):
        row[shared] = values
    stack, count = np.sort(stack[:, many], axis=0), holders[many].astype(np.int64)  # NaN last
    cut = (count - 1) // 2 if options.rule == "median" else np.maximum(1, (options.trim * count).astype(np.int64))
    rank = np.arange(len(parts))[:, np.newaxis]
    kept = (rank >= cut) & (rank < count - cut)
    result[many] = np.sum(stack, axis=0, where=kept, dtype=np.float64) / np.count_nonzero(kept, axis=0)


def aggregate(previous: np.ndarray, updates: Iterable[Update], min_holders: int = 1) -> np.ndarray:
    """Average the values of updates, parameter by parameter, without limits.

    >>> import numpy as np
    >>> first = Update(np.array([True, True, False]), {"values": np.float32([1, 4])}, samples=1)
    >>> second = Update(np.array([False, True, False]), {"values": np.float32([8])}, samples=3)
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
