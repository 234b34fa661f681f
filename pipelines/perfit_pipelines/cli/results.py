"""A federation's results: tables and report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from perfit.errors import printable
from perfit.protocol import ClientStatus, RoundSummary, UpdateRecord
from perfit.spec import FederationSpec
from perfit_components.steps.context import FederationContext, base_of
from perfit_components.steps.contribution import read_outcome
from perfit_components.steps.plan import remote_participants
from perfit_components.steps.report import draw_report
from perfit_pipelines.writing import write_file, writing
from perfit_report import RoundTimes, last_records
from perfit_report.data import clients_csv, report_json, rounds_csv
from perfit_storage import Head

_WORDS = ("client", "federation", "method", "status")
"""Columns that hold no numbers."""


def committed(head: Head) -> str:
    """Return where a federation is, and to which rounds it was rolled back on the way."""
    back = (f"; {branch.origin}" for branch in base_of(head).branches)
    return f"round {head.round} committed, global adapter digest {head.adapter.digest[:12]}{''.join(back)}"


def status_json(context: FederationContext, head: Head, summaries: Sequence[RoundSummary]) -> str:
    """Return where a federation is, and the summary of each committed round, as JSON."""
    spec = context.spec
    fields = {
        "federation": context.store.name,
        "uri": context.store.uri,
        "method": spec.method.name,
        "rounds": spec.rounds,
        "committed": head.round,
        "global_adapter_digest": head.adapter.digest,
        "rolled_back_to": [branch.first_round - 1 for branch in head.branches],
        "summaries": [summary.model_dump(mode="json") for summary in summaries],
    }
    return json.dumps(fields, indent=1)


def write_report(
    context: FederationContext, summaries: Sequence[RoundSummary], times: Sequence[RoundTimes], target: Path
) -> None:
    """Draw the report of all committed rounds into a file.

    Raises:
        PerfitError: No round is committed, or the store cannot be reached.
    """
    page = draw_report(context, summaries, times)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_file(target, page.html.encode())


def write_data(
    spec: FederationSpec, summaries: Sequence[RoundSummary], times: Sequence[RoundTimes], page: Path
) -> list[Path]:
    """Write the numbers of a report beside its page, for other programs; return where."""
    texts = {
        page.with_name(f"{page.stem}-data.json"): report_json(spec, summaries, times),
        page.with_name(f"{page.stem}-rounds.csv"): rounds_csv(summaries, times),
        page.with_name(f"{page.stem}-clients.csv"): clients_csv(summaries),
    }
    for path, text in texts.items():
        write_file(path, text.encode())
    return list(texts)


def client_table(summaries: Sequence[RoundSummary]) -> Table:
    """Return a table of the clients: perplexity on held-out records, budget and traffic of all rounds."""
    last = summaries[-1]
    title = f"Perplexity on held-out records, round {last.round} (round 0: the base model)"
    table = _table(title, "client", "rank", "budget", "round 0", "before", "after", "change", "MB up", "down", "status")
    traffic = _traffic(summaries)
    records = last_records(summaries)
    for client, record in records.items():
        table.add_row(
            client,
            str(record.rank),
            f"{record.budget:,}",
            *_perplexities(record),
            *(f"{count / 1e6:.2f}" for count in traffic[client]),
            "ok" if record.round == last.round else f"last in {record.round}",
        )
    for status in last.lost:
        if status.client not in records:
            table.add_row(status.client, str(status.rank), *["-"] * 7, status.status)
    return table


def lost_lines(lost: Iterable[ClientStatus]) -> list[str]:
    """Return why clients have no result in a round: problem and fix, as each of them wrote."""
    lines = (f"{status.client} ({status.status}) in round {status.round}: {status.reason}" for status in lost)
    return [printable(line, keep="\n") for line in lines]


def federation_table(contexts: Sequence[FederationContext]) -> Table:
    """Return a table of federations: how far each is."""
    table = _table("", "federation", "method", "clients", "rounds", "of")
    for context in contexts:
        spec, head = context.spec, context.store.read_head()
        table.add_row(context.store.name, spec.method.name, str(len(spec.clients)), str(head.round), str(spec.rounds))
    return table


def federations_json(contexts: Sequence[FederationContext]) -> str:
    """Return what :func:`federation_table` shows as JSON."""
    found = []
    for context in contexts:
        spec, head = context.spec, context.store.read_head()
        fields = {"federation": context.store.name, "uri": context.store.uri, "method": spec.method.name}
        found.append({**fields, "clients": len(spec.clients), "committed": head.round, "rounds": spec.rounds})
    return json.dumps(found, indent=1)


def pending(context: FederationContext) -> list[str]:
    """Return what is known of a round that is planned and not committed: who has no result in it, and why."""
    head = context.store.read_head()
    plan = context.find_plan(head.place(head.round + 1))
    if plan is None:
        return []
    outcomes = [read_outcome(context, plan, participant) for participant in plan.participants]
    delivered = sum(isinstance(outcome, UpdateRecord) for outcome in outcomes)
    first = f"round {plan.round} is not committed: {delivered} of {len(outcomes)} clients have a result so far"
    lost = lost_lines(outcome for outcome in outcomes if outcome.status in ("failed", "refused"))
    remote = {participant.client for participant in remote_participants(context, plan)}
    late = [outcome.client for outcome in outcomes if outcome.status == "missing" and outcome.client in remote]
    return [first, *lost, *([f"remote, without a record yet: {', '.join(late)}"] if late else [])]


def round_table(summaries: Sequence[RoundSummary]) -> Table:
    """Return a table of the committed rounds."""
    table = _table("Committed rounds", "round", "clients", "perplexity before", "after", "status")
    for summary in summaries:
        trained = summary.trained
        before = sum(record.perplexity.before for record in trained) / len(trained)
        after = sum(record.perplexity.after for record in trained) / len(trained)
        delivered = f"{len(trained)} of {len(summary.clients)}"
        lost = ", ".join(f"{status.client} {status.status}" for status in summary.lost)
        table.add_row(str(summary.round), delivered, f"{before:.2f}", f"{after:.2f}", lost)
    return table


def _perplexities(record: UpdateRecord) -> list[str]:
    values = record.perplexity
    change = values.after / values.round_0 - 1
    return [*(f"{value:.2f}" for value in (values.round_0, values.before, values.after)), f"{change:+.0%}"]


def _traffic(summaries: Sequence[RoundSummary]) -> dict[str, tuple[int, int]]:
    traffic: dict[str, tuple[int, int]] = {}
    for summary in summaries:
        for record in summary.trained:
            up, down = traffic.get(record.client, (0, 0))
            traffic[record.client] = up + record.bytes_up, down + record.bytes_down
    return traffic


def _table(title: str, *columns: str) -> Table:
    """A table that fits in 80 columns; numbers are aligned to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in _WORDS else "right", no_wrap=True)
    return table
