"""The ``perfit`` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

import perfit
from perfit.errors import PerfitError, printable
from perfit_pipelines import deploy, doctor
from perfit_pipelines.cli import (
    adapters,
    bench,
    client,
    compare,
    components,
    data,
    federations,
    logs,
    read,
    rollback,
    run,
    track,
)
from perfit_pipelines.cluster import commands as cluster
from perfit_pipelines.options import errors
from perfit_pipelines.writing import fix_of

_EXTRAS = {"kfp": "pipelines", "kubernetes": "pipelines", "torch": "client", "transformers": "client"}
"""What brings a package that some commands need, where it is less than ``local``, which brings all."""

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


for commands in (
    run,
    logs,
    read,
    track,
    federations,
    adapters,
    rollback,
    client,
    data,
    bench,
    compare,
    components,
    cluster,
    deploy,
    doctor,
):
    commands.register(app)


def main() -> None:
    """Run the command; a user's mistake is reported as problem and fix, without a traceback."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except PerfitError as error:
        _show(error.problem, error.fix)
        sys.exit(1)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if not name or name.startswith("perfit") or name in sys.stdlib_module_names:  # no extra brings it
            raise
        _show(f"{name} is not installed", f"pip install 'perfit-kubeflow[{_EXTRAS.get(name, 'local')}]'")
        sys.exit(1)
    except OSError as error:  # of whatever is no file that the user named: standard output, the user's own files
        where = f"{error.filename}: " if error.filename else ""
        _show(f"{where}{error.strerror or error}", fix_of(error))
        with suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # or Python tries once more to write what is left
        sys.exit(1)


def _show(problem: str, fix: str) -> None:
    errors.print("[bold red]error:[/]", end=" ")
    errors.print(printable(problem, keep="\n"), markup=False)
    errors.print("  [bold]fix:[/]", end=" ")
    errors.print(printable(fix, keep="\n"), markup=False)
