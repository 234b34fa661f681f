"""A whole federation in one process: the reference that the pipelines must equal, and the tool of a researcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from perfit.adapter import SparseAdapter
from perfit.adapter_file import to_wire
from perfit.aggregation import Contribution, aggregate
from perfit.client import ClientData, ExpandedModel, Tuning, find_mask, load_client_data, load_expanded, tune
from perfit.participation import draw_participants
from perfit.spec import Client, Federation


@dataclass(frozen=True)
class State:
    """A federation between two rounds.

    Args:
        round: Rounds done.
        values: Global values, float32, shape (N,).
        masks: Each client's architecture, bool, shape (N,).
        tunings: The last tuning of each client that has taken part.
    """

    round: int
    values: np.ndarray
    masks: dict[str, np.ndarray]
    tunings: dict[str, Tuning]


OnStep = Callable[[int, str, int, int, float], None]
"""Called with round (0 for the search), client id, step, number of steps and loss."""


def start_federation(
    model: ExpandedModel, federation: Federation, data: dict[str, ClientData], on_step: OnStep | None = None
) -> State:
    """Let every client search its architecture; the values are the initial ones."""
    initial = model.space.initial_values(federation.training.seed)
    masks = {}
    for client in federation.clients:
        if federation.method.searches:
            report = _reporter(on_step, 0, client)
            masks[client.id] = find_mask(model, federation, client, data[client.id], initial, report)
        else:
            masks[client.id] = model.space.plain_mask(federation.rank_of(client))
    return State(0, initial, masks, {})


def next_round(
    model: ExpandedModel,
    federation: Federation,
    data: dict[str, ClientData],
    state: State,
    on_step: OnStep | None = None,
) -> State:
    """Let the round's participants tune, then average their values as they arrive on the wire."""
    number = state.round + 1
    tunings = {
        client.id: tune(
            model,
            federation,
            client,
            number,
            data[client.id],
            start_values(federation, client, model, state),
            _reporter(on_step, number, client),
        )
        for client in draw_participants(federation, number)
    }
    values = state.values
    if federation.method.exchanges:
        values = aggregate(values, _contributions(federation, tunings, data))
    return State(number, values, state.masks, state.tunings | tunings)


def start_values(federation: Federation, client: Client, model: ExpandedModel, state: State) -> SparseAdapter:
    """Return what a client starts a round from: global values at its positions, or its own if none are shared."""
    last = state.tunings.get(client.id)
    if last and not federation.method.exchanges:
        return on_the_wire(last.adapter, federation)
    mask = state.masks[client.id]
    return SparseAdapter(model.space, mask, state.values[mask])


def on_the_wire(adapter: SparseAdapter, federation: Federation) -> SparseAdapter:
    """Return the adapter with its values rounded as an adapter file carries them."""
    return replace(adapter, values=to_wire(adapter.values, federation.wire_dtype).astype(np.float32))


def run_federation(federation: Federation, cache: Path, on_step: OnStep | None = None) -> State:
    """Run a federation file from the search to its last round, in this process.

    Raises:
        PerfitError: Something in the file does not exist or is no use.
        TrainingDiverged: A client's loss is not finite; here one client's failure ends the run.
    """
    model = load_expanded(federation, cache)
    data = {c.id: load_client_data(federation, c, model.tokenizer) for c in federation.clients}
    state = start_federation(model, federation, data, on_step)
    for _ in range(federation.rounds):
        state = next_round(model, federation, data, state, on_step)
    return state


def _contributions(
    federation: Federation, tunings: dict[str, Tuning], data: dict[str, ClientData]
) -> Iterator[Contribution]:
    for client, tuning in tunings.items():
        yield Contribution(on_the_wire(tuning.adapter, federation), len(data[client].train.examples))


def _reporter(on_step: OnStep | None, round: int, client: Client):
    return on_step and (lambda step, steps, loss: on_step(round, client.id, step, steps, loss))
