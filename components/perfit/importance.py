"""How much a LoRA parameter matters to a client (PerFIT, arXiv 2402.16919, section 3 and figure 5).

Each metric folds a step's weight and gradient into the score so far. ``taylor`` is the first-order estimate of the
change of the loss when the parameter is set to zero (Molchanov et al., 2019, arXiv 1906.10771).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Metric = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _taylor(score: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return score + (weight * gradient).abs()


def _gradient(score: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return score + gradient.abs()


def _magnitude(score: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return weight.abs()


def _random(score: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return score  # all tie at zero, and ties are broken by the client's own permutation


METRICS: dict[str, Metric] = {
    "taylor": _taylor,
    "gradient": _gradient,
    "magnitude": _magnitude,
    "random": _random,
}
