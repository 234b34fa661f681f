"""Average a round's updates and move the head, or say who is missing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from perfit.adapter_file import AdapterFile, AdapterFileError, AdapterHeader, dump_server_vectors
from perfit.aggregation import Cohort, Update
from perfit.errors import PerfitError
from perfit.protocol import (
    ClientStatus,
    MessageError,
    Outcome,
    Participant,
    Plan,
    RoundSummary,
    UpdateRecord,
    cut,
    parse_outcome,
)
from perfit.round import merge, new_cohort, split_state
from perfit.space import LoraSpace
from perfit_components.steps.context import FederationContext, head_of
from perfit_components.steps.plan import LoopItem, participants
from perfit_components.steps.report import RoundReport, draw_report
from perfit_storage import Blob, CorruptObject, Head, ObjectNotFound


class _Refused(ValueError):
    """Why an update does not count."""


@dataclass
class _Tally:
    """What became of a round's participants so far, the positions that they hold, and the mean of their updates."""

    cohort: Cohort
    held: np.ndarray
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def delivered(self) -> int:
        return sum(isinstance(outcome, UpdateRecord) for outcome in self.outcomes)


@dataclass(frozen=True)
class Closed:
    """A round that is committed: its report, and in each tier the participants of the next."""

    report: RoundReport
    participants: list[list[LoopItem]]


def close_round(uri: str, round: int, next_tiers: Sequence[str] = ()) -> Closed:
    """Commit a round, draw its report and keep it in the store, and plan the next one.

    Args:
        uri: Of the federation.
        round: From 1.
        next_tiers: Tiers of the compiled pipeline, in order, if the run goes on with the next round.

    Raises:
        PerfitError: As :func:`aggregate`.
    """
    context = FederationContext.open(uri)
    summary = aggregate(context, round)
    print(f"round {round} is committed: {len(summary.trained)} of {len(summary.clients)} clients delivered", flush=True)
    for status in summary.lost:
        print(f"  {status.client} ({status.status}): {status.reason}", flush=True)
    report = draw_report(context, round)
    context.store.put_report(round, report.html.encode())
    return Closed(report, participants(context, round + 1, next_tiers) if next_tiers else [])


def aggregate(context: FederationContext, round: int) -> RoundSummary:
    """Commit a round: average its updates by the method's rule, then move the head to the result.

    An update of the wrong shape, budget, round, base model or mask, or with a value that is not finite, is left out and
    named. A round that is committed already is left as it is.

    Args:
        context: Of the federation.
        round: From 1.

    Returns:
        The summary of the round, as kept in ``summary.json``.

    Raises:
        PerfitError: Fewer than the minimum of clients delivered, the head was moved by somebody else, or the store
            cannot be reached or written.
    """
    spec, store = context.spec, context.store
    head = store.read_head()
    if head.round >= round and (summary := context.summary(round)):
        return summary
    plan = context.plan(round)
    previous = context.state(plan.base)
    tally = _average(context, plan, previous.space)
    if head.round < round:
        _check_quorum(plan, tally, spec.participation.minimum_clients)
        _commit(context, plan, previous.space, merge(spec, previous.vectors, tally.cohort))
    summary = RoundSummary(
        federation=spec.name,
        method=spec.method.name,
        round=round,
        base=plan.base,
        minimum_clients=spec.participation.minimum_clients,
        positions=previous.space.size,
        positions_held=int(np.count_nonzero(tally.held)),
        clients=tuple(tally.outcomes),
    )
    store.put_summary(round, summary.to_json())
    return summary


def _average(context: FederationContext, plan: Plan, space: LoraSpace) -> _Tally:
    """Verify each participant's update, note what became of it, add it to the mean, and drop it."""
    tally = _Tally(new_cohort(context.spec, space), np.zeros(space.size, dtype=bool))
    for participant in plan.participants:
        try:
            outcome = _read_outcome(context, plan, participant)
            if isinstance(outcome, UpdateRecord):
                mask, update = _verified(context, plan, participant, outcome, space)
                tally.held |= mask
                if update is not None:
                    tally.cohort.add(update)
        except (_Refused, MessageError, AdapterFileError, CorruptObject, ObjectNotFound) as error:
            outcome = _status(plan, participant, "refused", str(error))
        tally.outcomes.append(outcome)
    return tally


