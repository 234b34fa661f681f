"""FedSA-LoRA: A and B are trained, only A is shared (Guo et al., 2024, arXiv 2410.01463).

The paper finds that A learns what clients have in common, and B what is specific to a client.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from perfit.methods.method import Method, MethodOptions, Roles
from perfit.space import LoraSpace


class Options(MethodOptions):
    """FedSA-LoRA has no options."""

    name: Literal["fedsa-lora"] = "fedsa-lora"


def share_a(options: Options, space: LoraSpace, held: np.ndarray) -> Roles:
    """Train everything, share A."""
    return Roles(held, held, held & space.a_mask)


METHOD = Method("FedSA-LoRA", "arXiv 2410.01463", Options, roles=share_a)
