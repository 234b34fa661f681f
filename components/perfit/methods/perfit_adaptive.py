"""PerFIT whose clients choose, round by round, how much of the average they take, and how much of their tuning.

PerFIT's clients start each round from the server's averages, which undo part of their tuning where data differ, and end
it with whatever the last step gave. Here a client starts from a mix of its own last values and the averages, and ends
with a mix of what it started from and what it has tuned. Validation records of its own choose the weights. A few of
them cannot tell which of {0, 1/4, 1/2, 3/4, 1} is best, so the choice is bagged (Breiman, 1996): bootstrap samples of
the records choose, and the mean of their choices is the weight. Where they agree, it is theirs; where they do not, it
lies between.

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


def bagged_mix(options: Options, latest: np.ndarray, earlier: np.ndarray, score: Score) -> Mix:
    """Return the mix of the mean of the weights that bootstrap samples of the validation records choose.

    Each sample chooses the weight with the lowest mean loss (nats per token), of equal ones the first. The same losses
    give the same weight.
    """
    losses = np.array([score(_mixed(latest, earlier, weight)) for weight in WEIGHTS])
    generator, records = np.random.default_rng(0), losses.shape[1]
    chosen = []
    for _ in range(SAMPLES):
        drawn = generator.multinomial(records, np.full(records, 1 / records))
        with np.errstate(invalid="ignore"):
            means = losses[:, :, 0] @ drawn / (losses[:, :, 1] @ drawn)
        chosen.append(WEIGHTS[np.argmin(np.where(np.isnan(means), np.inf, means))])
    weight = float(np.mean(chosen))
    return Mix(_mixed(latest, earlier, weight), weight)


def _mixed(latest: np.ndarray, earlier: np.ndarray, weight: float) -> np.ndarray:
    return np.float32(weight) * latest + np.float32(1 - weight) * earlier


METHOD = Method(
    "PerFIT-adaptive",
    "this project",
    Options,
    search=search,
    start=bagged_mix,
    end=bagged_mix,
)
