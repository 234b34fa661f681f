"""Following a run to its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kfp_server_api import V2beta1Run

from perfit.errors import PerfitError
from perfit_pipelines.cluster.client import Kubeflow
from perfit_pipelines.cluster.errors import CallError, explain, is_transient
from perfit_pipelines.cluster.tasks import TaskReader, TaskState

SUCCEEDED = "SUCCEEDED"
FAILED = "FAILED"
FINAL = (SUCCEEDED, FAILED, "CANCELED", "SKIPPED")


@dataclass(frozen=True)
class Pace:
    """How often a run is looked at, in seconds: rarely while nothing changes.

    Args:
        first: After a change.
        longest: After long without one.
        growth: From one look to the next.
        patience: How long the server may give no answer before following ends.
        limit: How long to follow at most; None for as long as it takes.
    """

    first: float = 2.0
    longest: float = 30.0
    growth: float = 1.5
    patience: float = 600.0
    limit: float | None = None


class Watcher(Protocol):
    """Who is told of a run's progress."""

    def on_progress(self, state: str, tasks: list[TaskState], waiting: int) -> None:
        """Take the run's state, those of its tasks, and how many pods wait for a node."""

    def on_trouble(self, text: str) -> None:
        """Take what hinders following; it goes on."""


@dataclass(frozen=True)
class Outcome:
    """How following ended.

    Args:
        state: The run's state: a final one, unless the time was over.
        tasks: The states of its tasks.
        message: What KFP says of the run's failure, if anything.
    """

    state: str
    tasks: list[TaskState]
    message: str = ""

    @property
    def failed(self) -> list[TaskState]:
        """The tasks that failed."""
        return [task for task in self.tasks if task.state == FAILED]

    @property
    def exit_code(self) -> int:
        """0 succeeded, 3 failed, 4 cancelled, skipped or not over in time."""
        return {SUCCEEDED: 0, FAILED: 3}.get(self.state, 4)


def follow(
    kubeflow: Kubeflow,
    run_id: str,
    reader: TaskReader,
    watcher: Watcher,
    pace: Pace = Pace(),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Look at a run until it is over.

    While the server gives no answer, or fails itself, it is asked again.

    Raises:
        PerfitError: The server refused (a token that expired, a run that was deleted), or gave no answer for too long.
    """
    begun = answered = clock()
    wait, before = pace.first, None
    while True:
        try:
            run = kubeflow.read_run(run_id)
        except CallError as error:
            trouble = explain(error, "show the run", kubeflow.where)
            if not is_transient(error) or clock() - answered > pace.patience:
                raise PerfitError(
                    f"following ended, while the run goes on: {trouble.problem}",
                    f"{trouble.fix}; then: perfit follow {run_id}",
                ) from error
            watcher.on_trouble(f"{trouble.problem}; trying again")
        else:
            answered = clock()
            details = (run.run_details and run.run_details.task_details) or []
            tasks, state = reader.read(details), run.state or "PENDING"
            watcher.on_progress(state, tasks, reader.waiting_pods(details))
            if state in FINAL or (pace.limit is not None and clock() - begun >= pace.limit):
                return Outcome(state, tasks, _message(run))
            if (state, tasks) != before:
                wait, before = pace.first, (state, tasks)
        sleep(wait)
        wait = min(wait * pace.growth, pace.longest)


def _message(run: V2beta1Run) -> str:
    return ((run.error and run.error.message) or "").partition("\n")[0]
