"""The lines that a client's task prints: how they are formatted, and how they are parsed."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Only where a line begins, and of bounded numbers: a remote client's reason is printed too, and may say what it likes.
_BEGIN = r"^\s*\[perfit\] round=(\d{1,9}) client=(\S+) "
_STEP = re.compile(_BEGIN + r"step=(\d{1,9})/(\d{1,9}) loss=(-?\d{1,30}\.\d{4}|nan|-?inf)\s*$")
_PHASE = re.compile(_BEGIN + r"phase=([a-z]+)\s*$")
_FAILURE = re.compile(r"client (\S+) has no result: (.*)", re.DOTALL)
_TASK = re.compile(r"Executing task .*?'([\w-]+)'")
_ERROR = re.compile(r"^(?:    )*perfit(?:_storage)?\.errors\.\w+: ")
_NOT_OF_AN_ERROR = re.compile(r"\d\d:\d\d:\d\d|[IWEF]\d{4} \d\d:|\[KFP ")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Step:
    """One optimiser step of one client; round 0 is the search."""

    round: int
    client: str
    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Phase:
    """What a client does from now on in a round: loading, searching, training, evaluating or done."""

    round: int
    client: str
    name: str


@dataclass(frozen=True)
class Failure:
    """A client that has no result, and the reason."""

    client: str
    reason: str


def format_step(round: int, client: str, step: int, steps: int, loss: float) -> str:
    """Return the line that reports one optimiser step."""
    return f"[perfit] round={round} client={client} step={step}/{steps} loss={loss:.4f}"


def parse_step(line: str) -> Step | None:
    """Return the step that a line reports, or None if it reports none."""
    match = _STEP.match(line)
    if not match:
        return None
    round, client, step, steps, loss = match.groups()
    return Step(int(round), client, int(step), int(steps), float(loss))


def format_phase(round: int, client: str, name: str) -> str:
    """Return the line that reports a client's phase."""
    return f"[perfit] round={round} client={client} phase={name}"


def parse_phase(line: str) -> Phase | None:
    """Return the phase that a line reports, or None if it reports none."""
    match = _PHASE.match(line)
    return Phase(int(match[1]), match[2], match[3]) if match else None


def format_failure(client: str, reason: str) -> str:
    """Return the text that reports why a client has no result; the reason may have several lines."""
    return f"client {client} has no result: {reason}"


def parse_failure(line: str) -> Failure | None:
    """Return the failure that a line reports, or None if it reports none."""
    match = _FAILURE.search(line)
    return Failure(match[1], match[2].strip()) if match else None


def parse_task(line: str) -> str | None:
    """Return the name of the task that a line of KFP's local runner announces, or None if it announces none."""
    match = _TASK.search(plain(line))
    return match[1] if match else None


class ErrorFinder:
    """Keeps the last error of ours that a task's traceback ended with, with its fix, over lines as they come.

    Attributes:
        last: Its text, without the name of its class; empty if there was none.
    """

    def __init__(self):
        self.last = ""
        self._reading = False

    def read(self, line: str) -> None:
        """Take a line, as KFP's local runner indents it or as a pod's log has it."""
        if _ERROR.match(line):
            self.last, self._reading = _ERROR.sub("", line), True
        elif self._reading and line.strip() and not _NOT_OF_AN_ERROR.match(line.strip()):
            self.last += "\n" + line.removeprefix("    ")
        else:
            self._reading = False


def plain(text: str) -> str:
    """Return text without terminal colours."""
    return _COLOUR.sub("", text)
