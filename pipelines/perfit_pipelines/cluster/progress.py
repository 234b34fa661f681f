"""What a person sees while a run on the cluster is followed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from perfit_pipelines.cluster.tasks import Task, TaskState

_OVER = ("SUCCEEDED", "SKIPPED")
_NAMES_SHOWN = 4


class RunProgress:
    """A table by stage that is kept up to date in a terminal; a line a change where output is not a terminal.

    Args:
        tasks: Of the run's pipeline.
        console: Where to draw.
        clock: Seconds, from any beginning.
    """

    def __init__(self, tasks: Sequence[Task], console: Console, clock: Callable[[], float] = time.monotonic):
        self._expected = Counter(task.stage for task in tasks)
        self._console, self._clock, self._begun = console, clock, clock()
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
        """Show where the run stands."""
        self._trouble = ""
        if self._live:
            self._live.update(self._table(state, tasks, waiting), refresh=True)
            return
        for task in tasks:
            if self._shown.get(task.name) != task.state:
                self._shown[task.name] = task.state
                self._say(f"{task.name}: {_spoken(task.state)}")
        if waiting != self._waiting and waiting:
            self._say(_waiting(waiting))
        if state != self._state:
            self._say(f"run: {_spoken(state)}")
        self._state, self._waiting = state, waiting

    def on_trouble(self, text: str) -> None:
        """Show what hinders following, once."""
        if text != self._trouble:
            self._trouble = text
            self._say(text)

    def _say(self, text: str) -> None:
        self._console.print(f"{self._elapsed()}  {text}", markup=False)

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(self._clock() - self._begun), 60)
        return f"{minutes:3d}:{seconds:02d}"

    def _table(self, state: str, tasks: Sequence[TaskState], waiting: int) -> Table:
        caption = f"{_spoken(state)}, {self._elapsed().strip()}" + (f", {_waiting(waiting)}" if waiting else "")
        table = Table(caption=caption, caption_justify="left", box=None, pad_edge=False)
        table.add_column("stage")
        table.add_column("done", justify="right")
        table.add_column("now")
        for stage in [*self._expected, ""]:
            own = [task for task in tasks if task.stage == stage]
            if not own:
                continue
            done = sum(task.state in _OVER for task in own)
            total = f"/{self._expected[stage]}" if stage else ""
            table.add_row(stage or "other", f"{done}{total}", _now(own))
        return table


def _now(tasks: Sequence[TaskState]) -> str:
    failed = [task.label for task in tasks if task.state == "FAILED"]
    running = [task.label for task in tasks if task.state not in (*_OVER, "FAILED")]
    parts = [f"[red]failed: {_some(failed)}[/]"] if failed else []
    return "  ".join(parts + ([_some(running)] if running else []))


def _some(names: Sequence[str]) -> str:
    from rich.markup import escape

    more = len(names) - _NAMES_SHOWN
    return escape(", ".join(names[:_NAMES_SHOWN])) + (f" and {more} more" if more > 0 else "")


def _spoken(state: str) -> str:
    return "cancelled" if state == "CANCELED" else state.lower().replace("_", " ")


def _waiting(pods: int) -> str:
    return f"{pods} pod{'s' if pods > 1 else ''} waiting for a node or an image"
