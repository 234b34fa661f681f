"""The commands ``list`` and ``delete``, about the federations of a store."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from perfit.errors import PerfitError
from perfit_pipelines import places
from perfit_pipelines.cli.stores import StoreOption, use_store
from perfit_pipelines.options import JsonOption, out


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("list")(list_)
    app.command()(delete)


def list_(store: StoreOption = None, json: JsonOption = False) -> None:
    """List the federations of a store."""
    from perfit_pipelines.cli.results import federation_table, federations_json

    with use_store(store, existing=True) as used:
        names = used.names()
        contexts = [used.federation(name) for name in names]
        if json:
            print(federations_json(contexts))
            return
        table = federation_table(contexts)
    if names:
        out.print(f"store {used}", markup=False)
        out.print(table)
    else:
        out.print(f"the store {used} holds no federation", markup=False)


def delete(
    name: Annotated[str, typer.Argument(help="Name of the federation.", show_default=False)],
    store: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a federation from a store, with its clients' adapters; end its runs first."""
    with use_store(store, existing=True) as used:
        files = used.files(name)
        if files.is_empty():
            raise used.no_federation(name)
        if not yes and not sys.stdin.isatty():
            raise PerfitError(f"nobody can be asked whether {used.shown(files.uri)} shall be deleted", "add --yes")
        if not yes:
            typer.confirm(f"Delete {used.shown(files.uri)}, for good?", abort=True)
        *_, removed = files.delete()
    out.print(f"deleted {used.shown(files.uri)}: {removed} files", markup=False)
    results = places.results(name, store)
    if results.exists():
        out.print(f"what runs left stays in {results}", markup=False)
