"""Draw a round's clients, once."""

from __future__ import annotations

from dataclasses import asdict

from perfit.errors import PerfitError
from perfit.participation import draw_participants
from perfit.spec import Client, Federation
from perfit_components.steps.opening import OpenFederation, open_federation

SEARCH_ROUND = 0
"""The round before the first: nobody tunes, every client may search its architecture."""


def plan(uri: str, round: int, tier: str) -> list[dict[str, str]]:
    """Return the clients of one tier that take part in a round, as items for a loop.

    The plan of a round is written once, by whoever comes first, and read by everybody else.

    Args:
        uri: Of the federation.
        round: From 1, or ``SEARCH_ROUND``.
        tier: One of the federation file's tiers.

    Returns:
        For each client its id and the names of its secret and volume, empty where it has none.

    Raises:
        PerfitError: The round before is not committed.
        StoreError: The store cannot be reached or written.
    """
    opened = open_federation(uri)
    if round == SEARCH_ROUND:
        clients = list(opened.spec.clients)
    else:
        chosen = {participant["id"] for participant in _round_plan(opened, round)["participants"]}
        clients = [client for client in opened.spec.clients if client.id in chosen]
    return [
        {"id": client.id, "secret": client_secret(opened.spec, client), "volume": client.volume or ""}
        for client in clients
        if client.tier == tier
    ]


def client_secret(spec: Federation, client: Client) -> str:
    """Return the name of the Secret with a client's keys to the store."""
    return client.secret or f"perfit-{spec.name}-{client.id}"


def _round_plan(opened: OpenFederation, round: int) -> dict:
    store, spec = opened.store, opened.spec
    head = store.read_head()
    if head.round >= round:
        return store.read_plan(round)
    if head.round != round - 1:
        raise PerfitError(
            f"round {round} of {spec.name!r} cannot start: the head is at round {head.round}",
            f"run round {head.round + 1} first; a compiled tuning goes on where an earlier run of it stopped",
        )
    participants = [
        {"id": client.id, "tier": client.tier, "rank": spec.rank_of(client)}
        for client in draw_participants(spec, round)
    ]
    return store.create_plan(
        round,
        {
            "federation": spec.name,
            "round": round,
            "base": asdict(head),
            "participants": participants,
        },
    )
