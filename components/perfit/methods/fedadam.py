"""FedAdam: Adam at the server (Reddi et al., 2020, arXiv 2003.00295, algorithm 2).

With D the mean of the clients' values minus the global ones: m <- b1 * m + (1 - b1) * D, v <- b2 * v + (1 - b2) * D^2,
x <- x + rate * m / (sqrt(v) + tau), v starting at tau^2. A position that nobody shared this round keeps all three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field

from perfit.aggregation import Cohort
from perfit.methods.method import VALUES, Method, MethodOptions, Vectors
from perfit.space import LoraSpace

FIRST, SECOND = "first_moment", "second_moment"
TAU = 1e-3
"""Degree of adaptivity; the paper's choice in most of its experiments."""


class Options(MethodOptions):
    """Step size and decay of the moments at the server."""

    name: Literal["fedadam"] = "fedadam"
    server_learning_rate: float = Field(default=0.01, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)


def init(values: np.ndarray) -> Vectors:
    """Start from moments of 0 and tau^2."""
    return {VALUES: values, FIRST: np.zeros_like(values), SECOND: np.full_like(values, TAU**2)}


def adaptive_step(
    options: Options,
    state: Vectors,
    cohort: Cohort,
    second_moment: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Vectors:
    """Take one step; ``second_moment`` gives the next v from the last one and D^2."""
    shared = cohort.shared
    step = cohort.average(VALUES, state[VALUES]) - state[VALUES]
    first = options.beta1 * state[FIRST] + (1 - options.beta1) * step
    second = second_moment(state[SECOND], step**2)
    values = state[VALUES] + options.server_learning_rate * first / (np.sqrt(second) + TAU)
    after = {VALUES: values, FIRST: first, SECOND: second}
    return {name: np.where(shared, vector, state[name]).astype(np.float32) for name, vector in after.items()}


def merge(options: Options, space: LoraSpace, state: Vectors, cohort: Cohort) -> Vectors:
    """Take one step of Adam."""
    return adaptive_step(options, state, cohort, lambda v, square: options.beta2 * v + (1 - options.beta2) * square)


METHOD = Method("FedAdam", "arXiv 2003.00295", Options, init=init, merge=merge)
