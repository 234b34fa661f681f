"""FedAvgM: momentum at the server (Hsu et al., 2019, arXiv 1909.06335; Reddi et al., 2020, arXiv 2003.00295).

With D the mean of the clients' values minus the global ones: m <- momentum * m + D, x <- x + rate * m. A position that
nobody shared this round keeps both.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from perfit.aggregation import Cohort
from perfit.methods.method import VALUES, Method, MethodOptions, Vectors
from perfit.space import LoraSpace

MOMENTUM = "momentum"


class Options(MethodOptions):
    """Step size and momentum of the server; rate 1 with momentum 0 is FedIT."""

    name: Literal["fedavgm"] = "fedavgm"
    server_learning_rate: float = Field(default=1.0, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)


def init(values: np.ndarray) -> Vectors:
    """Start from a momentum of zero."""
    return {VALUES: values, MOMENTUM: np.zeros_like(values)}


def merge(options: Options, space: LoraSpace, state: Vectors, cohort: Cohort) -> Vectors:
    """Take one step of gradient descent with momentum, where D is the negative gradient."""
    shared = cohort.shared
    mean = cohort.average(VALUES, state[VALUES])
    step = mean - state[VALUES]
    momentum = np.where(shared, options.momentum * state[MOMENTUM] + step, state[MOMENTUM])
    # x + rate * m, written from the mean: at rate 1 without momentum it is the mean bit for bit.
    values = np.where(shared, mean - (step - options.server_learning_rate * momentum), state[VALUES])
    return {VALUES: values.astype(np.float32), MOMENTUM: momentum.astype(np.float32)}


METHOD = Method("FedAvgM", "arXiv 1909.06335", Options, init=init, merge=merge)
