"""Samples a round's clients, once, and passes their names to the loops of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from perfit.errors import PerfitError
from perfit.protocol import Participant, Plan
from perfit.sampling import sample_clients
from perfit_components.steps.commit import ensure_base
from perfit_components.steps.context import FederationContext, base_of
from perfit_components.steps.exchange import is_exchange_stored, plan_exchange

LoopItem = str | dict[str, str]
"""A client's name in the cluster, that of its Secret; or its Secret and its volume claim, if a claim in its tier has
another name than the Secret."""


def plan_round(context: FederationContext, round: int) -> Plan:
    """Return the plan of a round. The first caller writes it, all others read it.

    If what the round starts from, or what its clients download, is missing in the store, it is computed again.

    Raises:
        PerfitError: The round before is not committed, or the store cannot be reached or written.
    """
    store, spec = context.store, context.spec
    head = store.read_head()
    place = head.place(round)
    if head.round >= round:
        return context.plan(place)
    if head.round != round - 1:
        raise PerfitError(
            f"round {round} of {spec.name!r} cannot start: the head is at round {head.round}",
            f"run round {head.round + 1} first; a compiled tuning continues where its last run stopped",
        )
    ensure_base(context, base_of(head))
    existing = context.find_plan(place)
    if existing is not None and is_exchange_stored(context, existing):
        return existing
    sampled = sample_clients(spec.clients, spec.participation, spec.training.seed, round)
    plan = plan_exchange(context, base_of(head), place, sampled)
    stored = context.parse_plan(place, store.create_plan(place, plan.to_json()))
    if not is_exchange_stored(context, stored):
        raise PerfitError(
            f"{store.uri}/rounds/{place}: some of what clients download is missing and cannot be made again: who is in "
            "the federation, or an architecture, has changed since the round was planned",
            "restore it from a backup of the store",
        )
    return stored


def next_part(context: FederationContext, round: int, at_most: int) -> slice:
    """Return which of a round's participants in pods, in the plan's order, a run serves that serves so many; 0 for all.

    Which ones earlier runs have served is noted in the store when their aggregation ends
    (:func:`perfit_components.steps.aggregate.close_round`): a run that was ended before is repeated.

    Raises:
        PerfitError: As :func:`plan_round`.
    """
    head = context.store.read_head()
    if not at_most or head.round >= round:
        return slice(None)
    count = len(in_pods(context, plan_round(context, round)))
    begin = context.store.read_served(head.place(round))
    return slice(begin, min(begin + at_most, count))


def participants(
    context: FederationContext, round: int, tiers: Sequence[str], part: slice = slice(None)
) -> list[list[LoopItem]]:
    """Return, for each of the compiled pipeline's tiers, the clients that a round still needs: none if it is committed.

    Those of remote tiers have no task: the pipeline waits for them, see :mod:`perfit_components.steps.wait`. A client
    that has left the federation since the round was planned is left out.

    Args:
        context: The federation's context.
        round: From 1.
        tiers: Of the compiled pipeline, in order.
        part: Of the participants in pods, those to return; see :func:`next_part`.

    Raises:
        PerfitError: A participant's tier is not in the compiled pipeline; otherwise as :func:`plan_round`.
    """
    items: dict[str, list[LoopItem]] = {tier: [] for tier in tiers}
    if context.store.read_head().round >= round:
        return list(items.values())
    spec, clients = context.spec, context.spec.clients_by_id
    for participant in in_pods(context, plan_round(context, round))[part]:
        client = clients.get(participant.client)
        if client is None:
            continue
        if participant.tier not in items:
            raise PerfitError(
                f"client {client.id!r} is of tier {participant.tier!r}, which the compiled pipeline does not have",
                "compile the pipeline again from the changed federation file (as perfit submit and schedule create do)",
            )
        name = spec.secret_of(client)
        claims = spec.names_claims(participant.tier)
        items[participant.tier].append({"secret": name, "volume": client.volume or ""} if claims else name)
    return list(items.values())


def in_pods(context: FederationContext, plan: Plan) -> list[Participant]:
    """Return the participants of a round that have a task of their own: all but those of remote tiers."""
    remote = context.spec.remote_tiers()
    return [participant for participant in plan.participants if participant.tier not in remote]


def remote_participants(context: FederationContext, plan: Plan) -> list[Participant]:
    """Return the participants of a round that it waits for: of remote tiers, and who has not left the federation."""
    remote, known = context.spec.remote_tiers(), context.spec.clients_by_id
    return [p for p in plan.participants if p.tier in remote and p.client in known]
