"""How much a LoRA parameter matters to a client (PerFIT, arXiv 2402.16919, section 3 and figure 5).

Each metric updates the score with a step's weight and gradient, elementwise, on arrays or tensors. ``taylor`` is the
first-order estimate of how the loss changes when the parameter is set to zero (Molchanov et al., 2019, arXiv
1906.10771).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

MetricName = Literal["taylor", "magnitude", "gradient", "random"]
Metric = Callable[[Any, Any, Any], Any]
"""(previous score, weight, gradient) -> score, all of the same shape."""

METRICS: dict[MetricName, Metric] = {
    "taylor": lambda score, weight, gradient: score + abs(weight * gradient),
    "gradient": lambda score, weight, gradient: score + abs(gradient),
    "magnitude": lambda score, weight, gradient: abs(weight),
    "random": lambda score, weight, gradient: score,  # all tie at zero; the client's own permutation breaks ties
}
