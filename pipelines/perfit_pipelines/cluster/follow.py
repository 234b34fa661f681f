"""Following a run to its end, and what a person sees of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kfp_server_api import V2beta1Run
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from perfit.errors import PerfitError
from perfit_pipelines.cluster.connection import Kubeflow
from perfit_pipelines.cluster.errors import CallError, explain, is_transient
from perfit_pipelines.cluster.tasks import Task, TaskReader, TaskState

SUCCEEDED = "SUCCEEDED"
FAILED = "FAILED"
FINAL = (SUCCEEDED, FAILED, "CANCELED", "SKIPPED")
_DONE = (SUCCEEDED, "SKIPPED")
_NAMES_SHOWN = 4


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

    def on_progress(self, state: str, tasks: list[TaskState], waiting: int) -> None:
        """Take the run's state, those of its tasks, and how many pods wait for a node."""

    def on_trouble(self, text: str) -> None:
        """Take a problem of following, which goes on."""


@dataclass(frozen=True)
class Outcome:
    """How following ended.

    Args:
        state: The run's state: a final one, unless the time limit was reached.
        tasks: The states of its tasks.
        message: KFP's message about the run's failure, if any.
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
    """Poll a run until it is over.

    While the server does not answer, or fails itself, the call is repeated.

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
                    f"{trouble.fix}; then: perfit follow {run_id}",
                ) from error
            watcher.on_trouble(f"{trouble.problem}; trying again")
        else:
            answered = clock()
            details = (run.run_details and run.run_details.task_details) or []
            tasks, state = reader.read(details), run.state or "PENDING"
            watcher.on_progress(state, tasks, reader.waiting_pods(details))
            if state in FINAL or (pace.limit is not None and clock() - started >= pace.limit):
                return Outcome(state, tasks, _message(run))
            if (state, tasks) != before:
                wait, before = pace.first, (state, tasks)
        sleep(wait)
        wait = min(wait * pace.growth, pace.longest)


def _message(run: V2beta1Run) -> str:
    return ((run.error and run.error.message) or "").partition("\n")[0]


class RunProgress:
    """A live table of the stages in a terminal; otherwise a line for each change.

    Args:
        tasks: Of the run's pipeline.
        console: Where to draw.
        clock: Seconds since any point in time.
    """

    def __init__(self, tasks: Sequence[Task], console: Console, clock: Callable[[], float] = time.monotonic):
        self._expected = Counter(task.stage for task in tasks)
        self._console, self._clock, self._started = console, clock, clock()
        self._shown: dict[str, str] = {}
        self._state, self._waiting, self._trouble = "", 0, ""
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> RunProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._live:
            self._live.stop()

    def on_progress(self, state: str, tasks: list[TaskState], waiting: int) -> None:
        """Show the run's progress."""
        self._trouble = ""
        if self._live:
            self._live.update(self._table(state, tasks, waiting), refresh=True)
            return
        for task in tasks:
            if self._shown.get(task.name) != task.state:
                self._shown[task.name] = task.state
                self._print(f"{task.name}: {_state_text(task.state)}")
        if waiting != self._waiting and waiting:
            self._print(_waiting(waiting))
        if state != self._state:
            self._print(f"run: {_state_text(state)}")
        self._state, self._waiting = state, waiting

    def on_trouble(self, text: str) -> None:
        """Show a problem of following, once."""
        if text != self._trouble:
            self._trouble = text
            self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(f"{self._elapsed()}  {text}", markup=False)

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(self._clock() - self._started), 60)
        return f"{minutes:3d}:{seconds:02d}"

    def _table(self, state: str, tasks: Sequence[TaskState], waiting: int) -> Table:
        caption = f"{_state_text(state)}, {self._elapsed().strip()}" + (f", {_waiting(waiting)}" if waiting else "")
        table = Table(caption=caption, caption_justify="left", box=None, pad_edge=False)
        table.add_column("stage")
        table.add_column("done", justify="right")
        table.add_column("now")
        for stage in [*self._expected, ""]:
            own = [task for task in tasks if task.stage == stage]
            if not own:
                continue
            done = sum(task.state in _DONE for task in own)
            total = f"/{self._expected[stage]}" if stage else ""
            table.add_row(stage or "other", f"{done}{total}", _now(own))
        return table


def _now(tasks: Sequence[TaskState]) -> str:
    failed = [task.label for task in tasks if task.state == FAILED]
    running = [task.label for task in tasks if task.state not in (*_DONE, FAILED)]
    parts = [f"[red]failed: {_shorten(failed)}[/]"] if failed else []
    return "  ".join(parts + ([_shorten(running)] if running else []))


def _shorten(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return escape(", ".join(names[:_NAMES_SHOWN])) + (f" and {more} more" if more > 0 else "")


def _state_text(state: str) -> str:
    return "cancelled" if state == "CANCELED" else state.lower().replace("_", " ")


def _waiting(pods: int) -> str:
    return f"{pods} pod{'s' if pods > 1 else ''} waiting for a node or an image"
