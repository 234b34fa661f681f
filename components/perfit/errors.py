"""Errors that a user can act on."""

from __future__ import annotations


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
    """Return text with escapes for what does something to a terminal: control characters, changes of direction.

    Args:
        text: From outside: of a record, a file, a library's error.
        keep: Characters to leave as they are.
    """
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""
