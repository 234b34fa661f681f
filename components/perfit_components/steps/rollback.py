"""Moves the head of a federation back to an earlier round. No file is deleted or overwritten."""

from __future__ import annotations

from dataclasses import dataclass

from perfit.errors import PerfitError
from perfit_components.steps.commit import ensure_base
from perfit_components.steps.context import FederationContext, head_of
from perfit_storage import Head


@dataclass(frozen=True)
class Rollback:
    """The heads before and after a rollback."""

    old: Head
    new: Head


def plan_rollback(context: FederationContext, round: int) -> Rollback:
    """Find the head that a round left, and verify what it names; the head does not move.

    If something that it names is missing in the store, it is computed again.

    Args:
        context: The federation's context.
        round: The last round that shall count; 0 for none.

    Raises:
        PerfitError: The round is not before the head's, something that its head names is damaged or cannot be computed
            again, or the store cannot be reached.
    """
    head = context.store.read_head()
    if round >= head.round:
        raise PerfitError(
            f"{context.spec.name!r} cannot be rolled back to round {round}: its head is at round {head.round}",
            "give an earlier round than the head's" if head.round else "no round is committed yet: run it first",
        )
    base = context.base_after(round)
    ensure_base(context, base)
    context.state(base)
    if base.summary:
        context.summary_of(base)
    return Rollback(head, head.rolled_back_to(head_of(base)))


def roll_back(context: FederationContext, rollback: Rollback) -> None:
    """Move the head.

    Raises:
        PerfitError: It has moved since the rollback was planned, or the store cannot be reached or written.
    """
    if not context.store.roll_back_head(rollback.old, rollback.new):
        raise PerfitError(
            f"the head of {context.spec.name!r} has moved meanwhile, and was left where it is",
            "end the runs of this federation, look at its status, then roll back again",
        )
