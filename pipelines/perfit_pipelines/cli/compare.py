"""The command ``compare``: finished federations beside each other, from their stores alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
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
            help="A federation, by its name in this machine's store or as STORE/federations/NAME, or a store, for all "
            "in it; else all of this machine's.",
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
        comparison = compare_federations([*_contexts(federations or [], stack)], baseline)
    write_comparison(comparison, output or places.comparison(), json)


def _contexts(given: list[str], stack: ExitStack) -> Iterator[FederationContext]:
    """Open the federations that were given, in that order; their stores stay open as long as the stack."""
    own = cache(lambda: stack.enter_context(use_store(None, existing=True)))
    for text in given or [""]:
        uri, _, name = text.partition(_DIRECTORY) if "/" in text else ("", "", text)
        store = stack.enter_context(use_store(checked_store(uri), existing=True)) if uri else own()
        names = [name] if name else store.names()
        if not names:
            raise PerfitError(f"the store {store} holds no federation", "name another, or run one first: perfit run")
        yield from (store.federation(name.rstrip("/")) for name in names)
