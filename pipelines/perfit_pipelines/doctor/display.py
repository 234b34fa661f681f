"""The doctor's findings as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from perfit_pipelines.doctor.check import Check, Status

_STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red", Status.UNKNOWN: "cyan"}


def table(checks: Sequence[Check]) -> Table:
    """Return a row a finding, with its fix below it."""
    drawn = Table(box=None, pad_edge=False)
    drawn.add_column("status")
    drawn.add_column("check")
    drawn.add_column("finding", overflow="fold")
    for check in checks:
        finding = Text(check.finding)
        if check.fix:
            finding.append(f"\nfix: {check.fix}", style="dim")
        drawn.add_row(Text(check.status.value, style=_STYLES[check.status]), Text(check.name), finding)
    return drawn


def summary(checks: Sequence[Check]) -> str:
    """Return how many checks ended how, worst first."""
    counts = Counter(check.status for check in checks)
    order = (Status.FAIL, Status.WARN, Status.UNKNOWN, Status.OK)
    return ", ".join(f"{counts[status]} {status}" for status in order if counts[status])


def as_json(checks: Sequence[Check]) -> str:
    """Return ``{"ok": ..., "checks": [...]}``, each check with name, status, finding and fix."""
    return json.dumps({"ok": succeeded(checks), "checks": [asdict(check) for check in checks]}, indent=1)


def succeeded(checks: Sequence[Check]) -> bool:
    """Return whether nothing is known to stand in a run's way."""
    return all(check.status is not Status.FAIL for check in checks)
