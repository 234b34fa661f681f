"""Pruning to exact budgets, and the cubic schedule of the search.

The schedule is that of Zhu & Gupta (2017, arXiv 1710.01878): pruning is fast while many positions are redundant, and
slows down towards the budget.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from perfit.errors import PerfitError
from perfit.space import LoraSpace

Scope = Literal["matrix", "layer", "global"]


def cubic_schedule(search_steps: int, warmup_steps: int, iterations: int) -> dict[int, float]:
    """Return, for each step (from 1) that prunes, the fraction of the redundant positions that remains after it.

    The prunings are spread evenly over the steps after the warm-up; the last one is in the last step and leaves 0.

    Raises:
        PerfitError: There are more prunings than steps after the warm-up.
    """
    room = search_steps - warmup_steps
    if not 1 <= iterations <= room:
        raise PerfitError(
            f"method.pruning_iterations is {iterations}, but {room} of {search_steps} search steps follow the warm-up",
            f"use 1 to {max(room, 1)} pruning iterations, or more method.search_steps",
        )
    return {warmup_steps + -(-room * i // iterations): (1 - i / iterations) ** 3 for i in range(1, iterations + 1)}


def groups(space: LoraSpace, scope: Scope) -> list[slice]:
    """Return the parts of the space within which positions compete: each matrix or module, or the whole space."""
    parts = {"matrix": space.slices, "layer": space.layers(), "global": {"": slice(0, space.size)}}
    return list(parts[scope].values())


def dead_layers(space: LoraSpace, mask: np.ndarray) -> list[str]:
    """Return the adapted modules of which a mask holds only A or only B: their product is zero for ever.

    Args:
        space: The expanded space of N positions.
        mask: bool, shape (N,).
    """
    held = {matrix: count > 0 for matrix, count in zip(space.matrices, space.counts(mask).values(), strict=True)}
    sides: dict[str, set[bool]] = {}
    for matrix, is_held in held.items():
        sides.setdefault(matrix.layer, set()).add(is_held)
    return [layer for layer, both in sides.items() if len(both) == 2]


def keep_highest(scores: np.ndarray, candidates: np.ndarray, keep: int, tie_break: np.ndarray) -> np.ndarray:
    """Return the mask of exactly ``keep`` candidates, those with the highest scores.

    Among candidates that tie at the threshold, those with the lowest ``tie_break`` are kept.

    Args:
        scores: float, shape (n,), finite.
        candidates: bool, shape (n,).
        keep: At most the number of candidates.
        tie_break: Distinct integers, shape (n,).

    Raises:
        ValueError: There are fewer candidates than ``keep``, or a score is not finite.
    """
    alive = np.flatnonzero(candidates)
    if keep > alive.size:
        raise ValueError(f"cannot keep {keep} of {alive.size} positions")
    if not np.isfinite(scores[alive]).all():
        raise ValueError("a score is not finite")
    mask = np.zeros(candidates.shape, dtype=bool)
    if keep == 0:
        return mask
    alive_scores = scores[alive]
    threshold = np.partition(alive_scores, alive.size - keep)[alive.size - keep]
    above = alive[alive_scores > threshold]
    tied = alive[alive_scores == threshold]
    tied = tied[np.argsort(tie_break[tied])][: keep - above.size]
    mask[above] = True
    mask[tied] = True
    return mask


def prune(
    space: LoraSpace,
    mask: np.ndarray,
    scores: np.ndarray,
    *,
    rank: int,
    redundant: float,
    scope: Scope,
    seed: int,
) -> np.ndarray:
    """Prune towards the budget of a LoRA of rank ``rank``.

    Each group keeps its budget and the fraction ``redundant`` of the positions beyond it. Ties are broken by a
    permutation drawn from ``seed``, so that no matrix is favoured.

    Args:
        space: The expanded space of N positions.
        mask: bool, shape (N,): the positions that are left.
        scores: float32, shape (N,): importance; used only where the mask is set.
        rank: The client's rank, which gives the budget.
        redundant: In [0, 1]; 0 leaves exactly the budget.
        scope: The parts within which positions compete.
        seed: Seed of the permutation.

    Returns:
        bool, shape (N,), a subset of ``mask``.
    """
    tie_break = np.random.default_rng(seed).permutation(space.size)
    pruned = np.zeros_like(mask)
    for part in groups(space, scope):
        size = part.stop - part.start
        budget = size * rank // space.rank
        keep = min(budget + round(redundant * (size - budget)), int(np.count_nonzero(mask[part])))
        pruned[part] = keep_highest(scores[part], mask[part], keep, tie_break[part])
    return pruned
