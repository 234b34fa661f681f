"""HetLoRA: clients of unequal rank, weighted by the norms of their products (Cho et al., 2024, arXiv 2401.06432).

A and B are padded with zeros to the largest rank and averaged over all clients. A client weighs as much as the
Frobenius norm of its product BA, over all adapted modules: a large norm is taken for much information. The next round
truncates the mean to each client's rank.

The paper's clients may also prune their own ranks. Here they cannot: a client's architecture, and with it the budget
against which the server verifies its update, is fixed before the round.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from perfit.aggregation import Cohort
from perfit.methods.method import VALUES, Method, MethodOptions, Vectors
from perfit.methods.products import modules, shared_factors
from perfit.space import LoraSpace

_UNITS = 1_000_000
"""The largest weight before it is capped: six digits, so that machines that add in another order find the same."""


class Options(MethodOptions):
    """HetLoRA has no options."""

    name: Literal["hetlora"] = "hetlora"


def merge(options: Options, space: LoraSpace, state: Vectors, cohort: Cohort) -> Vectors:
    """Average values, which are zero where a client shares nothing, by the norms of the clients' products."""
    weights = cohort.capped(norm_weights(space, cohort))
    total = np.zeros(space.size)
    for (positions, values, _), weight in zip(cohort.parts(VALUES, slice(0, space.size)), weights, strict=True):
        total[positions] += weight * values.astype(np.float64)
    mean = np.divide(total, sum(weights), out=state[VALUES].astype(np.float64), where=cohort.shared)
    return {**state, VALUES: mean.astype(np.float32)}


def norm_weights(space: LoraSpace, cohort: Cohort) -> list[int]:
    """Return each client's norm in millionths of the largest, in the order of their ids; all equal if none has any."""
    squares = np.zeros(len(cohort.measures))
    for module in modules(space):  # |BA|^2 is the trace of (B^T B)(A A^T)
        squares += [np.sum((b.T @ b) * (a @ a.T)) for b, a, _ in shared_factors(cohort, module)]
    norms = np.sqrt(squares.clip(min=0))
    largest = norms.max(initial=0)
    return np.rint(norms / largest * _UNITS).astype(int).tolist() if largest > 0 else [1] * norms.size


METHOD = Method("HetLoRA", "arXiv 2401.06432", Options, merge=merge, by_position=False, weighted=False)
