"""Local tuning: each client trains a plain LoRA on its own; the baseline that a federation must beat."""

from __future__ import annotations

from typing import Literal

import numpy as np

from perfit.methods.method import Method, MethodOptions, Roles
from perfit.space import LoraSpace


class Options(MethodOptions):
    """Local tuning has no options."""

    name: Literal["local"] = "local"


def keep_all(options: Options, space: LoraSpace, held: np.ndarray) -> Roles:
    """Train everything, share nothing."""
    return Roles(held, held, np.zeros_like(held))


METHOD = Method("local tuning", "baseline", Options, roles=keep_all)
