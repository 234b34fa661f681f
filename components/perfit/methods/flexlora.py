"""FlexLoRA: the server averages products BA and redistributes the mean by its SVD (Bai et al., 2024, arXiv 2402.11505).

The mean of the products over all clients, weighted by samples, is U S V^T; B becomes U S and A becomes V^T, largest
singular values first. A client of rank r takes the first r: the best approximation of rank r.

The mean is exact, and never a full matrix: it is the product of the clients' factors side by side, and their thin QR
decompositions leave a small matrix to decompose.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from perfit.aggregation import Cohort
from perfit.methods.method import VALUES, Method, MethodOptions, Vectors
from perfit.methods.products import Module, modules, shared_factors
from perfit.space import LoraSpace


class Options(MethodOptions):
    """FlexLoRA has no options."""

    name: Literal["flexlora"] = "flexlora"


def merge(options: Options, space: LoraSpace, state: Vectors, cohort: Cohort) -> Vectors:
    """Decompose the mean product of each module. Ranks that it does not need have B = 0, and keep their A."""
    if not cohort.shared.any():
        return state
    values = state[VALUES].copy()
    for module in modules(space):
        left, right = decompose(*mean_product(cohort, module))
        rank = min(space.rank, len(right))
        b, a = module.factors(values[module.part])
        b[:, :rank], b[:, rank:], a[:rank] = left[:, :rank], 0, right[:rank]
    return {**state, VALUES: values}


def mean_product(cohort: Cohort, module: Module) -> tuple[np.ndarray, np.ndarray]:
    """Return factors of the mean of all clients' products, float64, shapes (rows, k) and (k, columns).

    Clients' factors are collected and, before k is more than twice the rank that a matrix of this shape can have,
    decomposed: so memory does not grow with the number of clients.
    """
    lefts, rights, total = [np.zeros((module.rows, 0))], [np.zeros((0, module.columns))], 0
    for b, a, weight in shared_factors(cohort, module):
        if sum(map(len, rights)) + len(a) > 2 * min(module.rows, module.columns):
            left, right = decompose(np.hstack(lefts), np.vstack(rights))
            lefts, rights = [left], [right]
        lefts.append(weight * b)
        rights.append(a)
        total += weight
    return np.hstack(lefts) / total, np.vstack(rights)


def decompose(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return U S and V^T of the SVD of a product, float64, without singular values that are zero but for rounding.

    Args:
        left: float64, shape (rows, k).
        right: float64, shape (k, columns).
    """
    q, r = np.linalg.qr(left)
    p, t = np.linalg.qr(right.T)
    u, s, vt = np.linalg.svd(r @ t.T, full_matrices=False)
    kept = s > s.max(initial=0) * max(len(left), len(right.T)) * np.finfo(np.float64).eps
    return q @ (u * s)[:, kept], vt[kept] @ p.T


METHOD = Method("FlexLoRA", "arXiv 2402.11505", Options, merge=merge, by_position=False)
