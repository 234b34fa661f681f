"""The command ``compare``: finished federations beside each other, from their stores alone."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perfit.errors import PerfitError
from perfit_pipelines import places
from perfit_pipelines.cli.stores import use_store
from perfit_pipelines.options import JsonOption, checked_store

if TYPE_CHECKING:
    from perfit_components.steps.context import FederationContext

_DIRECTORY = "/federations/"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(compare)


def compare(
    federations: Annotated[
        list[str] | None,
        typer.Argument(
            help="A federation, STORE/federations/NAME, or a store, for all in it; else those of this machine's own.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", "-b", help="Label of a method to subtract; else fedit and local, where there are."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory of the results; else a place of the user's own."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare federations over the same clients: the tables of bench, from what their rounds recorded."""
    from perfit_components.steps.comparison import compare_federations
    from perfit_pipelines.cli.bench import write_comparison

    with ExitStack() as stack:
        contexts = [context for uri in federations or [None] for context in _open(uri, stack)]
        comparison = compare_federations(contexts, baseline)
    write_comparison(comparison, output or places.comparison(), json)


def _open(uri: str | None, stack: ExitStack) -> list[FederationContext]:
    """Open the federation at a URI, or all of a store; their stores stay open as long as the stack."""
    store_uri, _, name = uri.partition(_DIRECTORY) if uri else (None, "", "")
    store = stack.enter_context(use_store(checked_store(store_uri), existing=True))
    names = [name] if name else store.names()
    if not names:
        raise PerfitError(f"the store {store} holds no federation", "name another, or run one first: perfit run")
    return [store.federation(name.rstrip("/")) for name in names]
