"""SCAFFOLD: control variates correct the drift of clients (Karimireddy et al., 2019, arXiv 1910.06378, algorithm 1).

Each step adds c - c_i to the gradient. A client's new control variate is the mean of its own gradients over the round:
under plain gradient descent that is the paper's option II, c_i - c + (x - y_i) / (K * rate), and it stays in units of a
gradient under AdamW too. The server's c moves by the mean change, times the share of clients that took part. As in the
paper each client counts the same, so that c is the mean of all c_i and the corrections cancel. Where a round exchanges
nothing with a client, neither c nor c_i moves.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from perfit.aggregation import Cohort
from perfit.methods.method import VALUES, AfterTuning, ClientStart, Method, MethodOptions, Tuned, Vectors, keep_mean
from perfit.space import LoraSpace

CONTROL = "control"


class Options(MethodOptions):
    """SCAFFOLD has no options: the global step size is 1."""

    name: Literal["scaffold"] = "scaffold"


def init(values: np.ndarray) -> Vectors:
    """Start from a control variate of zero."""
    return {VALUES: values, CONTROL: np.zeros_like(values)}


def correct_drift(options: Options, values: Any, start: ClientStart) -> Any:
    """Return c - c_i."""
    return start.received[CONTROL] - start.kept.get(CONTROL, 0)


def renew_control(options: Options, start: ClientStart, tuned: Tuned) -> AfterTuning:
    """Keep the new control variate, and share its change."""
    change = tuned.mean_gradient - start.kept.get(CONTROL, np.float32(0))
    return AfterTuning(shared={CONTROL: change}, kept={CONTROL: tuned.mean_gradient})


def merge(options: Options, space: LoraSpace, state: Vectors, cohort: Cohort) -> Vectors:
    """Average values, and move c by the mean change times (clients that took part / all clients)."""
    share = cohort.holders / np.maximum(cohort.population(), 1)
    change = cohort.average(CONTROL, np.float32(0)) * share
    return {**keep_mean(options, space, state, cohort), CONTROL: (state[CONTROL] + change).astype(np.float32)}


METHOD = Method(
    "SCAFFOLD",
    "arXiv 1910.06378",
    Options,
    correction=correct_drift,
    after=renew_control,
    init=init,
    merge=merge,
    uploads=(VALUES, CONTROL),
    downloads=(VALUES, CONTROL),
    weighted=False,
)
