"""Waits for the clients of a round that are no tasks: those of remote tiers, which their owners run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from perfit.protocol import ClientStatus, Outcome, Participant, Plan
from perfit_components.log_lines import format_failure, format_phase
from perfit_components.steps.context import FederationContext, place_of
from perfit_components.steps.contribution import read_outcome
from perfit_components.steps.plan import in_pods, remote_participants
from perfit_components.steps.polling import Pace


def wait_for_clients(
    uri: str,
    round: int,
    served: int = 0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Wait until each participant of a remote tier has a record of the round, or its tier's deadline has passed.

    A record counts as an answer whether it is an update or says why there is none: whether the round has its quorum is
    for the aggregation. The deadlines are those of the file in the store, and begin now. A round that is committed, or
    rolled back, meanwhile is waited for no longer.

    Args:
        uri: URI of the federation.
        round: From 1.
        served: How many of the participants in pods this run and those before it serve; 0 for all. Only the last run
            of a round waits.
        sleep: Wait so many seconds.
        clock: Seconds since any point in time.

    Returns:
        How many answered, and who did not.

    Raises:
        PerfitError: The round is not planned, or the store cannot be reached.
    """
    context = FederationContext.open(uri)
    head = context.store.read_head()
    if head.round >= round:
        return f"round {round} is committed"
    plan = context.plan(head.place(round))
    pods = len(in_pods(context, plan))
    if 0 < served < pods:
        return f"{pods - served} participants in pods are still to be served: the last run of the round waits"
    waiting = _Waiting(context, plan, remote_participants(context, plan))
    waiting.until(clock, sleep)
    return waiting.summary()


@dataclass
class _Waiting:
    context: FederationContext
    plan: Plan
    participants: list[Participant]
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def until(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        """Look again and again, until nobody can be waited for."""
        started, pace = clock(), Pace()
        if self.participants:
            print(f"round {self.plan.round} waits for {', '.join(p.client for p in self.participants)}", flush=True)
        while True:
            if self._read_new():
                pace.changed()
            elapsed = clock() - started
            left = [self._deadline(p) - elapsed for p in self._late()]
            if max(left, default=0) <= 0 or not self._is_open():
                return
            sleep(min(pace.pause(), max(left)))

    def summary(self) -> str:
        """Return how many answered, and who did not."""
        delivered = sum(not isinstance(outcome, ClientStatus) for outcome in self.outcomes.values())
        late = "".join(
            f"\n{p.client} left no record within {self._deadline(p)} s (tiers.{p.tier}.deadline_seconds)"
            for p in self._late()
        )
        return f"{delivered} of {len(self.participants)} remote clients delivered{late}"

    def _read_new(self) -> bool:
        """Read the records that are there now, and were not."""
        found = self.context.store.find_records(place_of(self.plan))
        new = [p for p in self._late() if p.client in found]
        for participant in new:
            outcome = read_outcome(self.context, self.plan, participant)
            self.outcomes[participant.client] = outcome
            if isinstance(outcome, ClientStatus):
                print(format_failure(outcome.client, " ".join(outcome.reason.split())), flush=True)  # one line
            else:
                print(format_phase(outcome.round, outcome.client, "done"), flush=True)
        return bool(new)

    def _late(self) -> list[Participant]:
        return [p for p in self.participants if p.client not in self.outcomes]

    def _deadline(self, participant: Participant) -> int:
        return self.context.spec.tiers[participant.tier].deadline_seconds

    def _is_open(self) -> bool:
        head = self.context.store.read_head()
        return head.round < self.plan.round and head.place(self.plan.round) == place_of(self.plan)
