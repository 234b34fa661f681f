"""PerFIT whose clients choose, round by round, how much of the average they start from.

PerFIT's clients start each round from the server's averages, which undo part of their tuning where data differ. Here
a client mixes its own last values with them, by the weight in {0, 1/4, 1/2, 3/4, 1} under which the loss on its
validation records is lowest: 0 is PerFIT's start, 1 leaves the average alone in this round. Whatever it chooses, it
uploads what it has tuned.

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
"""Of a client's own values; of equal losses the first is taken."""


class Options(PerFITOptions):
    """How clients search, as for PerFIT."""

    name: Literal["perfit-adaptive"] = "perfit-adaptive"


def lowest_loss(options: Options, own: np.ndarray, shared: np.ndarray, score: Score) -> Mix:
    """Mix own and shared values by the weight with the lowest validation loss, which must be a number."""
    mixes = [Mix(np.float32(weight) * own + np.float32(1 - weight) * shared, weight) for weight in WEIGHTS]
    losses = [score(mix.values) for mix in mixes]
    return mixes[int(np.argmin(np.nan_to_num(losses, nan=np.inf)))]


METHOD = Method("PerFIT-adaptive", "this project", Options, search=search, start=lowest_loss)
