"""The commands ``status``, ``report`` and ``export``, which read a federation's results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perfit_pipelines.cli.stores import StoreOption, use_store
from perfit_pipelines.options import out
from perfit_pipelines.writing import writing

NameOption = Annotated[
    str | None, typer.Option("--federation", "-f", help="Name of the federation, if the store has several.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (status, report, export):
        app.command()(command)


def status(federation: NameOption = None, store: StoreOption = None) -> None:
    """Show which rounds of a federation are committed, and each client's results."""
    from perfit_pipelines.cli.results import client_table, committed, lost_lines, pending, round_table

    with use_store(store, existing=True) as used:
        context = used.federation(federation)
        head, summaries, waiting = context.store.read_head(), context.summaries(), pending(context)
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
) -> None:
    """Draw the report of all committed rounds."""
    from perfit_pipelines.cli.results import write_report

    with use_store(store, existing=True) as used:
        write_report(used.federation(federation), output)
    out.print(f"wrote {output}", markup=False)


def export(
    client: Annotated[str, typer.Argument(help="Id of the client.")],
    directory: Annotated[Path, typer.Argument(help="PEFT directory to write.")],
    federation: NameOption = None,
    store: StoreOption = None,
) -> None:
    """Write a client's personal adapter as a directory that PEFT loads."""
    from perfit_pipelines.cli.results import committed, export_adapter

    with use_store(store, existing=True) as used:
        context = used.federation(federation)
        with writing(directory):
            export_adapter(context, client, directory)
        head = context.store.read_head()
    out.print(
        f"wrote {directory}; load it with PeftModel.from_pretrained(base_model, {str(directory)!r})", markup=False
    )
    if head.branches:
        out.print(f"{committed(head)}; the adapter may be of a round that no longer counts", markup=False)
