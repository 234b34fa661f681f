"""Computes and commits a round's result: once, and again if the result was lost from the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from blake3 import blake3

from perfit.adapter_file import server_file
from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit.methods import VALUES
from perfit.protocol import Base, ClientStatus, Limited, Outcome, Plan, RoundSummary, UpdateRecord
from perfit.round import merge, split_state
from perfit_components.steps.collect import Tally, collect
from perfit_components.steps.context import FederationContext, head_of, place_of
from perfit_components.steps.contribution import RoundReader
from perfit_storage import Head, ObjectNotFound


@dataclass(frozen=True)
class _Result:
    """A round's summary, and the files that the head will name: what clients read, and the server's own, if any."""

    summary: RoundSummary
    adapter: memoryview
    state: memoryview | None

    @property
    def files(self) -> tuple[memoryview, memoryview | None, bytes]:
        return self.adapter, self.state, self.summary.to_json()


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
    store, head = context.store, context.store.read_head()
    if head.round >= round:
        return _committed(context, round)
    plan = context.plan(head.place(round))
    result = _average(context, plan, {})
    new = _put_result(context, plan, result)
    if not store.advance_head(head_of(plan.base), new) and not _has_counted(context, new):
        raise PerfitError(
            f"the head of {context.spec.name!r} has moved since round {round} was planned: another run committed the "
            "round with other values, or the federation was rolled back",
            "nothing is lost: check which runs train this federation, and let only one of them continue",
        )
    return result.summary


def _has_counted(context: FederationContext, head: Head) -> bool:
    """Whether the federation's head has moved on from this one since, where the answer to our move got lost."""
    moved_on = context.store.read_head().round > head.round
    return moved_on and head_of(context.base_after(head.round)) == head


def ensure_base(context: FederationContext, base: Base) -> None:
    """If what a round starts from is missing in the store, compute it again from the updates of the round before.

    Raises:
        PerfitError: It cannot be computed again.
    """
    blobs = [blob for blob in (base.adapter, base.state, base.summary) if blob]
    if base.round > 0 and not all(context.store.has_blob(blob.key) for blob in blobs):
        _recompute(context, base)


def _committed(context: FederationContext, round: int) -> RoundSummary:
    after = context.base_after(round)
    try:
        return context.summary_of(after)
    except ObjectNotFound:
        return _recompute(context, after)


def _recompute(context: FederationContext, after: Base) -> RoundSummary:
    plan = context.plan(head_of(after).place(after.round))
    result = _average(context, plan, _lost(context, after))
    named = (after.adapter, after.state, after.summary)
    if [data and blake3(data).hexdigest() for data in result.files] != [blob and blob.digest for blob in named]:
        raise PerfitError(
            f"{context.store.uri}/{after.adapter.key} or what belongs to it is missing, and the updates of round "
            f"{after.round} give other bytes than it had",
            "restore it from a backup of the store",
        )
    _put_result(context, plan, result)
    return result.summary


def _lost(context: FederationContext, after: Base) -> dict[str, ClientStatus]:
    """Who did not count in a committed round, by client, as far as its summary is there: none of them may count now."""
    try:
        return {status.client: status for status in context.summary_of(after).lost}
    except ObjectNotFound:
        return {}


def _average(context: FederationContext, plan: Plan, lost: Mapping[str, ClientStatus]) -> _Result:
    """Verify the updates of a round, and average them by the method's rule.

    Args:
        context: The federation's context.
        plan: The round's plan.
        lost: Statuses of participants whose updates do not count, whatever they wrote, by client.

    Raises:
        PerfitError: Fewer than the minimum of clients delivered; otherwise as :func:`commit_round`.
    """
    ensure_base(context, plan.base)
    spec, reader = context.spec, RoundReader.of(context, plan)
    previous, tally = reader.base, collect(reader, lost)
    _check_quorum(spec, plan, tally.outcomes)
    merged = merge(spec, previous.space, previous.vectors, tally.cohort)
    downloads, own = split_state(spec, merged)
    summary = _summary(context, plan, tally, tally.cohort.change(VALUES, merged[VALUES]))
    files = [
        vectors and reader.scratch.join(server_file(spec, previous.space, plan.round, vectors))
        for vectors in (downloads, own)
    ]
    reader.release()
    return _Result(summary, files[0], files[1] or None)


def _summary(context: FederationContext, plan: Plan, tally: Tally, change: float) -> RoundSummary:
    spec, cohort = context.spec, tally.cohort
    return RoundSummary(
        federation=spec.name,
        method=spec.method.name,
        round=plan.round,
        base=plan.base,
        # From the current file: lowering it rescues a round whose planned clients are gone for good.
        minimum_clients=spec.participation.minimum_clients,
        positions=cohort.size,
        positions_held=tally.held,
        positions_shared=cohort.positions_shared,
        architectures=_architectures(context, plan.base, tally.outcomes),
        clients=tuple(tally.outcomes),
        rule=spec.aggregation.rule,
        positions_by_mean=cohort.positions_by_mean,
        change=change,
        changes={client: measured.changes[VALUES] for client, measured in cohort.measures.items()},
        limited=tuple(
            Limited(client=client, samples=cohort.measures[client].samples, weight=scale.weight, factors=scale.factors)
            for client, scale in cohort.limited.items()
        ),
    )


def _architectures(context: FederationContext, base: Base, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return the hashes of all architectures that the server knows now, by client; none if they follow from ranks."""
    if context.spec.search is None:
        return {}
    known = context.summary_of(base).architectures if base.summary else {}
    records = [record for record in outcomes if isinstance(record, UpdateRecord)]
    return known | {record.client: record.next_mask_digest or record.mask_digest for record in records}


def _check_quorum(spec: ClusterSpec, plan: Plan, outcomes: Sequence[Outcome]) -> None:
    lost = [outcome for outcome in outcomes if isinstance(outcome, ClientStatus)]
    delivered, minimum = len(outcomes) - len(lost), spec.participation.minimum_clients
    if delivered >= minimum:
        return
    head = (
        f"round {plan.round} is not committed: {delivered} of {len(outcomes)} clients delivered, "
        f"participation.minimum_clients is {minimum}. The head stays where it was. Without an update:"
    )
    raise PerfitError(
        "\n".join([head, *(f"  {status.text}" for status in lost)]),
        "repair these clients and run again (those that delivered do not train again), or lower minimum_clients",
    )


def _put_result(context: FederationContext, plan: Plan, result: _Result) -> Head:
    """Write what the head will name; move nothing."""
    store, place, (adapter, state, summary) = context.store, place_of(plan), result.files
    return replace(
        head_of(plan.base),
        round=plan.round,
        adapter=store.put_global(place, adapter),
        state=store.put_state(place, state) if state else None,
        summary=store.put_summary(place, summary),
    )
