"""Personalised parameter-wise aggregation (PerFIT, arXiv 2402.16919, section 3).

The new global value of a position is the mean over the clients that hold it, weighted by their sample counts; a
position that no client held keeps its value. With masks that are all the same this is the weighted mean of FedIT
(arXiv 2305.05644).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from perfit.adapter import SparseAdapter


@dataclass(frozen=True)
class Contribution:
    """One client's update and its weight, the number of its training samples."""

    adapter: SparseAdapter
    samples: int


def aggregate(previous: np.ndarray, contributions: Iterable[Contribution]) -> np.ndarray:
    """Average parameter by parameter, in one pass over the contributions.

    Sums run in float64: the product of a float32 value and a sample count is then exact, so that a position held by one
    client keeps that client's very bits. Memory is 16 bytes a position, whatever the number of clients.

    Args:
        previous: Global values, float32, shape (N,).
        contributions: Updates in the same space; consumed one at a time.

    Returns:
        New global values, float32, shape (N,).

    Raises:
        ValueError: A contribution has no samples or another space.
    """
    total = np.full(previous.shape, -0.0)  # to which even -0.0 adds without losing its sign
    weight = np.zeros(previous.shape, dtype=np.float64)
    for contribution in contributions:
        adapter, samples = contribution.adapter, contribution.samples
        if samples < 1 or adapter.mask.shape != previous.shape:
            raise ValueError(f"cannot average {samples} samples over {adapter.mask.shape} in {previous.shape}")
        total[adapter.mask] += samples * adapter.values.astype(np.float64)
        weight[adapter.mask] += samples
    held = weight > 0
    return np.where(held, total / np.where(held, weight, 1), previous).astype(np.float32)
