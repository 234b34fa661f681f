"""Computes and commits a round's result: once, and again if the result was lost from the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from perfit.adapter_file import dump_server_vectors
from perfit.aggregation import Cohort
from perfit.errors import PerfitError
from perfit.protocol import Base, ClientStatus, Limited, Outcome, Plan, RoundSummary
from perfit.robustness import Measure, Scale
from perfit.round import limit, limits, measure_update, merge, new_cohort, split_state
from perfit_components.steps.context import FederationContext, StoredVectors, head_of
from perfit_components.steps.contribution import read_contribution, refusal
from perfit_storage import Head, ObjectNotFound


@dataclass
class _Tally:
    """The outcomes of a round's participants so far, the positions that they hold, and the mean of their updates.

    ``hashes`` are those of the updates; ``limited`` has the scales of the updates that count for less.
    """

    cohort: Cohort
    held: np.ndarray
    limited: dict[str, Scale]
    outcomes: list[Outcome] = field(default_factory=list)
    measures: dict[str, Measure] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)


def commit_round(context: FederationContext, round: int) -> RoundSummary:
    """Average a round's updates by the method's rule, then move the head to the result.

    An update that does not follow the plan is left out, and reported. A round that is already committed does not
    change.

    Args:
        context: The federation's context.
        round: From 1.

    Returns:
        The summary of the round, which the head names.

    Raises:
        PerfitError: Fewer than the minimum of clients delivered, the head was moved by somebody else, or the store
            cannot be reached or written.
    """
    store = context.store
    if store.read_head().round >= round:
        return _committed(context, round)
    plan = context.plan(round)
    tally, previous = _average(context, plan)
    summary = _summary(context, plan, tally, previous)
    _check_quorum(summary)
    head = _put_result(context, round, _result(context, plan, summary, tally, previous))
    # The head may have moved on since, where the answer to this move got lost.
    if not store.advance_head(head_of(plan.base), head) and head_of(context.base_after(round)) != head:
        raise PerfitError(
            f"round {round} of {context.spec.name!r} was committed by another run with other values",
            "nothing is lost: check which runs train this federation, and let only one of them continue",
        )
    return summary


def ensure_base(context: FederationContext, base: Base) -> None:
    """If what a round starts from is missing in the store, compute it again from the updates of the round before.

    Raises:
        PerfitError: It cannot be computed again.
    """
    blobs = [blob for blob in (base.adapter, base.state) if blob]
    if base.round > 0 and not all(context.store.has_blob(blob.key) for blob in blobs):
        _recompute(context, base)


def _committed(context: FederationContext, round: int) -> RoundSummary:
    after = context.base_after(round)
    try:
        return context.summary_of(after)
    except ObjectNotFound:
        return _recompute(context, after)


def _recompute(context: FederationContext, after: Base) -> RoundSummary:
    plan = context.plan(after.round)
    tally, previous = _average(context, plan)
    summary = _summary(context, plan, tally, previous)
    result = _result(context, plan, summary, tally, previous)
    named = (after.adapter, after.state, after.summary)
    if [data and sha256(data).hexdigest() for data in result] != [blob and blob.sha256 for blob in named]:
        raise PerfitError(
            f"{context.store.uri}/{after.adapter.key} or what belongs to it is missing, and the updates of round "
            f"{after.round} give other bytes than it had",
            "restore it from a backup of the store",
        )
    _put_result(context, after.round, result)
    return summary


def _average(context: FederationContext, plan: Plan) -> tuple[_Tally, StoredVectors]:
    """Average the updates of a round: in one pass, or in two if some of them must count for less.

    The limits are known only when all updates have been read. The second pass must read the same updates: a client
    whose update has changed in between is refused.
    """
    ensure_base(context, plan.base)
    previous = context.state(plan.base)
    refused: dict[str, ClientStatus] = {}
    tally = _pass(context, plan, previous, {}, refused)
    while (limited := limits(context.spec, tally.measures)) != tally.limited:
        first, tally = tally, _pass(context, plan, previous, limited, refused)
        changed = [p for p in plan.participants if tally.hashes.get(p.client) != first.hashes.get(p.client)]
        if changed:  # start again, without them
            reason = "its update changed while the round was averaged"
            refused |= {participant.client: refusal(plan, participant, reason) for participant in changed}
            tally = _pass(context, plan, previous, {}, refused)
    return tally, previous


def _pass(
    context: FederationContext,
    plan: Plan,
    previous: StoredVectors,
    limited: dict[str, Scale],
    refused: dict[str, ClientStatus],
) -> _Tally:
    """Verify each participant's update, note the outcome and add the update to the mean; none is kept in memory."""
    space = previous.space
    tally = _Tally(new_cohort(context.spec, space), np.zeros(space.size, dtype=bool), limited)
    for participant in plan.participants:
        client = participant.client
        contribution = refused.get(client) or read_contribution(context, plan, participant, space)
        if isinstance(contribution, ClientStatus):
            tally.outcomes.append(contribution)
            continue
        tally.outcomes.append(contribution.record)
        tally.held |= contribution.mask
        if contribution.update is not None:
            tally.measures[client] = measure_update(previous.vectors, contribution.update)
            tally.hashes[client] = contribution.record.update.sha256
            tally.cohort.add(limit(previous.vectors, contribution.update, limited.get(client)))
    return tally


def _summary(context: FederationContext, plan: Plan, tally: _Tally, previous: StoredVectors) -> RoundSummary:
    return RoundSummary(
        federation=context.spec.name,
        method=context.spec.method.name,
        round=plan.round,
        base=plan.base,
        # From the current file: lowering it rescues a round whose planned clients are gone for good.
        minimum_clients=context.spec.participation.minimum_clients,
        positions=previous.space.size,
        positions_held=int(np.count_nonzero(tally.held)),
        clients=tuple(tally.outcomes),
        limited=tuple(
            Limited(client=client, samples=tally.measures[client].samples, weight=scale.weight, factors=scale.factors)
            for client, scale in tally.limited.items()
        ),
    )


def _check_quorum(summary: RoundSummary) -> None:
    if len(summary.trained) >= summary.minimum_clients:
        return
    head = (
        f"round {summary.round} is not committed: {len(summary.trained)} of {len(summary.clients)} clients delivered, "
        f"participation.minimum_clients is {summary.minimum_clients}. The head stays where it was. Without an update:"
    )
    raise PerfitError(
        "\n".join([head, *(f"  {status.client} ({status.status}): {status.reason}" for status in summary.lost)]),
        "repair these clients and run again (those that delivered do not train again), or lower minimum_clients",
    )


def _result(
    context: FederationContext, plan: Plan, summary: RoundSummary, tally: _Tally, previous: StoredVectors
) -> tuple[bytes, bytes | None, bytes]:
    """The files that the head will name: what clients read, the server's own vectors if it has any, the summary."""
    spec, space, round = context.spec, previous.space, plan.round
    downloads, own = split_state(spec, merge(spec, previous.vectors, tally.cohort))
    adapter = dump_server_vectors(spec, space, round, downloads)
    return adapter, dump_server_vectors(spec, space, round, own) if own else None, summary.to_json()


def _put_result(context: FederationContext, round: int, result: tuple[bytes, bytes | None, bytes]) -> Head:
    """Write what the head will name; move nothing."""
    store, (adapter, state, summary) = context.store, result
    return Head(
        round,
        store.put_global(round, adapter),
        store.put_state(round, state) if state else None,
        store.put_summary(round, summary),
    )