def _read_outcome(context: FederationContext, plan: Plan, participant: Participant) -> Outcome:
    data = context.store.read_record(plan.round, participant.client)
    if data is None:
        return _status(plan, participant, "missing", "its task left no record: it did not start, or its pod died")
    outcome = parse_outcome(data)
    promised = {
        "client": participant.client,
        "round": plan.round,
        "rank": participant.rank,
        "tier": participant.tier,
    }
    for name, value in promised.items():
        if getattr(outcome, name) != value:
            raise _Refused(f"its record says {name} {getattr(outcome, name)!r}, the plan {value!r}")
    return outcome


def _status(plan: Plan, participant: Participant, status: str, reason: str) -> ClientStatus:
    return ClientStatus(**participant.model_dump(), round=plan.round, status=status, reason=cut(reason))


def _verified(
    context: FederationContext, plan: Plan, participant: Participant, record: UpdateRecord, space: LoraSpace
) -> tuple[np.ndarray, Update | None]:
    """Return a client's mask and its update, None if nothing is shared, each parsed once and held against the plan."""
    client, budget = participant.client, space.budget(participant.rank)
    expected = AdapterHeader.of_client(context.spec, client, plan.round, budget, record.mask_sha256)
    file = AdapterFile.parse(context.store.get_mask(client, record.mask_sha256))
    _check_header(file, expected, space, "mask", skip="round")
    roles = context.spec.algorithm.roles(space, file.mask)
    for name, count in (("budget", roles.trained), ("shared", roles.shared)):
        if getattr(record, name) != np.count_nonzero(count):
            raise _Refused(f"its record says {name} {getattr(record, name)}, its mask {np.count_nonzero(count)}")
    if not roles.shared.any():
        return file.mask, None
    key = record.update.key if record.update else ""
    if not re.fullmatch(rf"rounds/{plan.round}/updates/{client}(\.[0-9a-f]{{64}})?\.safetensors", key):
        raise _Refused(f"its record names {key!r} as its update")
    update = AdapterFile.parse(context.store.read_blob(Blob(key, record.update.sha256)))
    _check_header(update, expected, space, "update")
    vectors = update.vectors(roles.shared, context.spec.algorithm.uploads)
    return file.mask, Update(roles.shared, vectors, record.samples)


def _check_header(file: AdapterFile, expected: AdapterHeader, space: LoraSpace, what: str, skip: str = "") -> None:
    if file.space != space:
        raise _Refused(f"its {what} is of another space")
    for name, value in vars(expected).items():
        if name != skip and getattr(file.header, name) != value:
            raise _Refused(f"its {what} says {name} {getattr(file.header, name)!r}, the plan {value!r}")


def _check_quorum(plan: Plan, tally: _Tally, minimum: int) -> None:
    # As the file has it now: lowering it rescues a round whose planned clients are gone for good.
    if tally.delivered >= minimum:
        return
    lost = [outcome for outcome in tally.outcomes if isinstance(outcome, ClientStatus)]
    head = (
        f"round {plan.round} is not committed: {tally.delivered} of {len(tally.outcomes)} clients delivered, "
        f"participation.minimum_clients is {minimum}. The head stays where it was. Without an update:"
    )
    raise PerfitError(
        "\n".join([head, *(f"  {status.client} ({status.status}): {status.reason}" for status in lost)]),
        "repair these clients and run again (who delivered does not train again), or lower minimum_clients",
    )


def _commit(context: FederationContext, plan: Plan, space: LoraSpace, vectors: dict[str, np.ndarray]) -> None:
    spec, store, round = context.spec, context.store, plan.round
    downloads, own = split_state(spec, vectors)
    adapter = store.put_global(round, dump_server_vectors(spec, space, round, downloads))
    state = store.put_state(round, dump_server_vectors(spec, space, round, own)) if own else None
    if not store.advance_head(head_of(plan.base), Head(round, adapter, state)):
        raise PerfitError(
            f"round {round} of {spec.name!r} was committed by another run with other values",
            "nothing is lost: look which runs train this federation, and let one of them go on",
        )
