"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check ended; only ``FAIL`` stands in a run's way for certain."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Check:
    """A finding, and what to do about it unless all is well."""

    name: str
    status: Status
    finding: str
    fix: str = ""


def ok(name: str, finding: str) -> Check:
    """All is well."""
    return Check(name, Status.OK, finding)


def warn(name: str, finding: str, fix: str) -> Check:
    """A run works, but not as well as it might."""
    return Check(name, Status.WARN, finding, fix)


def fail(name: str, finding: str, fix: str) -> Check:
    """A run would not work."""
    return Check(name, Status.FAIL, finding, fix)


def unknown(name: str, finding: str, fix: str) -> Check:
    """It cannot be told from here."""
    return Check(name, Status.UNKNOWN, finding, fix)
