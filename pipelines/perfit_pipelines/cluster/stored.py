"""A run's progress as its federation's store has it: who delivered, who reports a failure, which rounds are committed.

Kubeflow's list says of a client only whether its pod ended well, which it also does after a failure that it could
report, and stops where a run has very many nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from perfit.errors import PerfitError
from perfit.protocol import Outcome, Plan, UpdateRecord
from perfit_components.steps.context import FederationContext
from perfit_components.steps.contribution import read_outcome
from perfit_components.steps.plan import remote_participants
from perfit_pipelines.cluster.nodes import (
    COMMITTED,
    DELIVERED,
    FAILED,
    FINAL,
    NO_UPDATE,
    SUCCEEDED,
    RunView,
    TaskState,
)
from perfit_pipelines.cluster.tasks import Task
from perfit_storage import FederationStore, Head

_PAUSE_S = 60.0
"""Until a store that did not answer is asked again."""


class StoreProgress:
    """Completes a view of a run by what its federation's store says, with this machine's credentials.

    Args:
        uri: URI of the store.
        name: Name of the federation's directory.
        tasks: Of the run's pipeline.
        clock: Seconds since any point in time.

    Attributes:
        problem: Why nothing is known; None if the store answers.
        head: The last committed round; None if nothing is known.
        rounds: The outcomes of the rounds that were committed since the first look, by client.
    """

    def __init__(self, uri: str, name: str, tasks: Sequence[Task], clock: Callable[[], float] = time.monotonic):
        self.problem: PerfitError | None = None
        self.head: int | None = None
        self.rounds: dict[int, dict[str, Outcome]] = {}
        self._uri, self._name, self._tasks, self._clock = uri, name, tasks, clock
        self._context: FederationContext | None = None
        self._again = 0.0
        self._first = 1
        self._round: int | None = None  # of tasks whose pipeline does not know it
        self._plan: Plan | None = None
        self._records: dict[str, Outcome] = {}
        self._stale: dict[str, Outcome] = {}

    def add(self, view: RunView) -> RunView:
        """See :class:`perfit_pipelines.cluster.nodes.Source`."""
        if self.problem and self._clock() < self._again:
            return view
        try:
            self._read(view)
        except PerfitError as error:
            self.problem, self._again = error, self._clock() + _PAUSE_S
            return view
        self.problem = None
        known = {(state.stage, state.label): state for state in view.tasks}
        completed = [self._completed(task, known.pop((task.stage, task.label), None)) for task in self._tasks]
        tasks = [*(state for state in completed if state), *known.values()]
        return replace(view, tasks=tasks, told_by=(*view.told_by, "the store"))

    def outcomes(self) -> dict[int, dict[str, Outcome]]:
        """Return what is known of each round since the first look: committed ones, then the one under way."""
        under_way = {self._plan.round: self._records} if self._plan else {}
        return {**under_way, **self.rounds}

    def silent(self, round: int) -> list[str]:
        """Return the participants of the round under way that have no record yet; none for other rounds."""
        if self._plan is None or self._plan.round != round or round in self.rounds:
            return []
        return [p.client for p in self._plan.participants if p.client not in self._records]

    def _read(self, view: RunView) -> None:
        is_first = self._context is None
        if self._context is None:
            context = FederationContext.of(FederationStore.open(self._uri, self._name))
            self._first = context.store.read_head().round + 1
            if not any(state.key == "aggregate" for state in view.tasks):
                self._round = self._first
            self._context = context
        head = self._context.store.read_head()
        self.head = head.round
        for round in range(self._first, head.round + 1):
            if round not in self.rounds:
                summary = self._context.summary_of(self._context.base_after(round))
                self.rounds[round] = {outcome.client: outcome for outcome in summary.clients}
        self._read_records(self._context, head, is_first)

    def _read_records(self, context: FederationContext, head: Head, is_first: bool) -> None:
        """Read the records of the round under way that are new; one that failed may yet be replaced."""
        number = head.round + 1
        place = head.place(number)
        if self._plan is None or self._plan.round != number:
            self._plan, self._records, self._stale = context.find_plan(place), {}, {}
        if self._plan is None:
            return
        found = context.store.find_records(place)
        for participant in self._plan.participants:
            if participant.client in found and not isinstance(self._records.get(participant.client), UpdateRecord):
                self._records[participant.client] = read_outcome(context, self._plan, participant)
        if is_first:  # of an earlier run, perhaps: a client that failed then may do well now
            self._stale = {c: o for c, o in self._records.items() if not isinstance(o, UpdateRecord)}

    def _answers(self, plan: Plan) -> str:
        """Say which remote clients have a record of the round under way."""
        remote = [p.client for p in remote_participants(self._context, plan)]
        late = [client for client in remote if client not in self._records]
        waits = f"; waiting for {', '.join(late)}" if late else ""
        return f"{len(remote) - len(late)} of {len(remote)} answered{waits}"

    def _completed(self, task: Task, state: TaskState | None) -> TaskState | None:
        round = task.round or (self._round if task.key != "prepare" else None)
        if task.key == "aggregate" and round in self.rounds and (state is None or state.state not in FINAL):
            return _with(task, state, COMMITTED)
        if task.key == "wait" and state and state.state not in FINAL and self._plan and self._plan.round == round:
            return replace(state, reason=self._answers(self._plan))
        outcome = self.outcomes().get(round or 0, {}).get(task.client)
        if outcome is None:
            return state
        if isinstance(outcome, UpdateRecord):
            return state if state and state.state in FINAL else _with(task, state, DELIVERED)
        over = round in self.rounds or (state is not None and state.state == SUCCEEDED)
        if not over and self._stale.get(task.client) == outcome:
            return state
        if state and state.state == FAILED:
            return state if outcome.status == "missing" else replace(state, reason=outcome.reason)
        return _with(task, state, NO_UPDATE, f"{outcome.status}: {outcome.reason}")


def _with(task: Task, state: TaskState | None, name: str, reason: str = "") -> TaskState:
    state = state or TaskState(task.key, task.stage, task.label, name)
    return replace(state, state=name, reason=reason)
