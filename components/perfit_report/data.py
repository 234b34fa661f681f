"""A federation's numbers for other programs: CSV by client and round and by round, and all of it as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from perfit.protocol import RoundSummary
from perfit.spec import FederationSpec
from perfit_report.settings import settings
from perfit_report.summaries import RoundTimes, client_metrics, scalar_metrics


def report_json(spec: FederationSpec, summaries: Sequence[RoundSummary], times: Sequence[RoundTimes]) -> str:
    """Return what the report is drawn from: the settings, and of each round its metrics, times and records."""
    rounds = [
        {
            "round": summary.round,
            **_times(of),
            "metrics": scalar_metrics(summary),
            "clients": [outcome.model_dump(mode="json") for outcome in summary.clients],
        }
        for summary, of in zip(summaries, times, strict=True)
    ]
    tree = {"federation": spec.name, "settings": settings(spec), "rounds": rounds}
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def rounds_csv(summaries: Sequence[RoundSummary], times: Sequence[RoundTimes]) -> str:
    """Return a line for each round: its metrics and times."""
    return csv_of([{**scalar_metrics(summary), **_times(of)} for summary, of in zip(summaries, times, strict=True)])


def clients_csv(summaries: Sequence[RoundSummary]) -> str:
    """Return a line for each participant of each round: its metrics, or why it has none."""
    rows = []
    for summary in summaries:
        records = {record.client: client_metrics(record) for record in summary.trained}
        for outcome in summary.clients:
            who = {
                "round": summary.round,
                **{key: getattr(outcome, key) for key in ("client", "tier", "rank", "status")},
            }
            rows.append({**who, **records.get(outcome.client, {"reason": getattr(outcome, "reason", "")})})
    return csv_of(rows)


def _times(times: RoundTimes) -> dict[str, Any]:
    planned, committed = (
        datetime.fromtimestamp(time, UTC).isoformat("T", "seconds") for time in (times.planned, times.committed)
    )
    return {"planned": planned, "committed": committed, "seconds": round(times.seconds, 1)}


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, with a column for each name in any of them.

    No text begins a formula: a client's reason may say what it likes, and spreadsheets run such cells.
    """
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
