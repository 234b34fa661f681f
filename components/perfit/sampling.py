"""Which clients take part in a round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from perfit.seeds import derive_seed
from perfit.spec import Client, Participation

C = TypeVar("C", bound=Client)


def sample_clients(clients: Sequence[C], participation: Participation, seed: int, round: int) -> list[C]:
    """Sample a round's clients without replacement, the same fraction of every tier, at least one of each.

    Sampling by tier keeps every kind of machine in use and the mix of strong and weak clients steady. At least as many
    clients as the quorum needs are sampled, the further ones from the whole federation.

    Args:
        clients: Of the federation.
        participation: The fraction, and the quorum.
        seed: Of the federation.
        round: From 1.

    Returns:
        Clients in the order given.
    """
    order = np.random.default_rng(derive_seed(seed, "participants", round)).permutation(len(clients))
    shuffled = [clients[i] for i in order]
    chosen: set[str] = set()
    for tier in dict.fromkeys(client.tier for client in clients):
        members = [client.id for client in shuffled if client.tier == tier]
        chosen.update(members[: math.ceil(np.round(participation.fraction * len(members), 9))])
    spare = [client.id for client in shuffled if client.id not in chosen]
    chosen.update(spare[: max(0, participation.minimum_clients - len(chosen))])
    return [client for client in clients if client.id in chosen]
