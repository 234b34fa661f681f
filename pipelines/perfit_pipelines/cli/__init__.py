"""The ``perfit`` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys

import typer

from perfit.errors import PerfitError, printable
from perfit_pipelines import deploy, doctor
from perfit_pipelines.cli import adapters, bench, data, read, rollback, run
from perfit_pipelines.cluster import commands as cluster
from perfit_pipelines.options import errors

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Personalised federated instruction tuning on Kubeflow Pipelines.",
)
for commands in (run, read, adapters, rollback, data, bench, cluster, deploy, doctor):
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
