"""PerFIT whose clients choose, round by round, how much of the average they take, and how much of their tuning.

PerFIT's clients start each round from the server's averages, which undo part of their tuning where data differ, and end
it with whatever the last step gave. Here a client starts from a mix of its own last values and the averages, and ends
with a mix of what it started from and what it has tuned, each with a weight in {0, 1/4, 1/2, 3/4, 1} that validation
records of its own choose. It starts with the most of the averages that is not evidently worse than the best mix: by
more than one standard error of the paired difference (as Breiman et al., 1984, choose by few records). It ends with the
lowest loss.

The line between own and shared values is that of APFL (Deng et al., 2020, arXiv 2003.13461), which trains on it and
moves its weight by a gradient on training records. docs/methods.md says what else was tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from perfit.methods.method import Method, Mix, Score
from perfit.methods.perfit import Options as PerFITOptions
from perfit.methods.perfit import search

WEIGHTS = (0, 0.25, 0.5, 0.75, 1)
"""Of a client's latest values; of equal losses the first is taken."""


class Options(PerFITOptions):
    """How clients search, as for PerFIT."""

    name: Literal["perfit-adaptive"] = "perfit-adaptive"


def as_shared_as_possible(options: Options, own: np.ndarray, shared: np.ndarray, score: Score) -> Mix:
    """Return the mix with the least of a client's own values that is not evidently worse than the best."""
    mixes, means, losses = _scored(own, shared, WEIGHTS, score)
    best = _least(means)
    with np.errstate(invalid="ignore"):
        close = [means[i] - means[best] <= _standard_error(losses[i], losses[best]) for i in range(len(mixes))]
    return mixes[close.index(True)] if np.isfinite(means[best]) else mixes[0]


def lowest_loss(options: Options, tuned: np.ndarray, start: np.ndarray, score: Score) -> Mix:
    """Return the mix with the lowest loss; of equal ones the one with less of the tuned values."""
    mixes, means, _ = _scored(tuned, start, WEIGHTS, score)
    return mixes[_least(means)]


def _scored(
    latest: np.ndarray, earlier: np.ndarray, weights: Sequence[float], score: Score
) -> tuple[list[Mix], np.ndarray, np.ndarray]:
    """Return the mixes, their mean losses (nats per token), and those of each record, as :data:`Score` has them."""
    mixes = [Mix(np.float32(weight) * latest + np.float32(1 - weight) * earlier, weight) for weight in weights]
    losses = np.array([score(mix.values) for mix in mixes])
    with np.errstate(invalid="ignore"):
        return mixes, losses[:, :, 0].sum(axis=1) / losses[:, :, 1].sum(axis=1), losses


def _least(means: np.ndarray) -> int:
    return int(np.argmin(np.where(np.isnan(means), np.inf, means)))


def _standard_error(one: np.ndarray, other: np.ndarray) -> float:
    """Return the standard error of the difference of two mean losses over the same records (a ratio of sums)."""
    difference, tokens = one[:, 0] - other[:, 0], one[:, 1]
    if len(tokens) < 2:
        return np.inf
    rest = difference - tokens * difference.sum() / tokens.sum()
    return float(np.sqrt(len(rest) * rest.var(ddof=1)) / tokens.sum())


METHOD = Method(
    "PerFIT-adaptive",
    "this project",
    Options,
    search=search,
    start=as_shared_as_possible,
    end=lowest_loss,
)
