"""What became of a federation's rounds before this run: for whoever reads the log of its Prepare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from perfit.protocol import ClientStatus
from perfit_components.steps.context import FederationContext, base_of
from perfit_components.steps.contribution import read_outcome
from perfit_storage import AccessDenied, Head, ObjectNotFound


def recap(context: FederationContext) -> list[str]:
    """Return who did not deliver in the last committed round and why, and who is late in one that was begun.

    Raises:
        PerfitError: The store cannot be reached, or a stored file is damaged.
    """
    head = context.store.read_head()
    try:
        return [*_committed(context, head), *_begun(context, head)]
    except AccessDenied as error:  # by policies of before; what a run needs itself it finds out soon enough
        return [f"what became of earlier rounds is not shown: {error}"]


def _committed(context: FederationContext, head: Head) -> Iterator[str]:
    if head.round == 0:
        return
    with suppress(ObjectNotFound):  # planning makes a summary that was lost again
        summary = context.summary_of(base_of(head))
        yield f"round {head.round} is committed: {len(summary.trained)} of {len(summary.clients)} clients delivered"
        yield from (f"  {status.text}" for status in summary.lost)


def _begun(context: FederationContext, head: Head) -> Iterator[str]:
    place = head.place(head.round + 1)
    plan = context.find_plan(place)
    if plan is None:
        return
    found = context.store.find_records(place)
    outcomes = [read_outcome(context, plan, p) for p in plan.participants if p.client in found]
    lost = [outcome for outcome in outcomes if isinstance(outcome, ClientStatus)]
    delivered, clients = len(outcomes) - len(lost), len(plan.participants)
    yield f"round {plan.round} was begun by an earlier run: {delivered} of {clients} clients have delivered"
    yield from (f"  {status.text}" for status in lost)
    if late := [participant.client for participant in plan.participants if participant.client not in found]:
        yield f"  no record yet: {', '.join(late)}"
