"""How far one client can move a round: a cap on its weight, and a bound on its change.

A client's weight is what it says of its records, and its values are whatever it sends. Both are held against the other
clients of the round. With fewer than three updates there is nobody to tell which of them is out of line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from perfit.aggregation import Update

LEAST_UPDATES = 3


@dataclass(frozen=True)
class Measure:
    """What is compared between the updates of a round.

    Args:
        samples: Training records of the client.
        changes: Root mean square of the change in each vector, by name.
    """

    samples: int
    changes: Mapping[str, float]


@dataclass(frozen=True)
class Scale:
    """How an update counts.

    Args:
        weight: In the mean.
        factors: What its change in each vector is multiplied by, by name; 1 where it is not there.
    """

    weight: int
    factors: Mapping[str, float] = field(default_factory=dict)

    def limits(self, measured: Measure, weighted: bool) -> bool:
        """Whether the update counts for less than it would without limits."""
        return bool(self.factors) or (weighted and self.weight < measured.samples)


def measure(update: Update, base: Mapping[str, np.ndarray]) -> Measure:
    """Measure an update.

    Args:
        update: Of a client.
        base: What its vectors changed from, float32, shape (N,), by name; a vector that is missing there is a change.
    """
    changes = {name: _change(update, name, base) for name in update.vectors}
    return Measure(update.samples, {name: float(np.sqrt(np.mean(change**2))) for name, change in changes.items()})


def scaled(update: Update, base: Mapping[str, np.ndarray], scale: Scale) -> Update:
    """Return an update with its changes multiplied by the scale's factors, and the scale's weight for its samples."""
    vectors = dict(update.vectors)
    for name, factor in scale.factors.items():
        start = base[name][update.positions].astype(np.float64) if name in base else 0.0
        vectors[name] = (start + factor * _change(update, name, base)).astype(np.float32)
    return Update(update.positions, vectors, scale.weight)


def scales(
    measures: Mapping[str, Measure], *, max_share: float, clip: float | None, weighted: bool
) -> dict[str, Scale]:
    """Return how each update of a round counts.

    Args:
        measures: Of the updates, by client.
        max_share: Of the sum of all weights that one client has at most.
        clip: A change in a vector is at most this multiple of the median over clients; None for any.
        weighted: Whether clients count by their samples, or each the same.
    """
    weights = {client: found.samples if weighted else 1 for client, found in measures.items()}
    if len(measures) < LEAST_UPDATES:
        return {client: Scale(weight) for client, weight in weights.items()}
    cap = _weight_cap(list(weights.values()), max_share)
    factors: dict[str, dict[str, float]] = {client: {} for client in measures}
    names = {name for found in measures.values() for name in found.changes} if clip else set()
    for name in sorted(names):
        limit = clip * float(np.median([found.changes[name] for found in measures.values()]))
        for client, found in measures.items():
            if 0 < limit < found.changes[name]:
                factors[client][name] = limit / found.changes[name]
    return {client: Scale(min(weight, cap), factors[client]) for client, weight in weights.items()}


def _weight_cap(weights: list[int], max_share: float) -> int:
    """The largest cap that is at most ``max_share`` of the sum of the weights when they are cut to it; at least 1."""
    low, high = 1, max(weights)
    while low < high:
        cap = (low + high + 1) // 2
        if cap <= max_share * sum(min(weight, cap) for weight in weights):
            low = cap
        else:
            high = cap - 1
    return low


def _change(update: Update, name: str, base: Mapping[str, np.ndarray]) -> np.ndarray:
    vector = update.vectors[name].astype(np.float64)
    return vector - base[name][update.positions] if name in base else vector
