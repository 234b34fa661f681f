"""FedDPA: a global and a personal adapter on each module (Yang et al., 2024, arXiv 2403.19211).

The sum of two LoRAs of ranks g and r - g is one of rank r, so both lie in a client's plain LoRA: the first g ranks are
the global adapter, which is shared, the others are the personal one.

Both are trained together in every step. The paper trains them one after the other: in each round, or the personal
adapter after the last one. It also weighs the two anew for each input at inference, by how similar the input is to some
of the client's own records; here they count the same. A PEFT adapter has one scaling for all inputs, and such weights
would need private records wherever the adapter is used.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from perfit.methods.method import Method, MethodOptions, Roles
from perfit.space import LoraSpace


class Options(MethodOptions):
    """``global_share`` is that of the global adapter in a client's rank."""

    name: Literal["feddpa"] = "feddpa"
    global_share: float = Field(default=0.5, gt=0, lt=1)


def share_first_ranks(options: Options, space: LoraSpace, held: np.ndarray) -> Roles:
    """Train everything, share the first ranks: at least one, and all but one at most if there are several."""
    rank = np.count_nonzero(held) // space.budget(1)
    shared = max(1, min(rank - 1, round(options.global_share * rank)))
    return Roles(held, held, held & space.plain_mask(shared))


METHOD = Method("FedDPA", "arXiv 2403.19211", Options, roles=share_first_ranks)
