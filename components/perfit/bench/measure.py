"""A federation run in this process, and what is measured of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import numpy as np
from blake3 import blake3

from perfit.adapter import mask_hash
from perfit.adapter_file import AdapterHeader, dump_mask, dump_server_vectors, dump_transfer
from perfit.bench.results import Measurements, RecordCounts, RoundResult
from perfit.client import ClientData, evaluate
from perfit.errors import TrainingDiverged
from perfit.examples import IGNORE_INDEX
from perfit.round import download, split_state
from perfit.sampling import sample_clients
from perfit.simulation import OnStep, Simulation, State
from perfit.spec import Client

OnRound = Callable[[int, RoundResult], None]
"""Called after each round with its number, from 1, and what was measured of it."""


def measure(
    simulation: Simulation, on_round: OnRound | None = None, on_step: OnStep | None = None
) -> tuple[Measurements, State]:
    """Run a federation from its first round to its last, and measure each.

    Args:
        simulation: The federation.
        on_round: Called after each round.
        on_step: Called after each step of a training.

    Returns:
        Per client its records, per client and round perplexities on held-out ones and bytes; and the federation's state
        after the last.

    Raises:
        TrainingDiverged: A loss or a perplexity is not finite.
    """
    state, rounds = simulation.start(), []
    start = _shared(simulation, state)
    for number in range(1, simulation.spec.rounds + 1):
        began = time.perf_counter()
        before, state = state, simulation.next_round(state, on_step)
        rounds.append(round_result(simulation, before, state, start, time.perf_counter() - began))
        if on_round:
            on_round(number, rounds[-1])
    trainable = {client: _trained(simulation, held) for client, held in state.architectures.items()}
    records = {client: _counts(data) for client, data in simulation.data.items()}
    return Measurements(records=records, trainable=trainable, start=start, rounds=tuple(rounds)), state


def round_result(
    simulation: Simulation, before: State, after: State, start: Mapping[str, float], seconds: float
) -> RoundResult:
    """Measure a round.

    Args:
        simulation: The federation.
        before: Its state before the round.
        after: Its state after it.
        start: Perplexity of each client before the first round, which stands for one that has not taken part.
        seconds: What the round took.

    Raises:
        TrainingDiverged: A perplexity is not finite.
    """
    spec = simulation.spec
    base = dump_server_vectors(spec, simulation.model.space, before.round, split_state(spec, before.vectors)[0])
    base_digest = blake3(base).hexdigest()
    participants = sample_clients(spec.clients, spec.participation, spec.training.seed, after.round)
    sizes = {client.id: _bytes(simulation, before, after, client, base_digest) for client in participants}
    return RoundResult(
        personal={**start, **{client: result.perplexity_after for client, result in after.results.items()}},
        shared=_shared(simulation, after),
        bytes_up={client: up for client, (up, _) in sizes.items()},
        bytes_down={client: down for client, (_, down) in sizes.items()},
        seconds={client.id: seconds / len(participants) for client in participants},
    )


def _bytes(simulation: Simulation, before: State, after: State, client: Client, base: str) -> tuple[int, int]:
    """Return the bytes up and down of a client's round: of the very files that the pipeline's steps would write."""
    spec, space, number = simulation.spec, simulation.model.space, after.round
    result = after.results[client.id]
    held, following = result.adapter.mask, after.architectures[client.id]
    budget, digest = int(np.count_nonzero(held)), mask_hash(space, held)
    header = AdapterHeader.of_client(spec, client.id, number, budget, digest)
    is_first = client.id not in before.results
    size = len(dump_mask(header, space, held))
    up = size * (is_first + (not np.array_equal(following, held)))
    if result.updated.any():
        up += len(dump_transfer(header.at_base(base), result.updated, result.upload))
    if not result.exchanged.any() or (is_first and spec.search):  # then the server does not know its architecture yet
        return up, 0
    header = AdapterHeader.of_download(spec, client.id, number, budget, digest, base)
    sent = download(spec, before.vectors, result.exchanged, number, client)
    return up, len(dump_transfer(header, spec.roles(space, held).shared, sent))


def _shared(simulation: Simulation, state: State) -> dict[str, float]:
    def perplexity(client: str, values: np.ndarray) -> float:
        last = state.results.get(client)
        if last and np.array_equal(values, last.adapter.dense()):  # nothing was exchanged
            return last.perplexity_after
        return finite(evaluate(simulation.model, simulation.spec, simulation.data[client], values))

    return {client.id: perplexity(client.id, values) for client, values in simulation.next_starts(state)}


def _counts(data: ClientData) -> RecordCounts:
    held_out = data.held_out.examples
    return RecordCounts(
        train=len(data.train.examples),
        held_out=len(held_out),
        held_out_tokens=sum(label != IGNORE_INDEX for example in held_out for label in example.labels),
        skipped=len(data.train.skipped) + len(data.held_out.skipped),
    )


def _trained(simulation: Simulation, held: np.ndarray) -> int:
    return int(np.count_nonzero(simulation.spec.roles(simulation.model.space, held).trained))


def finite(perplexity: float) -> float:
    """Return a perplexity.

    Raises:
        TrainingDiverged: It is not finite.
    """
    if not math.isfinite(perplexity):
        raise TrainingDiverged(f"a perplexity is {perplexity:g}")
    return perplexity
