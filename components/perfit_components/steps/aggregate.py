"""Closes a round: commits it, draws the report, and plans the next round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perfit_components.steps.commit import commit_round
from perfit_components.steps.context import FederationContext, place_of
from perfit_components.steps.plan import LoopItem, in_pods, participants
from perfit_components.steps.report import RoundReport, draw_report, report_unfinished


@dataclass(frozen=True)
class ClosedRound:
    """A committed round: its report, and the participants of the next round by tier."""

    report: RoundReport
    participants: list[list[LoopItem]]


def close_round(uri: str, round: int, next_tiers: Sequence[str] | None = None, served: int = 0) -> ClosedRound:
    """Commit a round, draw its report and store it, and plan the next round.

    Where a further run is to serve the rest of a round's participants, only note how many have been served.

    Args:
        uri: URI of the federation.
        round: From 1.
        next_tiers: Tiers of the compiled pipeline, in order, if the run continues with the next round, which may be
            one of remote clients alone; None if it ends.
        served: How many of the round's participants this run and those before it have served; 0 for all.

    Raises:
        PerfitError: As :func:`perfit_components.steps.commit.commit_round`.
    """
    context = FederationContext.open(uri)
    if unfinished := _note_served(context, round, served):
        return ClosedRound(unfinished, [])
    summary = commit_round(context, round)
    print(f"round {round} is committed: {len(summary.trained)} of {len(summary.clients)} clients delivered", flush=True)
    for status in summary.lost:
        print(f"  {status.text}", flush=True)
    for limited in summary.limited:
        factors = "".join(f"; its change in {name} times {factor:.3g}" for name, factor in limited.factors.items())
        print(f"  {limited.client} counts as {limited.weight:,} of {limited.samples:,} samples{factors}", flush=True)
    report = draw_report(context, context.summaries(round))
    if report.move:
        print(f"  {report.move}", flush=True)
    context.store.put_report(place_of(summary), report.html.encode())
    return ClosedRound(report, [] if next_tiers is None else participants(context, round + 1, next_tiers))


def _note_served(context: FederationContext, round: int, served: int) -> RoundReport | None:
    """Note how many participants in pods have been served; return a report if some have not.

    After the last of them the count begins again: should the round fall short of its quorum, all are tried once more.
    """
    head = context.store.read_head()
    if not served or head.round >= round:
        return None
    place = head.place(round)
    count = len(in_pods(context, context.plan(place)))
    context.store.put_served(place, served if served < count else 0)
    if served >= count:
        return None
    print(f"round {round}: {served} of {count} participants served; the next run goes on", flush=True)
    return report_unfinished(round, served, count)
