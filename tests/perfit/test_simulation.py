"""Whole federations in memory: equal runs, equal methods, and averages checked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from perfit.adapter_file import to_wire
from perfit.client import evaluate
from perfit.methods import METHODS
from perfit.round import split_state
from perfit.simulation import Simulation, State, simulate

from .tiny import loaded


def run(spec, **more) -> State:
    return simulate(spec, Path("unused"), **more)


def values_of(state: State) -> np.ndarray:
    """The global values."""
    return state.vectors["values"]


def assert_same(first: State, second: State) -> None:
    """Two states are the same to the last bit."""
    assert_same_vectors(first.vectors, second.vectors)
    assert_same_vectors(first.architectures, second.architectures)
    assert first.results.keys() == second.results.keys()
    for client, result in first.results.items():
        other = second.results[client]
        assert result.adapter.values.tobytes() == other.adapter.values.tobytes()
        assert (result.losses, result.perplexity_after) == (other.losses, other.perplexity_after)
        assert_same_vectors(result.kept, other.kept)


def assert_same_vectors(first, second) -> None:
    assert first.keys() == second.keys()
    for name, vector in first.items():
        assert vector.tobytes() == second[name].tobytes()


def equal_ranks(make_federation, **sections):
    clients = [{**client.model_dump(), "rank": None} for client in make_federation().clients]
    return make_federation(clients=clients, rounds=2, **sections)


@pytest.mark.parametrize("method", list(METHODS))
def test_two_runs_give_the_same_bytes(make_federation, method):
    spec = make_federation(method={"name": method}, rounds=2)
    first = run(spec)
    assert first.round == 2
    assert_same(first, run(spec))


def test_with_expansion_1_and_nothing_to_prune_perfit_is_fedit(make_federation):
    perfit = equal_ranks(make_federation, lora={"expansion": 1})
    fedit = equal_ranks(make_federation, method={"name": "fedit"})
    assert_same(run(perfit), run(fedit))


def test_fedit_has_no_expansion(make_federation):
    spec = make_federation(method={"name": "fedit"})
    explicit = make_federation(method={"name": "fedit"}, lora={"expansion": 1})
    assert loaded(spec)[0].space.rank == spec.lora.rank == 2
    assert_same(run(explicit), run(spec))


def test_the_initial_values_do_not_depend_on_the_expansion(make_federation):
    starts = []
    for expansion in (1, 2, 3):
        spec = make_federation(lora={"expansion": expansion})
        space = loaded(spec)[0].space
        starts.append(space.initial_values(spec.training.seed)[space.plain_mask(2)])
    assert_array_equal(starts[1], starts[0])
    assert_array_equal(starts[2], starts[0])


def test_a_round_is_the_mean_of_its_holders(make_federation):
    spec = make_federation()
    simulation = Simulation(spec, *loaded(spec))
    space, start = simulation.model.space, simulation.start()
    state = simulation.next_round(start)
    ann, bob = (state.architectures[client] for client in ("ann", "bob"))
    assert [np.count_nonzero(ann), np.count_nonzero(bob)] == [space.budget(2), space.budget(1)]
    dense_ann, dense_bob = (state.results[client].adapter.dense().astype(float) for client in ("ann", "bob"))
    values = values_of(state)
    # Six training records of ann's, four of bob's.
    assert [state.results[client].update.samples for client in ("ann", "bob")] == [6, 4]
    assert_array_equal(values[ann & ~bob], dense_ann[ann & ~bob])
    assert_array_equal(values[bob & ~ann], dense_bob[bob & ~ann])
    shared = ((6 * dense_ann + 4 * dense_bob) / 10).astype(np.float32)
    assert np.any(ann & bob)
    assert_array_equal(values[ann & bob], shared[ann & bob])
    assert np.any(~ann & ~bob)
    assert_array_equal(values[~ann & ~bob], values_of(start)[~ann & ~bob])


def test_clients_start_from_the_global_values_at_their_positions(make_federation):
    spec = make_federation()
    simulation = Simulation(spec, *loaded(spec))
    first = simulation.next_round(simulation.start())
    second = simulation.next_round(first)
    for client in spec.clients:
        mask = first.architectures[client.id]
        start = np.where(mask, values_of(first), np.float32(0))
        assert_array_equal(second.architectures[client.id], mask)
        before = evaluate(simulation.model, spec, simulation.data[client.id], start)
        assert second.results[client.id].perplexity_before == before


def test_a_client_alone_keeps_its_own_values(make_federation):
    spec = make_federation(clients=[make_federation().clients[0].model_dump()], rounds=2)
    state = run(spec)
    assert_array_equal(values_of(state)[state.architectures["ann"]], state.results["ann"].adapter.values)


@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16"])
def test_local_shares_nothing(make_federation, wire_dtype):
    spec = make_federation(method={"name": "local"}, exchange={"dtype": wire_dtype})
    simulation = Simulation(spec, *loaded(spec))
    start = simulation.start()
    first = simulation.next_round(start)
    second = simulation.next_round(first)
    for state in (first, second):
        assert_array_equal(values_of(state), values_of(start))
        for result in state.results.values():
            assert not result.update.positions.any()
            assert result.update.vectors["values"].size == 0
    for client in spec.clients:
        # Values that are never sent are not rounded to the type on the wire.
        own = first.results[client.id]
        assert_array_equal(own.kept["values"], own.adapter.values)
        assert second.results[client.id].perplexity_before == own.perplexity_after
    # Each client gets the same result as in a federation of its own.
    alone = run(make_federation(method={"name": "local"}, rounds=2, clients=[spec.clients[1].model_dump()]))
    assert_array_equal(alone.results["bob"].adapter.values, second.results["bob"].adapter.values)


def test_local_survives_a_round_without_a_client(make_federation):
    spec = make_federation(method={"name": "local"}, participation={"fraction": 0.5}, rounds=3)
    seen: list[tuple[int, str]] = []
    run(spec, on_step=lambda round, client, step, steps, loss: seen.append((round, client)))
    assert {round for round, _ in seen} == {1, 2, 3}
    assert len(set(seen)) == 3


def test_clients_that_do_not_take_part_keep_their_last_result(make_federation):
    spec = make_federation(participation={"fraction": 0.5})
    simulation = Simulation(spec, *loaded(spec))
    state = simulation.start()
    for number in range(1, 7):
        before, state = state, simulation.next_round(state)
        assert state.round == number
        changed = [client for client, result in state.results.items() if result is not before.results.get(client)]
        assert len(changed) == 1
    assert set(state.results) == {"ann", "bob"}


def test_a_client_searches_once_in_the_first_round_that_it_takes_part_in(make_federation):
    spec = make_federation(participation={"fraction": 0.5})
    simulation, seen = Simulation(spec, *loaded(spec)), []
    state = simulation.start()
    assert state.architectures == {}
    for _ in range(6):
        state = simulation.next_round(state, lambda *progress: seen.append(progress[:2]))
        assert state.architectures.keys() == state.results.keys()
    assert {client for _, client in seen} == {"ann", "bob"}
    for client in ("ann", "bob"):
        rounds = [round for round, who in seen if who == client]
        assert rounds[:3] == [0, 0, 0]  # the steps of its search
        assert 0 not in rounds[3:]


@pytest.mark.parametrize("method", ["perfit", "fedit"])
def test_progress_names_round_client_and_step(make_federation, method):
    seen: list[tuple[int, str, int, int]] = []
    spec = make_federation(method={"name": method})
    run(spec, on_step=lambda *progress: seen.append(progress[:4]))
    expected = []
    for client in ("ann", "bob"):
        if method == "perfit":
            expected += [(0, client, step, 3) for step in (1, 2, 3)]
        expected += [(1, client, step, 2) for step in (1, 2)]
    assert seen == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_wire_rounds_what_is_averaged(make_federation, dtype):
    spec = make_federation(exchange={"dtype": dtype}, clients=[make_federation().clients[0].model_dump()])
    state = run(spec)
    tuned = state.results["ann"].adapter.values
    rounded = to_wire(tuned, dtype).astype(np.float32)
    assert np.any(rounded != tuned)
    assert_array_equal(state.results["ann"].update.vectors["values"], rounded)
    assert_array_equal(values_of(state)[state.architectures["ann"]], rounded)


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_the_first_state_has_the_vectors_that_clients_read(make_federation, method):
    spec = make_federation(method={"name": method.name})
    simulation = Simulation(spec, *loaded(spec))
    vectors = simulation.start().vectors
    assert {vector.dtype for vector in vectors.values()} == {np.dtype(np.float32)}
    assert {vector.shape for vector in vectors.values()} == {(simulation.model.space.size,)}
    assert_array_equal(vectors["values"], simulation.model.space.initial_values(spec.training.seed))
    downloads, own = split_state(spec, vectors)
    assert tuple(downloads) == method.downloads
    assert {*downloads, *own} == set(vectors)
