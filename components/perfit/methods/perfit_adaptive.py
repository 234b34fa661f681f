"""PerFIT whose clients choose, round by round, how much of the average they take, and how much of their tuning.

PerFIT's clients start each round from the server's averages, which undo part of their tuning where data differ, and end
it with whatever the last step gave. Here a client starts from a mix of its own last values and the averages, and ends
with a mix of what it started from and what it has tuned. What it has tuned is what it uploads: averages do well by the
steps of all clients, also of those that give most of their own up.

Validation records of its own choose the weights. A few of them cannot tell which of {0, 1/4, 1/2, 3/4, 1} is best, so
the choice is bagged (Breiman, 1996): bootstrap samples of the records choose. Of a client's tuning the weight is the
mean of their choices; of its own values, which have been chosen by the same records before and so look better on them
than they are, the mean of the lowest quarter. Where all samples agree, the weight is theirs.

The line between own and shared values is that of APFL (Deng et al., 2020, arXiv 2003.13461), which trains on it and
moves its weight by a gradient on training records. docs/methods.md says what else was tried.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from perfit.methods.method import Method, Mix, Score
from perfit.methods.perfit import Options as PerFITOptions
from perfit.methods.perfit import search

WEIGHTS = (0, 0.25, 0.5, 0.75, 1)
"""Of a client's latest values."""
SAMPLES = 1000
"""Of the validation records, with replacement."""


class Options(PerFITOptions):
    """How clients search, as for PerFIT."""

    name: Literal["perfit-adaptive"] = "perfit-adaptive"


def start_mix(options: Options, own: np.ndarray, shared: np.ndarray, score: Score) -> Mix:
    """Return the mix of own and shared values: the mean of the lowest quarter of the weights that samples choose."""
    return _mix(own, shared, float(np.mean(chosen_weights(own, shared, score)[: SAMPLES // 4])))


def end_mix(options: Options, tuned: np.ndarray, start: np.ndarray, score: Score) -> Mix:
    """Return the mix of tuned values and those before: the mean of the weights that samples choose."""
    return _mix(tuned, start, float(np.mean(chosen_weights(tuned, start, score))))


def chosen_weights(latest: np.ndarray, earlier: np.ndarray, score: Score) -> np.ndarray:
    """Return the weights of ``latest`` that bootstrap samples of the validation records choose, in ascending order.

    Each sample chooses the weight with the lowest mean loss (nats per token), of equal ones the first. The same losses
    give the same weights: float64, shape (SAMPLES,).
    """
    losses = np.array([score(_mix(latest, earlier, weight).values) for weight in WEIGHTS])
    generator, records = np.random.default_rng(0), losses.shape[1]
    drawn = generator.multinomial(records, np.full(records, 1 / records), size=SAMPLES).T
    with np.errstate(invalid="ignore"):
        means = losses[:, :, 0] @ drawn / (losses[:, :, 1] @ drawn)
    return np.sort(np.array(WEIGHTS)[np.argmin(np.where(np.isnan(means), np.inf, means), axis=0)])


def _mix(latest: np.ndarray, earlier: np.ndarray, weight: float) -> Mix:
    return Mix(np.float32(weight) * latest + np.float32(1 - weight) * earlier, weight)


METHOD = Method(
    "PerFIT-adaptive",
    "this project",
    Options,
    search=search,
    start=start_mix,
    end=end_mix,
)
