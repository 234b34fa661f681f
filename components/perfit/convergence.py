"""The largest step size for which PerFIT is proved to converge (arXiv 2402.16919, Theorem 1)."""

from __future__ import annotations

from perfit.errors import PerfitError


def step_size_limit(smoothness: float, local_steps: int) -> float:
    """Return the largest step size that Theorem 1 covers: 1 / (16 L N).

    It is a check, not a cap: the theorem is about plain gradient steps, training here uses AdamW by default, and larger
    rates often work.

    Args:
        smoothness: L, the Lipschitz constant of the gradient of the loss.
        local_steps: N, optimiser steps per round.

    Raises:
        PerfitError: The smoothness is not positive.
    """
    if not smoothness > 0:
        raise PerfitError(f"the smoothness L is {smoothness}", "give a positive estimate")
    return 1 / (16 * smoothness * local_steps)
