"""Limits the influence of one client on a round: a cap on its weight, and a bound on its change.

Clients report their own weights and may send any values. Both are therefore compared with those of the round's other
clients. With fewer than three updates it is impossible to tell which one is the outlier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from perfit.updates import Update

MIN_UPDATES = 3
_BYTES = 2**17
"""Of a mask that are looked through at once: up to 4 MB of values."""


@dataclass(frozen=True)
class Measure:
    """The quantities of an update that are compared within a round.

    Args:
        samples: Number of the client's training records.
        changes: Root mean square of the change in each vector, by name.
        largest: Largest magnitude in each vector, by name; not finite if one of its values is not.
    """

    samples: int
    changes: Mapping[str, float]
    largest: Mapping[str, float]


@dataclass(frozen=True)
class Scale:
    """How an update counts.

    Args:
        weight: Its weight in the mean.
        factors: Factors of its changes, by the vector's name; 1 for vectors that are missing here.
    """

    weight: int
    factors: Mapping[str, float] = field(default_factory=dict)

    def limits(self, measured: Measure, weighted: bool) -> bool:
        """Whether the update counts for less than it would without limits."""
        return bool(self.factors) or (weighted and self.weight < measured.samples)


def measure(update: Update, base: Mapping[str, np.ndarray], release: Callable[[], None] = lambda: None) -> Measure:
    """Measure an update, in one pass over each vector.

    Args:
        update: A client's update.
        base: The vectors before the change, float32, shape (N,), by name; a vector that is missing here is a change
            already.
        release: Called every few megabytes.
    """
    empty = np.zeros(0, np.float32)
    found = {n: _examine(update.mask, values, base.get(n, empty), release) for n, values in update.vectors.items()}
    return measure_of(update.samples, found)


def measure_of(samples: int, found: Mapping[str, tuple[int, float, int]]) -> Measure:
    """Return the measure of an update, from what :func:`perfit.kernels.examine` returns for each of its vectors."""
    changes = {name: root_mean_square(squares, count) for name, (_, squares, count) in found.items()}
    largest = {name: float(np.int32(bits).view(np.float32)) for name, (bits, _, _) in found.items()}
    return Measure(samples, changes, largest)


def _examine(
    mask: np.ndarray, values: np.ndarray, base: np.ndarray, release: Callable[[], None]
) -> tuple[int, float, int]:
    from perfit.kernels import examine

    largest, squares, before = 0, 0.0, 0
    for byte in range(0, mask.size, _BYTES):
        part = base[8 * byte : 8 * (byte + _BYTES)]
        top, some, count = examine(mask[byte : byte + _BYTES], values[before:], part)
        largest, squares, before = max(largest, top), squares + some, before + count
        release()
    return largest, squares, before


def root_mean_square(squares: float, count: int) -> float:
    """Return the root mean square of numbers whose squares have this sum, 0 if there are none.

    It has six digits, so that machines that add in another order find the same.
    """
    return float(f"{math.sqrt(squares / count):.6g}") if count else 0.0


def scales(
    measures: Mapping[str, Measure], *, max_share: float, clip: float | None, weighted: bool
) -> dict[str, Scale]:
    """Return how each update of a round counts.

    Args:
        measures: Measures of the updates, by client.
        max_share: Maximum share of one client in the sum of all weights.
        clip: A change in a vector is at most this multiple of the median over clients; None for no limit.
        weighted: Whether clients count by their samples; otherwise all count the same.
    """
    claimed = [measured.samples if weighted else 1 for measured in measures.values()]
    weights = dict(zip(measures, capped(claimed, max_share), strict=True))
    if len(measures) < MIN_UPDATES:
        return {client: Scale(weight) for client, weight in weights.items()}
    factors: dict[str, dict[str, float]] = {client: {} for client in measures}
    names = {name for measured in measures.values() for name in measured.changes} if clip else set()
    for name in sorted(names):
        limit = clip * float(np.median([measured.changes[name] for measured in measures.values()]))
        for client, measured in measures.items():
            if 0 < limit < measured.changes[name]:
                factors[client][name] = limit / measured.changes[name]
    return {client: Scale(weight, factors[client]) for client, weight in weights.items()}


def capped(weights: Sequence[int], max_share: float) -> list[int]:
    """Return the weights of a round's updates, of which none is more than ``max_share`` of their sum.

    As far as positive integers go, and only if there are at least three.
    """
    if len(weights) < MIN_UPDATES:
        return list(weights)
    cap = _weight_cap(weights, max_share)
    return [min(weight, cap) for weight in weights]


def _weight_cap(weights: Sequence[int], max_share: float) -> int:
    """Return the largest cap that is at most ``max_share`` of the sum of the capped weights; at least 1."""
    low, high = 1, max(weights)
    while low < high:
        cap = (low + high + 1) // 2
        if cap <= max_share * sum(min(weight, cap) for weight in weights):
            low = cap
        else:
            high = cap - 1
    return low
