"""FedProx: a proximal term holds clients near the values they started from (Li et al., 2018, arXiv 1812.06127, eq. 2).

The term mu/2 * |w - w_t|^2 of the local objective adds mu * (w - w_t) to the gradient of every step.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from perfit.methods.method import ClientStart, Method, MethodOptions


class Options(MethodOptions):
    """``mu`` weighs the proximal term; 0 is FedIT."""

    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(default=0.01, ge=0)


def proximal(options: Options, values: Any, start: ClientStart) -> Any:
    """Return the gradient of the proximal term."""
    return options.mu * (values - start.values)


METHOD = Method("FedProx", "arXiv 1812.06127", Options, correction=proximal)
