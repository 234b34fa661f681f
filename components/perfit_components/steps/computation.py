"""What a client computes in a round, in the one process of its pod or in the several of its job.

The first process does the client's part: it reads and writes the store, and says when what is computed, and of what.
The others only load the model and the records, and compute with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from perfit import processes
from perfit.errors import PerfitError
from perfit.methods import Vectors
from perfit.round import Received
from perfit_components.steps.client_context import ClientContext

if TYPE_CHECKING:
    from perfit.client import ClientResult

T = TypeVar("T")
_SEARCH = 0
"""The round under which a search reports its progress."""


def together(computation: Callable[..., T], context: ClientContext, *given: Any) -> T:
    """Call one of the functions below in all processes: the first calls this, the others are in :func:`follow`.

    Raises:
        ProcessLost: Another process has gone.
    """
    if processes.count() == 1:
        return computation(context, *given)
    with processes.lost_are_named():
        processes.of_first(lambda: (computation, given, _loaded(context)))
        return computation(context, *given)


def follow(context: ClientContext) -> None:
    """Compute what the first process computes, until it says that it is done.

    Raises:
        PerfitError: It has loaded something else than this process.
        ProcessLost: Another process has gone.
    """
    loaded = _loaded(context)
    with processes.lost_are_named():
        while call := processes.of_first(lambda: None):
            computation, given, of_first = call
            if of_first != loaded:
                raise PerfitError(
                    f"the processes of client {context.client.id!r} have read different records or federation files",
                    "run the round again, and leave them as they are meanwhile",
                )
            computation(context, *given)


def end() -> None:
    """Tell the other processes, from the first, that the client's part is done.

    Raises:
        ProcessLost: Another process has gone.
    """
    with processes.lost_are_named():
        processes.of_first(lambda: None)


def find(context: ClientContext) -> np.ndarray:
    """See :func:`perfit.client.find_architecture`."""
    from perfit import client

    (model, data), on_step = context.loaded, context.on_step(_SEARCH)
    return client.find_architecture(model, context.spec, context.client, data, on_step, context.checkpoint)


def search_again(context: ClientContext, held: np.ndarray, received: Received, kept: Vectors) -> np.ndarray:
    """See :func:`perfit.client.search_again`."""
    from perfit import client

    (model, data), on_step = context.loaded, context.on_step(_SEARCH)
    return client.search_again(
        model, context.spec, context.client, context.round, data, held, received, kept, on_step, context.checkpoint
    )


def tune(context: ClientContext, held: np.ndarray, received: Received, kept: Vectors) -> ClientResult:
    """See :func:`perfit.client.run_client`."""
    from perfit import client

    (model, data), on_step = context.loaded, context.on_step(context.round)
    return client.run_client(
        model, context.spec, context.client, context.round, data, held, received, kept, on_step, context.checkpoint
    )


def evaluate(context: ClientContext, values: np.ndarray) -> float:
    """See :func:`perfit.client.evaluate`."""
    from perfit import client

    model, data = context.loaded
    return client.evaluate(model, context.spec, data, values)


def _loaded(context: ClientContext) -> tuple[Any, ...]:
    data = context.loaded[1]
    return context.spec, data.train.sha256, data.held_out.sha256
