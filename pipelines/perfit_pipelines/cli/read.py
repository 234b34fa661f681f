"""The commands ``status`` and ``report``, which read a federation's results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perfit_pipelines.cli.stores import StoreOption, use_store
from perfit_pipelines.options import JsonOption, out

NameOption = Annotated[
    str | None, typer.Option("--federation", "-f", help="Name of the federation, if the store has several.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (status, report):
        app.command()(command)


def status(federation: NameOption = None, store: StoreOption = None, json: JsonOption = False) -> None:
    """Show which rounds of a federation are committed, and each client's results."""
    from perfit_pipelines.cli.results import client_table, committed, lost_lines, pending, round_table, status_json

    with use_store(store, existing=True) as used:
        context = used.federation(federation)
        head, summaries = context.store.read_head(), context.summaries()
        if json:
            print(status_json(context, head, summaries))
            return
        waiting = pending(context)
    out.print(f"{used.shown(context.store.uri)}: {committed(head)}", markup=False)
    if summaries:
        out.print(round_table(summaries))
        out.print(client_table(summaries))
    for line in (*lost_lines(summaries[-1].lost if summaries else ()), *waiting):
        out.print(line, markup=False)


def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    federation: NameOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Draw the report of all committed rounds, with its numbers as CSV and JSON beside it."""
    from perfit_components.steps.report import round_times
    from perfit_pipelines.cli.results import write_data, write_report
    from perfit_report.data import report_json

    with use_store(store, existing=True) as used:
        context = used.federation(federation)
        summaries = context.summaries()
        times = round_times(context, summaries)
        if json:
            print(report_json(context.spec, summaries, times), end="")
            return
        write_report(context, summaries, times, output)
    written = [output]
    if output.suffix == ".html" and not output.is_symlink():  # another is where somebody wants the page alone
        written += write_data(context.spec, summaries, times, output)
    out.print(f"wrote {', '.join(map(str, written))}", markup=False)
