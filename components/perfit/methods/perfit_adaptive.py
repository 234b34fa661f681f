"""PerFIT whose clients choose, round by round, how much of the average they take, and how much of their tuning.

PerFIT's clients start each round from the server's averages, which undo part of their tuning where data differ, and end
it with whatever the last step gave. Here a client starts from a mix of its own last values and the averages, and ends
with a mix of what it started from and what it has tuned. Each mix has the weight in {0, 1/4, 1/2, 3/4, 1} under which
the loss on the client's validation records is lowest.

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
"""Of a client's latest values; of equal losses the first is taken."""


class Options(PerFITOptions):
    """How clients search, as for PerFIT."""

    name: Literal["perfit-adaptive"] = "perfit-adaptive"


def lowest_loss(options: Options, latest: np.ndarray, earlier: np.ndarray, score: Score) -> Mix:
    """Return the mix with the lowest validation loss, which must be a number."""
    mixes = [Mix(np.float32(weight) * latest + np.float32(1 - weight) * earlier, weight) for weight in WEIGHTS]
    losses = [score(mix.values) for mix in mixes]
    return mixes[int(np.argmin(np.nan_to_num(losses, nan=np.inf)))]


METHOD = Method("PerFIT-adaptive", "this project", Options, search=search, start=lowest_loss, end=lowest_loss)
