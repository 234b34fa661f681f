"""Progress of clients, read from what their tasks print."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

_STEP = re.compile(r"\[perfit\] round=(\d+) client=(\S+) step=(\d+)/(\d+) loss=(\S+)")
_TASK = re.compile(r"Executing task .*?'([\w-]+)'")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Step:
    """One optimizer step of one client; round 0 is the search."""

    round: int
    client: str
    step: int
    steps: int
    loss: float


def parse_step(line: str) -> Step | None:
    """Return the step that a line of a client task's output reports, if it does."""
    found = _STEP.search(line)
    if not found:
        return None
    round, client, step, steps, loss = found.groups()
    return Step(int(round), client, int(step), int(steps), float(loss))


def parse_task(line: str) -> str | None:
    """Return the name of the task that a line of KFP's local runner announces, if it does."""
    found = _TASK.search(plain(line))
    return found[1] if found else None


def plain(text: str) -> str:
    """Return text without a terminal's colours."""
    return _COLOUR.sub("", text)


class OutputLog:
    """Standard output of a local run: every line goes to a log file and to a listener.

    KFP's runner prints the tasks' output from several threads, in pieces; lines are put together by thread.
    """

    encoding = "utf-8"

    def __init__(self, file: IO[str], on_line: Callable[[str], None]):
        self._file, self._on_line = file, on_line
        self._pending = threading.local()
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Take a piece of output."""
        *lines, self._pending.text = (getattr(self._pending, "text", "") + text).split("\n")
        with self._lock:
            for line in lines:
                self._file.write(plain(line) + "\n")
                self._on_line(line)
        return len(text)

    def flush(self) -> None:
        """Bring the log file up to date."""
        self._file.flush()

    def isatty(self) -> bool:
        """Never: colours are for people."""
        return False
