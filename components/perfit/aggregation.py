"""Personalised parameter-wise aggregation (PerFIT, arXiv 2402.16919, section 3).

The new global value of a position is the mean over the clients that hold it, weighted by their sample counts; a
position that no client holds keeps its value. If all masks are equal, this is the weighted mean of FedAvg (arXiv
1602.05629) and FedIT (arXiv 2305.05644).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Update:
    """What a client sends to the server.

    Args:
        positions: bool, shape (N,): the shared positions.
        vectors: float32, shape (number of shared positions,), by name.
        samples: Number of the client's training records: its weight.

    Raises:
        ValueError: There are no samples, or a vector has another dtype or shape.
    """

    positions: np.ndarray
    vectors: Mapping[str, np.ndarray]
    samples: int

    def __post_init__(self):
        count = (int(np.count_nonzero(self.positions)),)
        if self.samples < 1:
            raise ValueError(f"an update of {self.samples} samples has no weight")
        for name, vector in self.vectors.items():
            if vector.dtype != np.float32 or vector.shape != count:
                raise ValueError(f"{name} is {vector.dtype}{vector.shape}, want float32{count}")


class Cohort:
    """The running mean of a round's updates, position by position. No update is kept once it is added.

    Sums are float64: the product of a float32 value and a sample count is then exact, so that a position held by one
    client keeps that client's value bit for bit. Memory is 12 bytes per position and 8 more for each vector, whatever
    the number of clients.

    Args:
        names: Names of the shared vectors.
        size: Number of positions N.
        weighted: Whether clients count by their samples; otherwise all count the same.
        population: Returns how many clients of the federation share each position, int, shape (N,); called only by
            methods whose rule depends on it.
    """

    def __init__(self, names: Iterable[str], size: int, population: Callable[[], np.ndarray], *, weighted: bool = True):
        self._totals = {name: np.full(size, -0.0) for name in names}  # -0.0 + -0.0 keeps its sign, 0.0 + -0.0 does not
        self._weight = np.zeros(size)
        self.holders = np.zeros(size, dtype=np.uint32)
        """How many of the updates share each position, shape (N,)."""
        self.population = population
        self._weighted = weighted

    def add(self, update: Update) -> None:
        """Add an update to the mean.

        Raises:
            ValueError: The update belongs to another space, or has other vectors.
        """
        if update.positions.shape != self._weight.shape or set(update.vectors) != set(self._totals):
            raise ValueError(
                f"cannot average {sorted(update.vectors)} over {update.positions.shape} into "
                f"{sorted(self._totals)} over {self._weight.shape}"
            )
        weight = update.samples if self._weighted else 1
        for name, total in self._totals.items():
            total[update.positions] += weight * update.vectors[name].astype(np.float64)
        self._weight[update.positions] += weight
        self.holders[update.positions] += 1

    def mean(self, name: str, elsewhere: np.ndarray) -> np.ndarray:
        """Return the mean of a vector, float32, shape (N,), with ``elsewhere`` at the positions that nobody shared."""
        shared = self._weight > 0
        return np.where(shared, self._totals[name] / np.where(shared, self._weight, 1), elsewhere).astype(np.float32)


def aggregate(previous: np.ndarray, updates: Iterable[Update]) -> np.ndarray:
    """Average the values of updates, parameter by parameter, in one pass.

    >>> import numpy as np
    >>> first = Update(np.array([True, True, False]), {"values": np.float32([1, 4])}, samples=1)
    >>> second = Update(np.array([False, True, False]), {"values": np.float32([8])}, samples=3)
    >>> aggregate(np.float32([0, 0, 5]), [first, second])
    array([1., 7., 5.], dtype=float32)

    Args:
        previous: Global values, float32, shape (N,).
        updates: Updates of the same space, each with the vector ``values``; consumed one at a time.

    Returns:
        New global values, float32, shape (N,).

    Raises:
        ValueError: An update belongs to another space.
    """
    cohort = Cohort(["values"], previous.size, lambda: np.zeros(previous.size, dtype=int))
    for update in updates:
        cohort.add(update)
    return cohort.mean("values", previous)
