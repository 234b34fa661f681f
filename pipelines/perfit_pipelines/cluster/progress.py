"""What a person sees of a run that is followed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from perfit_pipelines.cluster.nodes import (
    DONE,
    FAILED,
    FINAL,
    NO_UPDATE,
    STARTED,
    SUCCEEDED,
    WAITING,
    RunView,
    TaskState,
)
from perfit_pipelines.cluster.submit import Submitted
from perfit_pipelines.options import errors

_NAMES_SHOWN = 4
_WORDS = {WAITING: "waiting", STARTED: "waiting or running", NO_UPDATE: "no update", "CANCELED": "cancelled"}
_LIST_STOPS = (
    "Kubeflow lists {nodes} nodes of this run; beyond about 1 MiB its list stays as it is, while the run goes on. "
    "What happens then is told by {told_by}"
)
_NOBODY = "nobody: set AWS_* to keys of the store, or KUBECONFIG to the cluster's, and follow again"


class RunProgress:
    """A live table of the stages in a terminal; otherwise a line for each change.

    Args:
        run_id: Of the run.
        submitted: What it was started with.
        console: Where to draw.
        clock: Seconds since any point in time.
    """

    def __init__(
        self, run_id: str, submitted: Submitted, console: Console, clock: Callable[[], float] = time.monotonic
    ):
        self._run_id, self._submitted = run_id, submitted
        self._expected = Counter(task.stage for task in submitted.tasks)
        self._console, self._clock, self._started = console, clock, clock()
        self._shown: dict[str, str] = {}
        self._before, self._trouble = RunView("", []), ""
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> RunProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._live:
            self._live.stop()

    def on_progress(self, view: RunView) -> None:
        """Show what is known of the run now."""
        self._trouble = ""
        if view.nodes >= self._submitted.listed > self._before.nodes:
            told_by = " and ".join(view.told_by) or _NOBODY
            self._print(_LIST_STOPS.format(nodes=view.nodes, told_by=told_by))
        if self._live:
            self._live.update(self._table(view), refresh=True)
        else:
            self._print_changes(view)
        self._before = view

    def _print_changes(self, view: RunView) -> None:
        for task in view.tasks:
            text = _task_text(task)
            if self._shown.get(task.name) != text:
                self._shown[task.name] = text
                self._print(f"{task.name}: {text}")
        if view.waiting not in (0, self._before.waiting):
            self._print(_waiting(view.waiting))
        if view.state != self._before.state:
            self._print(f"run: {_state_text(view.state)}")

    def on_trouble(self, text: str) -> None:
        """Show a problem of following, once."""
        if text != self._trouble:
            self._trouble = text
            self._print(text)

    def end(self, state: str, causes: Sequence[str]) -> None:
        """Say how the run ended, and why it failed; or that it goes on."""
        if state == SUCCEEDED:
            last = "the last of a round's runs commits the round and has its report"
            report = "the report is on the task Aggregate of its last round"
            self._console.print(f"the run succeeded; {last if self._submitted.at_most else report}", markup=False)
        elif state == FAILED:
            errors.print("the run failed", style="bold red")
            for line in causes:
                errors.print(f"  {line}", markup=False)
        elif state in FINAL:
            errors.print(f"the run was {_state_text(state)}", markup=False)
        else:
            errors.print(f"not over in time; the run goes on. Follow again: perfit follow {self._run_id}", markup=False)

    def _print(self, text: str) -> None:
        self._console.print(f"{self._elapsed()}  {text}", markup=False)

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(self._clock() - self._started), 60)
        return f"{minutes:3d}:{seconds:02d}"

    def _table(self, view: RunView) -> Table:
        caption = f"{_state_text(view.state)}, {self._elapsed().strip()}"
        caption += f", {_waiting(view.waiting)}" if view.waiting else ""
        table = Table(caption=caption, caption_justify="left", box=None, pad_edge=False)
        table.add_column("stage")
        table.add_column("done", justify="right")
        table.add_column("now")
        for stage in [*self._expected, ""]:
            own = [task for task in view.tasks if task.stage == stage]
            if not own:
                continue
            done = sum(task.state in DONE for task in own)
            total = f"/{self._expected[stage]}" if stage else ""
            table.add_row(stage or "other", f"{done}{total}", _now(own))
        return table


class JsonProgress(AbstractContextManager):
    """Prints each change of a run as a JSON object on a line: a view, a problem of following, or its end."""

    def __init__(self, run_id: str):
        self._run_id = run_id
        self._before: RunView | None = None

    def __exit__(self, *exception) -> None:
        """Leave nothing open."""

    def on_progress(self, view: RunView) -> None:
        """Print what is known of the run now, if it is something new."""
        if view != self._before:
            self._before = view
            print(json.dumps(asdict(view)), flush=True)

    def on_trouble(self, text: str) -> None:
        """Print a problem of following."""
        print(json.dumps({"trouble": text}), flush=True)

    def end(self, state: str, causes: Sequence[str]) -> None:
        """Print how the run ended, and why it failed."""
        print(json.dumps({"run": self._run_id, "state": state, "causes": causes}))


def _now(tasks: Sequence[TaskState]) -> str:
    """The tasks of a stage that are not done, by state: those that failed first."""
    groups = {
        "[red]failed: {}[/]": [task for task in tasks if task.state == FAILED],
        "[red]no update: {}[/]": [task for task in tasks if task.state == NO_UPDATE],
        "waiting: {}": [task for task in tasks if task.state == WAITING],
        "{}": [task for task in tasks if task.state not in (*DONE, *FINAL, WAITING)],
    }
    return "  ".join(text.format(_shorten([task.label for task in own])) for text, own in groups.items() if own)


def _shorten(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return escape(", ".join(names[:_NAMES_SHOWN])) + (f" and {more} more" if more > 0 else "")


def _task_text(task: TaskState) -> str:
    text = _state_text(task.state) + (f", attempt {task.attempt}" if task.attempt > 1 else "")
    return f"{text}: {task.reason}" if task.reason else text


def _state_text(state: str) -> str:
    return _WORDS.get(state) or state.lower().replace("_", " ")


def _waiting(pods: int) -> str:
    return f"{pods} pod{'s' if pods > 1 else ''} waiting for a node or an image"
