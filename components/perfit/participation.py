"""Which clients take part in a round."""

from __future__ import annotations

import math

import numpy as np

from perfit.seeds import derive_seed
from perfit.spec import Client, Federation


def draw_participants(federation: Federation, round: int) -> list[Client]:
    """Draw the round's clients without replacement, the same fraction of every tier, at least one of each.

    Drawing by tier keeps every tier of pods in use and the mix of strong and weak clients steady. As many clients as
    the quorum needs are drawn at least, the further ones from the whole federation.

    Returns:
        Clients in the order of the federation file.
    """
    seed = derive_seed(federation.training.seed, "participants", round)
    order = np.random.default_rng(seed).permutation(len(federation.clients))
    shuffled = [federation.clients[i] for i in order]
    chosen: set[str] = set()
    for tier in federation.tiers_in_use():
        members = [client.id for client in shuffled if client.tier == tier]
        chosen.update(members[: math.ceil(np.round(federation.participation.fraction * len(members), 9))])
    spare = [client.id for client in shuffled if client.id not in chosen]
    chosen.update(spare[: max(0, federation.participation.minimum_clients - len(chosen))])
    return [client for client in federation.clients if client.id in chosen]
