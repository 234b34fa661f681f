"""Errors that a user can act on."""

from __future__ import annotations

import logging

_LOG = logging.getLogger(__name__)


class PerfitError(ValueError):
    """A mistake in what the user gave, or a state that the user must resolve.

    Args:
        problem: What is wrong, with the offending value and its place (file, line, key).
        fix: What to do next.
    """

    def __init__(self, problem: str, fix: str):
        self.problem = problem
        self.fix = fix
        super().__init__(f"{problem}\n  fix: {fix}")

    def __reduce__(self):
        return type(self), (self.problem, self.fix)


def printable(text: str, keep: str = "") -> str:
    """Return text with control characters and changes of direction, which act on a terminal, as escapes.

    Args:
        text: Text from outside: a record, a file, a library's error.
        keep: Characters that are not escaped.
    """
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def log_error(what: str, error: BaseException) -> None:
    """Write a library's error, which may hold records, to the log, which stays with the records' owner."""
    _LOG.warning("%s: %s: %s", printable(what), type(error).__name__, printable(str(error)))


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""
