"""FedYogi: Yogi at the server (Reddi et al., 2020, arXiv 2003.00295, algorithm 2).

FedAdam with a second moment that moves by no more than D^2: v <- v - (1 - b2) * D^2 * sign(v - D^2).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from perfit.aggregation import Cohort
from perfit.methods import fedadam
from perfit.methods.method import Method, Vectors
from perfit.space import LoraSpace


class Options(fedadam.Options):
    """The same options as FedAdam's."""

    name: Literal["fedyogi"] = "fedyogi"


def merge(options: Options, space: LoraSpace, state: Vectors, cohort: Cohort) -> Vectors:
    """Take one step of Yogi."""

    def second_moment(v: np.ndarray, square: np.ndarray) -> np.ndarray:
        return v - (1 - options.beta2) * square * np.sign(v - square)

    return fedadam.adaptive_step(options, state, cohort, second_moment)


METHOD = Method("FedYogi", "arXiv 2003.00295", Options, init=fedadam.init, merge=merge)
