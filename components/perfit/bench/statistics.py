"""What was measured of a method: means over clients and seeds; intervals of means by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from perfit.bench.results import Measurements, RoundResult
from perfit.seeds import derive_seed

REPLICATES = 5000
"""Of a bootstrap."""
COVERAGE = 0.95
"""Of its intervals."""
WORSE = 1.05
"""A client with more than this multiple of a baseline's perplexity is worse off than with that."""


@dataclass(frozen=True)
class Interval:
    """A mean, and the ends of its bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain:
    """How clients fare with a method, by the ratio of their personal perplexities to those with a baseline.

    Args:
        ratio: Its geometric mean over clients and seeds, below 1 if they gain.
        worse: How many pairs of client and seed are worse off, by more than :data:`WORSE`.
        worst: The largest ratio.
    """

    ratio: Interval
    worse: int
    worst: float


@dataclass(frozen=True)
class Cost:
    """What it took a method to reach a perplexity; means over the seeds that reached it, None if none did.

    Args:
        target: The perplexity.
        reached: How many seeds did.
        rounds: The first round after which the mean personal perplexity was at the target or below.
        bytes: Of all clients up to then, both ways.
    """

    target: float
    reached: int
    rounds: float | None
    bytes: float | None


@dataclass(frozen=True)
class Point:
    """A point of a method's grid, with its results by seed."""

    values: Mapping[str, Any]
    cells: tuple[Measurements, ...]

    @property
    def failures(self) -> list[str]:
        """Why cells failed."""
        return [cell.failure for cell in self.cells if cell.failure]

    @property
    def validation(self) -> float:
        """Geometric mean of the perplexity on validation records, over seeds and clients.

        Infinite if any cell failed or has none. With few records the mean is decided by a client or two.
        """
        measured = all(cell.validation for cell in self.cells)
        return _geometric_mean(_table(cell.validation for cell in self.cells)) if measured else math.inf

    @cached_property
    def personal(self) -> np.ndarray:
        """Held-out perplexity under the last personal adapters: float64, shape (seeds, clients)."""
        return _table(cell.rounds[-1].personal for cell in self.cells)

    @cached_property
    def shared(self) -> np.ndarray | None:
        """Held-out perplexity under what clients would start from next, after the last round of which it is known.

        float64, shape (seeds, clients); None if it is known of no round.
        """
        known = [[round.shared for round in cell.rounds if round.shared] for cell in self.cells]
        return _table(rounds[-1] for rounds in known) if all(known) else None

    @property
    def worst(self) -> float:
        """Personal perplexity of a seed's worst client, mean over seeds."""
        return float(self.personal.max(axis=1).mean())

    @property
    def geometric_mean(self) -> float:
        """Of the personal perplexity, over seeds and clients: no client decides it by being far above the others."""
        return _geometric_mean(self.personal)

    @property
    def spread(self) -> float:
        """Standard deviation of the personal perplexity over a seed's clients, mean over seeds."""
        return float(self.personal.std(axis=1).mean())

    @property
    def start(self) -> float:
        """Held-out perplexity before the first round, mean over seeds and clients."""
        return _mean(cell.start for cell in self.cells)

    def by_round(self, name: str) -> np.ndarray:
        """Return ``personal`` or ``shared`` perplexities, means over clients: float64, shape (seeds, rounds).

        NaN where they were not measured.
        """
        rows = [[getattr(round, name) for round in cell.rounds] for cell in self.cells]
        return np.array([[_mean([of]) if of else math.nan for of in row] for row in rows])

    def bytes_by_round(self) -> np.ndarray:
        """Return the bytes of all clients, both ways, up to each round: int64, shape (seeds, rounds)."""
        sent = [[_sum(r, "bytes_up") + _sum(r, "bytes_down") for r in cell.rounds] for cell in self.cells]
        return np.cumsum(sent, axis=1)

    def total(self, name: str) -> float:
        """Return ``bytes_up``, ``bytes_down`` or ``seconds`` of all clients and rounds, mean over seeds."""
        return float(np.mean([sum(_sum(round, name) for round in cell.rounds) for cell in self.cells]))

    @property
    def client_seconds(self) -> float | None:
        """Wall time of one client in all rounds, mean over clients and seeds; None if it was not measured."""
        measured = all(round.seconds for cell in self.cells for round in cell.rounds)
        return self.total("seconds") / self.personal.shape[1] if measured else None

    @property
    def trainable(self) -> float:
        """Trainable parameters of a client, mean over those that took part."""
        return _mean(cell.trainable for cell in self.cells)

    @property
    def peak_memory(self) -> int | None:
        """The largest peak of any seed, in bytes."""
        peaks = [cell.peak_memory for cell in self.cells]
        return None if None in peaks else max(peaks)

    def answers(self, name: str) -> float | None:
        """Return ``exact_match`` or ``rouge_l``, mean over seeds and clients; None without answers."""
        scores = [{client: getattr(score, name) for client, score in cell.answers.items()} for cell in self.cells]
        return _mean(scores) if any(scores) else None

    def cost(self, target: float) -> Cost:
        """Return what it took to reach a mean personal perplexity."""
        hits = self.by_round("personal") <= target
        reached = hits.any(axis=1)
        if not reached.any():
            return Cost(target, 0, None, None)
        first = hits.argmax(axis=1)
        sent = self.bytes_by_round()[np.arange(len(first)), first]
        return Cost(target, int(reached.sum()), float(first[reached].mean() + 1), float(sent[reached].mean()))


def bootstrap(values: np.ndarray, keeps_clients: bool) -> Interval:
    """Return the mean and its percentile interval over clients and seeds; the same values give the same interval.

    Args:
        values: float64, shape (seeds, clients).
        keeps_clients: Whether a column is one client. Then clients are drawn once for all seeds (the pigeonhole
            bootstrap, Owen, 2007), otherwise again within each seed that was drawn.
    """
    generator = np.random.default_rng(derive_seed(0, "bootstrap"))
    seeds, clients = values.shape
    rows = 1 if keeps_clients else seeds
    means = np.empty(REPLICATES)
    for i in range(REPLICATES):
        drawn = values[generator.integers(seeds, size=seeds)]
        columns = np.broadcast_to(generator.integers(clients, size=(rows, clients)), values.shape)
        means[i] = np.take_along_axis(drawn, columns, axis=1).mean()
    low, high = np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def gain(own: np.ndarray, baseline: np.ndarray, keeps_clients: bool) -> Gain:
    """Compare perplexities with a baseline's: float64, shape (seeds, clients); ``keeps_clients`` as for a bootstrap."""
    ratios = own / baseline
    logs = bootstrap(np.log(ratios), keeps_clients)
    mean = Interval(*(math.exp(value) for value in (logs.mean, logs.low, logs.high)))
    return Gain(mean, int((ratios > WORSE).sum()), float(ratios.max()))


def _table(rows: Iterable[Mapping[str, float]]) -> np.ndarray:
    return np.array([list(row.values()) for row in rows])


def _mean(rows: Iterable[Mapping[str, float]]) -> float:
    return float(np.mean([value for row in rows for value in row.values()]))


def _geometric_mean(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))


def _sum(round: RoundResult, name: str) -> float:
    return sum(getattr(round, name).values())
