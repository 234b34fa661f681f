"""The command ``rollback``, which moves a federation's head back to an earlier round."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from perfit_pipelines.cli.read import NameOption
from perfit_pipelines.cli.stores import StoreOption, use_store
from perfit_pipelines.options import out

if TYPE_CHECKING:
    from perfit_storage import Head

_NEXT = """\
Change the federation file, or the same rounds come out again: leave clients out, tighten `aggregation`.
Then run it (perfit run, perfit submit), and create its schedules again, which hold the old file."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(rollback)


def rollback(
    round: Annotated[
        int, typer.Argument(min=0, help="The last round that shall count; 0 for none.", show_default=False)
    ],
    federation: NameOption = None,
    store: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Go back to an earlier round: later ones no longer count and are run again. All files stay."""
    from perfit_components.steps.rollback import plan_rollback, roll_back
    from perfit_pipelines.cli.results import committed

    with use_store(store, existing=True) as used:
        context = used.federation(federation)
        planned = plan_rollback(context, round)
        old, new = planned.old, planned.new
        out.print(f"{used.shown(context.store.uri)}: {committed(old)}", markup=False)
        out.print(f"after the rollback: {committed(new)}", markup=False)
        out.print(f"no longer counted, but kept: {_places(old, round + 1)}", markup=False)
        if not yes and sys.stdin.isatty():
            typer.confirm("Roll back?", abort=True)
        roll_back(context, planned)
    out.print(f"rolled back; the next round is rounds/{new.place(round + 1)}/", markup=False)
    out.print(_NEXT, markup=False)


def _places(head: Head, first: int) -> str:
    """Where the rounds from ``first`` to the head's are."""
    return " to ".join(f"rounds/{head.place(number)}/" for number in sorted({first, head.round}))
