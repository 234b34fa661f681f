"""The command ``track``: a federation's metrics in MLflow, TensorBoard or Weights & Biases, from its store alone."""

from __future__ import annotations

from typing import Annotated

import typer

from perfit.errors import PerfitError
from perfit_pipelines.cli.read import NameOption
from perfit_pipelines.cli.stores import StoreOption, use_store
from perfit_pipelines.options import out
from perfit_pipelines.tracking.trackers import Kind, open_tracker


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(track)


def track(
    to: Annotated[list[Kind], typer.Argument(help="Where to.", show_default=False)],
    federation: NameOption = None,
    store: StoreOption = None,
) -> None:
    """Write the metrics of all committed rounds where they are looked at; what is there already stays as it is."""
    from perfit_pipelines.tracking.history import read_history

    trackers = [open_tracker(kind) for kind in dict.fromkeys(to)]
    with use_store(store, existing=True) as used:
        context = used.federation(federation)
        history = read_history(context)
        if history is None:
            raise PerfitError(f"federation {context.spec.name!r} has no committed round yet", "run a round first")
    for tracker in trackers:
        out.print(tracker.write(history), markup=False)
