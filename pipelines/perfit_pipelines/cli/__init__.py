"""The ``perfit`` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import perfit
from perfit.errors import PerfitError, printable
from perfit_pipelines import deploy, doctor
from perfit_pipelines.cli import adapters, bench, compare, data, logs, read, rollback, run
from perfit_pipelines.cluster import commands as cluster
from perfit_pipelines.options import errors

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"perfit {perfit.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Personalised federated instruction tuning on Kubeflow Pipelines."""


for commands in (run, logs, read, adapters, rollback, data, bench, compare, cluster, deploy, doctor):
    commands.register(app)


def main() -> None:
    """Run the command; a user's mistake is reported as problem and fix, without a traceback."""
    try:
        app()
    except PerfitError as error:
        errors.print("[bold red]error:[/]", end=" ")
        errors.print(printable(error.problem, keep="\n"), markup=False)
        errors.print("  [bold]fix:[/]", end=" ")
        errors.print(printable(error.fix, keep="\n"), markup=False)
        sys.exit(1)
