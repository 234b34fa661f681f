"""Which clients take part in a round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from perfit.seeds import derive_seed
from perfit.spec import Client, Participation

C = TypeVar("C", bound=Client)


def sample_clients(clients: Sequence[C], participation: Participation, seed: int, round: int) -> list[C]:
    """Sample a round's clients without replacement: the same fraction of every tier, at least one client of each.

    Sampling by tier keeps every kind of machine in use and the mix of strong and weak clients steady. If these are
    fewer than the quorum, more are sampled from the whole federation.

    Args:
        clients: The federation's clients.
        participation: The fraction, and the quorum.
        seed: The federation's seed.
        round: From 1.

    Returns:
        Clients in the order given.
    """
    order = np.random.default_rng(derive_seed(seed, "participants", round)).permutation(len(clients))
    shuffled = [clients[i] for i in order]
    chosen: set[str] = set()
    for tier in dict.fromkeys(client.tier for client in clients):
        members = [client.id for client in shuffled if client.tier == tier]
        chosen.update(members[: participation.of_tier(len(members))])
    spare = [client.id for client in shuffled if client.id not in chosen]
    chosen.update(spare[: max(0, participation.minimum_clients - len(chosen))])
    return [client for client in clients if client.id in chosen]
