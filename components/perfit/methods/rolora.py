"""RoLoRA: B is trained in one round and A in the next (Chen et al., 2025, arXiv 2502.01755).

What is not a round's turn stays at the server's last value, the same for all clients, so the mean of the products BA is
the product of the means: averaging is exact among clients of one rank, and both matrices learn. B goes first, because A
has no gradient while B is zero. A client downloads both, and uploads the one that it has trained.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from perfit.methods.method import Method, MethodOptions
from perfit.space import LoraSpace


class Options(MethodOptions):
    """RoLoRA has no options."""

    name: Literal["rolora"] = "rolora"


def alternate(space: LoraSpace) -> tuple[np.ndarray, np.ndarray]:
    """Train B, then A."""
    return ~space.a_mask, space.a_mask


METHOD = Method("RoLoRA", "arXiv 2502.01755", Options, turns=alternate)
