"""A whole federation in one process: a tool for researchers, and the reference that the pipelines must match."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from perfit.client import (
    ClientData,
    ClientResult,
    ExpandedModel,
    find_architecture,
    load_client_data,
    load_expanded,
    run_client,
    search_again,
)
from perfit.errors import PerfitError
from perfit.methods import Vectors
from perfit.round import (
    ClientRound,
    Received,
    download,
    exchanged_positions,
    initial_state,
    merge,
    new_cohort,
    plain_architecture,
    update_of,
)
from perfit.sampling import sample_clients
from perfit.spec import Client, FederationSpec

OnStep = Callable[[int, str, int, int, float], None]
"""Called with round (0 for a search), client id, step, number of steps and loss."""

CACHE = Path("~/.cache/perfit")
"""Where converted models are kept, if nothing else is said."""


@dataclass(frozen=True)
class State:
    """A federation between two rounds.

    Args:
        round: Number of rounds done.
        vectors: The server's vectors, each float32 of shape (N,); ``values`` are the global values.
        architectures: Architecture of each client that has taken part, for its next round: bool, shape (N,), by id.
        results: Last result of each client that has taken part, by id.
    """

    round: int
    vectors: Vectors
    architectures: dict[str, np.ndarray]
    results: dict[str, ClientResult]


@dataclass(frozen=True)
class Simulation:
    """A federation's model and every client's data in this process.

    Sums on the CPU depend on the number of threads: to get the same bytes as the pipelines, call
    ``torch.set_num_threads`` with the ``cpu`` of the clients' tier.
    """

    spec: FederationSpec
    model: ExpandedModel
    data: dict[str, ClientData]

    @classmethod
    def load(cls, spec: FederationSpec, cache: Path = CACHE) -> Simulation:
        """Load the model and all clients' data.

        Args:
            spec: The federation.
            cache: Where converted models are kept.

        Raises:
            PerfitError: Something that the spec names does not exist or is unusable.
        """
        for client, key in product(spec.clients, ("precision", "quantization")):
            if getattr(spec.of_client(client).training, key) != getattr(spec.training, key):
                raise PerfitError(
                    f"tiers.{client.tier}.training.{key}: a simulation has one model for all clients",
                    f"leave {key} out there, or use `perfit run`",
                )
        model = load_expanded(spec, cache.expanduser())
        return cls(spec, model, {c.id: load_client_data(spec, c, model.tokenizer) for c in spec.clients})

    def start(self) -> State:
        """Return the state before the first round."""
        return State(0, initial_state(self.spec, self.model.space), {}, {})

    def next_round(self, state: State, on_step: OnStep | None = None) -> State:
        """Run a round: every participant searches if it has no architecture yet or it is time again, and tunes; the
        server merges.

        Raises:
            TrainingDiverged: A client's loss is not finite; one client's failure ends the simulation.
        """
        spec, space, number = self.spec, self.model.space, state.round + 1
        participants = sample_clients(spec.clients, spec.participation, spec.training.seed, number)
        known = self._known(state, participants)
        exchanged = exchanged_positions(spec, space, ((held, 1) for held in known.values()))
        architectures, results = {**state.architectures, **known}, dict(state.results)
        cohort = new_cohort(spec, space, state.vectors)
        for client in participants:
            own = spec.of_client(client)
            if client.id not in architectures:
                architectures[client.id] = find_architecture(
                    self.model, own, client, self.data[client.id], _reporter(on_step, 0, client)
                )
            side, last = ClientRound(spec, space, architectures[client.id], number), state.results.get(client.id)
            if client.id in known:
                positions = side.roles.shared & exchanged
                start = Received.by(download(spec, state.vectors, positions, number, client))
            else:
                start = side.unknown()
            kept = side.carried(last.kept, last.adapter.mask) if last else {}
            inputs = self.model, own, client, number, self.data[client.id], side.held, start, kept
            results[client.id] = result = run_client(*inputs, _reporter(on_step, number, client))
            if spec.searches_after(number):
                architectures[client.id] = search_again(*inputs, _reporter(on_step, 0, client))
            if result.updated.any():
                update = update_of(spec, state.vectors, result.updated, result.upload, result.samples)
                cohort.add(client.id, update)
        return State(number, merge(spec, space, state.vectors, cohort), architectures, results)

    def next_starts(self, state: State) -> Iterator[tuple[Client, np.ndarray]]:
        """Yield each client, and what it would start the next round from if all took part: float32, shape (N,).

        A method's own choice of a start (its ``start`` hook) is left out.
        """
        spec, space = self.spec, self.model.space
        known = self._known(state, spec.clients)
        exchanged = exchanged_positions(spec, space, ((held, 1) for held in known.values()))
        for client in spec.clients:
            held, last = known.get(client.id), state.results.get(client.id)
            if held is None:  # It trains alone at first, from the initial values.
                yield client, space.initial_values(spec.training.seed)
                continue
            side = ClientRound(spec, space, held, state.round + 1)
            sent = download(spec, state.vectors, side.roles.shared & exchanged, state.round + 1, client)
            kept = side.carried(last.kept, last.adapter.mask) if last else {}
            yield client, side.dense(side.begin(Received.by(sent), kept).values)

    def _known(self, state: State, participants: Iterable[Client]) -> dict[str, np.ndarray]:
        """Return the architectures, of those who take part, that the server knows before a round."""
        spec, space = self.spec, self.model.space
        known = {c.id: state.architectures.get(c.id, plain_architecture(spec, space, c)) for c in participants}
        return {client: held for client, held in known.items() if held is not None}


def simulate(spec: FederationSpec, cache: Path = CACHE, on_step: OnStep | None = None) -> State:
    """Run a federation from its first round to its last, in this process.

    >>> from perfit.spec import FederationSpec
    >>> clients = [{"id": "north", "data": north}, {"id": "south", "data": south, "rank": 1}]
    >>> training = {"steps": 2, "batch_size": 2, "sequence_length": 64}
    >>> spec = FederationSpec.model_validate(
    ...     {"name": "demo", "model": model, "lora": {"rank": 2}, "training": training, "rounds": 1, "clients": clients}
    ... )
    >>> state = simulate(spec)
    >>> state.round, sorted(state.results)
    (1, ['north', 'south'])
    >>> state.results["north"].adapter.budget == 2 * state.results["south"].adapter.budget
    True

    Args:
        spec: The federation. In the example ``model`` is the directory of a causal language model, ``north`` and
            ``south`` are files of records.
        cache: Where converted models are kept.
        on_step: Reports progress.

    Raises:
        PerfitError: Something that the spec names does not exist or is unusable.
        TrainingDiverged: A client's loss is not finite.
    """
    simulation = Simulation.load(spec, cache)
    state = simulation.start()
    for _ in range(spec.rounds):
        state = simulation.next_round(state, on_step)
    return state


def _reporter(on_step: OnStep | None, round: int, client: Client):
    return on_step and (lambda step, steps, loss: on_step(round, client.id, step, steps, loss))
