"""How much a LoRA parameter matters to a client (PerFIT, arXiv 2402.16919, section 3 and figure 5).

Each metric updates the score with a step's weight, gradient and start, elementwise, on arrays or tensors:

- ``taylor`` is the first-order estimate of how the loss changes when the parameter is set to zero (Molchanov et al.,
  2019, arXiv 1906.10771).
- ``magnitude`` is the distance that training has moved a parameter from its start. By values alone the drawn A would
  always win over B, which starts at zero, and a module with a dead B is no LoRA.

Two masks need no data and no training. They are the controls that tell what a search gives from what sparsity gives:
``random`` is drawn for each client, ``common`` once for all clients, of which those with a smaller rank hold a part.

Gradients come clipped (``training.max_gradient_norm``), as the optimiser sees them: no step outweighs the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

DrawnMask = Literal["random", "common"]
MetricName = Literal["taylor", "magnitude", "gradient", DrawnMask]
Metric = Callable[[Any, Any, Any, Any], Any]
"""(previous score, weight, gradient, start) -> score, all of the same shape; start is the weight before the search."""

METRICS: dict[MetricName, Metric] = {
    "taylor": lambda score, weight, gradient, start: score + abs(weight * gradient),
    "gradient": lambda score, weight, gradient, start: score + abs(gradient),
    "magnitude": lambda score, weight, gradient, start: abs(weight - start),
}
