"""Statistics of masks: how much personal architectures overlap, and where they hold their positions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from perfit.space import LoraSpace

_BITS_AT_ONCE = 2**24
"""Bits unpacked to float32 at a time: 64 MiB. Float32 still counts that many exactly."""


def jaccard(masks: Iterable[np.ndarray]) -> np.ndarray:
    """Return the overlap of each pair of masks: positions held by both over positions held by either.

    Masks are packed as they arrive, so a lazy iterable takes one bit per position and client.

    Args:
        masks: n bool arrays, shape (N,), none of them empty.

    Returns:
        float64, shape (n, n), symmetric, ones on the diagonal.

    Raises:
        ValueError: There is no mask, or the masks differ in length.
    """
    packed = np.stack([np.packbits(mask) for mask in masks])
    clients, width = packed.shape
    both = np.zeros((clients, clients))
    step = max(1, _BITS_AT_ONCE // (8 * clients))
    for start in range(0, width, step):
        bits = np.unpackbits(packed[:, start : start + step], axis=1).astype(np.float32)
        both += bits @ bits.T
    sizes = np.diag(both)
    return both / (sizes[:, None] + sizes[None, :] - both)


def chance_overlap(budgets: np.ndarray, positions: int) -> np.ndarray:
    """Return the overlap expected of random masks, for each pair of budgets.

    Masks that hold fractions p and q of the space share p*q of it by chance and cover p + q - p*q; the ratio of the two
    is the expected Jaccard index, up to a term that is negligible in spaces of more than a few hundred positions.

    Args:
        budgets: Positions that each client holds, at least 1, shape (n,).
        positions: Size N of the space.

    Returns:
        float64, shape (n, n).
    """
    fractions = np.asarray(budgets, dtype=np.float64) / positions
    both = fractions[:, None] * fractions[None, :]
    return both / (fractions[:, None] + fractions[None, :] - both)


def densities(space: LoraSpace, masks: Iterable[np.ndarray]) -> np.ndarray:
    """Return the fraction of positions that each client holds in each adapted module.

    Args:
        space: The expanded space of N positions.
        masks: n bool arrays, shape (N,).

    Returns:
        float64, shape (n, modules, 3): the whole module, its A, its B; modules in the order of the space.
    """
    starts = [part.start for part in space.slices.values()]
    counts = np.array([np.add.reduceat(mask, starts, dtype=np.int64) for mask in masks])
    sizes = np.array([matrix.size for matrix in space.matrices])
    counts, sizes = counts.reshape(len(counts), -1, 2), sizes.reshape(-1, 2)
    whole = counts.sum(axis=2) / sizes.sum(axis=1)
    return np.concatenate([whole[:, :, None], counts / sizes], axis=2)
