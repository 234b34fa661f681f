"""FFA-LoRA: A keeps its initial values, only B is trained and shared (Sun et al., 2024, arXiv 2403.12313).

With A the same everywhere, the average of the products BA is the product of the average B with A: averaging is exact
among clients of one rank. If ranks differ, a column of B is averaged only over the clients that hold it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from perfit.methods.method import Method, MethodOptions, Roles
from perfit.space import LoraSpace


class Options(MethodOptions):
    """FFA-LoRA has no options."""

    name: Literal["ffa-lora"] = "ffa-lora"


def freeze_a(options: Options, space: LoraSpace, held: np.ndarray) -> Roles:
    """Train and share B."""
    b = held & ~space.a_mask
    return Roles(held, b, b)


METHOD = Method("FFA-LoRA", "arXiv 2403.12313", Options, roles=freeze_a)
