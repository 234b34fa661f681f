"""The findings of the doctor, and how they are shown: as a table for people, as JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from rich.table import Table
from rich.text import Text

from perfit_pipelines.kube import NotAllowed

_ALLOW_FIX = "let an administrator bind you to the Role and ClusterRole perfit-doctor of manifests/, or run it"


class Status(StrEnum):
    """How a check ended; only ``FAIL`` is certain to stop a run."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


_STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red", Status.UNKNOWN: "cyan"}


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do about it, if anything."""

    name: str
    status: Status
    finding: str
    fix: str = ""


def ok(name: str, finding: str) -> Finding:
    """Nothing to do."""
    return Finding(name, Status.OK, finding)


def warn(name: str, finding: str, fix: str) -> Finding:
    """A run works, but not as well as it could."""
    return Finding(name, Status.WARN, finding, fix)


def fail(name: str, finding: str, fix: str) -> Finding:
    """A run would not work."""
    return Finding(name, Status.FAIL, finding, fix)


def unknown(name: str, finding: str, fix: str) -> Finding:
    """It cannot be determined from here."""
    return Finding(name, Status.UNKNOWN, finding, fix)


def allowed(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """Return what a check finds; where this user may not read what it needs, that."""
    try:
        return check()
    except NotAllowed as error:
        return [unknown(name, f"you may not {error}", _ALLOW_FIX)]


def table(findings: Sequence[Finding]) -> Table:
    """Return a table with a row for each finding, and its fix below it."""
    rows = Table(box=None, pad_edge=False)
    rows.add_column("status")
    rows.add_column("check")
    rows.add_column("finding", overflow="fold")
    for finding in findings:
        text = Text(finding.finding)
        if finding.fix:
            text.append(f"\nfix: {finding.fix}", style="dim")
        rows.add_row(Text(finding.status.value, style=_STYLES[finding.status]), Text(finding.name), text)
    return rows


def summary(findings: Sequence[Finding]) -> str:
    """Return the number of findings of each status, the worst first."""
    counts = Counter(finding.status for finding in findings)
    order = (Status.FAIL, Status.WARN, Status.UNKNOWN, Status.OK)
    return ", ".join(f"{counts[status]} {status}" for status in order if counts[status])


def as_json(findings: Sequence[Finding]) -> str:
    """Return ``{"ok": ..., "checks": [...]}``, each check with name, status, finding and fix."""
    return json.dumps({"ok": succeeded(findings), "checks": [asdict(finding) for finding in findings]}, indent=1)


def succeeded(findings: Sequence[Finding]) -> bool:
    """Return whether nothing was found that is certain to stop a run."""
    return all(finding.status is not Status.FAIL for finding in findings)
