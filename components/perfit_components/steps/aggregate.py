"""Closes a round: commits it, draws the report, and plans the next round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perfit_components.steps.commit import commit_round
from perfit_components.steps.context import FederationContext, place_of
from perfit_components.steps.plan import LoopItem, participants
from perfit_components.steps.report import RoundReport, draw_report


@dataclass(frozen=True)
class ClosedRound:
    """A committed round: its report, and the participants of the next round by tier."""

    report: RoundReport
    participants: list[list[LoopItem]]


def close_round(uri: str, round: int, next_tiers: Sequence[str] = ()) -> ClosedRound:
    """Commit a round, draw its report and store it, and plan the next round.

    Args:
        uri: URI of the federation.
        round: From 1.
        next_tiers: Tiers of the compiled pipeline, in order, if the run continues with the next round.

    Raises:
        PerfitError: As :func:`perfit_components.steps.commit.commit_round`.
    """
    context = FederationContext.open(uri)
    summary = commit_round(context, round)
    print(f"round {round} is committed: {len(summary.trained)} of {len(summary.clients)} clients delivered", flush=True)
    for status in summary.lost:
        print(f"  {status.text}", flush=True)
    for limited in summary.limited:
        factors = "".join(f"; its change in {name} times {factor:.3g}" for name, factor in limited.factors.items())
        print(f"  {limited.client} counts as {limited.weight:,} of {limited.samples:,} samples{factors}", flush=True)
    report = draw_report(context, round)
    if report.move:
        print(f"  {report.move}", flush=True)
    context.store.put_report(place_of(summary), report.html.encode())
    return ClosedRound(report, participants(context, round + 1, next_tiers) if next_tiers else [])
