"""Following a run to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from kfp_server_api import V2beta1Run

from perfit.errors import PerfitError
from perfit_pipelines.cluster.connection import Kubeflow
from perfit_pipelines.cluster.errors import CallError, explain, is_transient
from perfit_pipelines.cluster.nodes import (
    DONE,
    FAILED,
    FINAL,
    SUCCEEDED,
    WAITING,
    RunView,
    Source,
    TaskReader,
    TaskState,
    waiting_pods,
)


@dataclass(frozen=True)
class Pace:
    """How often a run is polled, in seconds: less often while nothing changes.

    Args:
        first: After a change.
        longest: After a long time without a change.
        growth: Factor from one poll to the next.
        patience: How long the server may fail to answer before following ends.
        limit: How long to follow at most; None for as long as it takes.
    """

    first: float = 2.0
    longest: float = 30.0
    growth: float = 1.5
    patience: float = 600.0
    limit: float | None = None


class Watcher(Protocol):
    """Is told of a run's progress."""

    def on_progress(self, view: RunView) -> None:
        """Take what is known of the run now."""

    def on_trouble(self, text: str) -> None:
        """Take a problem of following, which goes on."""


def follow(
    kubeflow: Kubeflow,
    run_id: str,
    reader: TaskReader,
    watcher: Watcher,
    sources: Sequence[Source] = (),
    pace: Pace = Pace(),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    again: str | None = None,
) -> RunView:
    """Poll a run until it is over, and return what is known of it then.

    While the server does not answer, or fails itself, the call is repeated. ``again`` is how to follow again.

    Raises:
        PerfitError: The server refused (a token that expired, a run that was deleted), or gave no answer for too long.
    """
    started = answered = clock()
    wait, before = pace.first, None
    while True:
        try:
            run = kubeflow.read_run(run_id)
        except CallError as error:
            trouble = explain(error, "show the run", kubeflow.where)
            if not is_transient(error) or clock() - answered > pace.patience:
                raise PerfitError(
                    f"following ended, while the run goes on: {trouble.problem}",
                    f"{trouble.fix}; then: {again or f'perfit follow {run_id}'}",
                ) from error
            watcher.on_trouble(f"{trouble.problem}; trying again")
        else:
            answered = clock()
            view = _look(run, reader, sources)
            watcher.on_progress(view)
            if view.state in FINAL or (pace.limit is not None and clock() - started >= pace.limit):
                return view
            if view != before:
                wait, before = pace.first, view
        sleep(wait)
        wait = min(wait * pace.growth, pace.longest)


def exit_code(state: str) -> int:
    """Return the exit code for a run's state: 0 succeeded, 3 failed, 4 cancelled, skipped or not over in time."""
    return {SUCCEEDED: 0, FAILED: 3}.get(state, 4)


def _look(run: V2beta1Run, reader: TaskReader, sources: Sequence[Source]) -> RunView:
    details = (run.run_details and run.run_details.task_details) or []
    view = RunView(
        run.state or WAITING,
        reader.read(details),
        waiting_pods(details),
        len(details),
        (run.finished_at - run.created_at).total_seconds() if run.state in FINAL and run.finished_at else None,
        ((run.error and run.error.message) or "").partition("\n")[0],
    )
    for source in sources:
        view = source.add(view)
    return replace(view, tasks=reader.in_order(_ended(task, view) for task in view.tasks))


def _ended(task: TaskState, view: RunView) -> TaskState:
    """A task of a run that succeeded has succeeded, whatever a list says that has stopped."""
    over = view.state == SUCCEEDED and task.state not in (*FINAL, *DONE)
    return replace(task, state=SUCCEEDED) if over else task
