"""Whole federations in memory: equal runs, equal methods, and averages checked by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from perfit.adapter import SparseAdapter
from perfit.client import evaluate, find_architecture, run_client
from perfit.exchange import pack
from perfit.methods import METHODS
from perfit.round import Received, split_state
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


def three(make_federation, **sections):
    """Three clients, ann of rank 2, bob and eve of rank 1, in three rounds."""
    ann, bob = (client.model_dump() for client in make_federation().clients)
    eve = {"id": "eve", "data": ann["data"].replace("ann.jsonl", "eve.jsonl"), "rank": 1}
    return make_federation(clients=[ann, bob, eve], rounds=3, **sections)


def equal_ranks(make_federation, **sections):
    clients = [{**client.model_dump(), "rank": None} for client in make_federation().clients]
    return make_federation(clients=clients, rounds=2, **sections)


@pytest.mark.parametrize("method", list(METHODS))
def test_two_runs_give_the_same_bytes(make_federation, method):
    spec = make_federation(method={"name": method}, rounds=2)
    first = run(spec)
    assert first.round == 2
    assert_same(first, run(spec))


@pytest.mark.parametrize("exchange", [{"dtype": "int8"}, {"dtype": "bfloat16", "top": 0.25}, {"masks_first": True}])
def test_two_runs_of_any_exchange_give_the_same_bytes(make_federation, exchange):
    spec = make_federation(exchange=exchange, rounds=3)
    assert_same(run(spec), run(spec))


@dataclass(frozen=True)
class Published:
    """Global values (float32, shape (N,)) and personal adapters after a round."""

    values: np.ndarray
    adapters: dict[str, SparseAdapter]


def published(spec) -> list[Published]:
    """Every round of PerFIT as it is published, without a federation's machinery around the clients' training.

    Each client starts from the global values at its own positions; the new global value of a position is the mean over
    the clients that hold it, weighted by their samples (arXiv 2402.16919, section 3).
    """
    model, data = loaded(spec)
    values, rounds = model.space.initial_values(spec.training.seed), []
    held = {client.id: find_architecture(model, spec, client, data[client.id]) for client in spec.clients}
    for number in range(1, spec.rounds + 1):
        total, weights, adapters = np.zeros(values.size), np.zeros(values.size), {}
        for client in spec.clients:
            mask, records = held[client.id], data[client.id]
            start = Received(mask, {"values": values[mask]})
            adapter = run_client(model, spec, client, number, records, mask, start, kept={}).adapter
            samples = len(records.train.examples)
            total[mask] += samples * adapter.values.astype(np.float64)
            weights[mask] += samples
            adapters[client.id] = adapter
        mean = np.divide(total, weights, out=values.astype(np.float64), where=weights > 0)
        values = mean.astype(np.float32)
        rounds.append(Published(values, adapters))
    return rounds


NO_LIMITS = {"max_share": 1, "clip": None}


@pytest.mark.parametrize("method", ["perfit", "fedit"])
def test_if_everything_is_exchanged_it_is_the_published_method_byte_for_byte(make_federation, method):
    spec = three(make_federation, method={"name": method}, aggregation=NO_LIMITS, exchange={"holders": 1})
    simulation = Simulation(spec, *loaded(spec))
    state = simulation.start()
    for expected in published(spec):
        state = simulation.next_round(state)
        assert values_of(state).tobytes() == expected.values.tobytes()
        assert state.results.keys() == expected.adapters.keys()
        for client, adapter in expected.adapters.items():
            assert_array_equal(state.results[client].adapter.mask, adapter.mask)
            assert state.results[client].adapter.values.tobytes() == adapter.values.tobytes()
    assert state.round == 3


@pytest.mark.parametrize("method", ["perfit", "fedit", "fedprox", "fedsa-lora"])
def test_positions_of_one_holder_need_not_be_exchanged(make_federation, method):
    sections = {"method": {"name": method}, "aggregation": NO_LIMITS}
    every = run(three(make_federation, exchange={"holders": 1}, **sections))
    enough = run(three(make_federation, exchange={"holders": 2}, **sections))
    holders = np.zeros(values_of(every).size, dtype=int)
    for client, result in enough.results.items():
        assert result.adapter.values.tobytes() == every.results[client].adapter.values.tobytes()
        assert (result.losses, result.perplexity_after) == (
            every.results[client].losses,
            every.results[client].perplexity_after,
        )
        holders += every.results[client].exchanged
    initial = enough.results["ann"].adapter.space.initial_values(0)
    alone, shared = holders == 1, holders > 1
    assert shared.any()
    assert values_of(enough)[~shared].tobytes() == initial[~shared].tobytes()
    assert values_of(enough)[shared].tobytes() == values_of(every)[shared].tobytes()
    assert (values_of(every)[alone] != initial[alone]).any()


def test_from_the_second_round_only_what_two_share_crosses(make_federation):
    spec = three(make_federation)
    simulation = Simulation(spec, *loaded(spec))
    first = simulation.next_round(simulation.start())
    for client, result in first.results.items():
        # The server does not know yet what others hold, so everything crosses.
        assert_array_equal(result.upload.positions, first.architectures[client])
    shared = np.sum([*first.architectures.values()], axis=0) >= 2
    second = simulation.next_round(first)
    for client, result in second.results.items():
        expected = first.architectures[client] & shared
        assert 0 < expected.sum() < first.architectures[client].sum()
        assert_array_equal(result.exchanged, expected)
        assert_array_equal(result.upload.positions, expected)
        assert_array_equal(result.upload.unpack()["values"], result.adapter.dense()[expected])


def test_where_nothing_is_exchanged_a_client_goes_on_from_its_own_values(make_federation):
    spec = three(make_federation)
    simulation = Simulation(spec, *loaded(spec))
    first = simulation.next_round(simulation.start())
    second = simulation.next_round(first)
    for client in spec.clients:
        own, exchanged = first.results[client.id].adapter.dense(), second.results[client.id].exchanged
        start = np.where(exchanged, values_of(first), own)
        assert (start != np.where(first.architectures[client.id], values_of(first), np.float32(0))).any()
        before = evaluate(simulation.model, spec, simulation.data[client.id], start)
        assert second.results[client.id].perplexity_before == before


def test_if_masks_go_first_no_value_crosses_in_the_first_round(make_federation):
    spec = make_federation(exchange={"masks_first": True})
    simulation = Simulation(spec, *loaded(spec))
    start = simulation.start()
    first = simulation.next_round(start)
    assert first.architectures.keys() == {"ann", "bob"}
    assert_same_vectors(first.vectors, start.vectors)
    for client, result in first.results.items():
        assert (result.exchanged.any(), result.upload.positions.any()) == (False, False)
        assert result.upload.unpack()["values"].size == 0
        assert_array_equal(result.kept["values"], result.adapter.values)
        # It trained all the same.
        assert np.any(result.adapter.dense() != np.where(result.adapter.mask, values_of(start), 0)), client
    second = simulation.next_round(first)
    both = first.architectures["ann"] & first.architectures["bob"]
    for result in second.results.values():
        assert_array_equal(result.exchanged, both)
    assert (values_of(second)[both] != values_of(start)[both]).any()
    assert_array_equal(values_of(second)[~both], values_of(start)[~both])


def test_without_a_search_masks_first_changes_nothing(make_federation):
    specs = [make_federation(method={"name": "fedit"}, exchange={"masks_first": on}, rounds=2) for on in (False, True)]
    assert_same(run(specs[0]), run(specs[1]))


def test_a_client_that_joins_later_trains_alone_in_its_first_round(make_federation):
    whole = make_federation()
    model, data = loaded(whole)
    alone = whole.model_copy(update={"clients": whole.clients[:1]})
    first = Simulation(alone, model, data).next_round(Simulation(alone, model, data).start())
    second = Simulation(whole, model, data).next_round(first)
    assert_same_vectors(second.vectors, first.vectors)
    assert not any(result.exchanged.any() for result in second.results.values())
    # ann goes on from its own values, and bob, whose architecture the server does not know, from the initial ones.
    assert second.results["ann"].perplexity_before == first.results["ann"].perplexity_after
    held = second.architectures["bob"]
    nothing = Received(np.zeros_like(held))
    expected = run_client(model, whole, whole.client("bob"), 2, data["bob"], held, nothing, kept={})
    assert second.results["bob"].adapter.values.tobytes() == expected.adapter.values.tobytes()
    third = Simulation(whole, model, data).next_round(second)
    both = second.architectures["ann"] & held
    for result in third.results.values():
        assert_array_equal(result.exchanged, both)


def test_without_a_search_a_client_that_joins_later_exchanges_at_once(make_federation):
    whole = make_federation(method={"name": "fedit"})
    model, data = loaded(whole)
    alone = whole.model_copy(update={"clients": whole.clients[:1]})
    first = Simulation(alone, model, data).next_round(Simulation(alone, model, data).start())
    second = Simulation(whole, model, data).next_round(first)
    for result in second.results.values():
        assert_array_equal(result.exchanged, model.space.plain_mask(1))


def test_a_client_that_is_sampled_first_in_a_later_round_trains_alone_in_it(make_federation):
    spec = make_federation(participation={"fraction": 0.5}, exchange={"holders": 1})
    simulation = Simulation(spec, *loaded(spec))
    state, later = simulation.start(), []
    while len(state.results) < 2:
        before, state = state, simulation.next_round(state)
        later = [state.results[client] for client in state.results.keys() - before.results.keys()]
    assert state.round > 1
    assert not later[0].exchanged.any()
    assert_same_vectors(state.vectors, before.vectors)


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
    spec = make_federation(exchange={"holders": 1})
    simulation = Simulation(spec, *loaded(spec))
    space, start = simulation.model.space, simulation.start()
    state = simulation.next_round(start)
    ann, bob = (state.architectures[client] for client in ("ann", "bob"))
    assert [np.count_nonzero(ann), np.count_nonzero(bob)] == [space.budget(2), space.budget(1)]
    dense_ann, dense_bob = (state.results[client].adapter.dense().astype(float) for client in ("ann", "bob"))
    values = values_of(state)
    # Seven training records of ann's, four of bob's.
    assert [state.results[client].samples for client in ("ann", "bob")] == [7, 4]
    assert_array_equal(values[ann & ~bob], dense_ann[ann & ~bob])
    assert_array_equal(values[bob & ~ann], dense_bob[bob & ~ann])
    shared = ((7 * dense_ann + 4 * dense_bob) / 11).astype(np.float32)
    assert np.any(ann & bob)
    assert_array_equal(values[ann & bob], shared[ann & bob])
    assert np.any(~ann & ~bob)
    assert_array_equal(values[~ann & ~bob], values_of(start)[~ann & ~bob])


def test_clients_start_from_the_global_values_at_their_positions(make_federation):
    spec = make_federation(exchange={"holders": 1})
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
    clients = [make_federation().clients[0].model_dump()]
    state = run(make_federation(clients=clients, rounds=2, exchange={"holders": 1}))
    assert_array_equal(values_of(state)[state.architectures["ann"]], state.results["ann"].adapter.values)
    private = run(make_federation(clients=clients, rounds=2))
    assert not private.results["ann"].exchanged.any()
    assert_array_equal(private.results["ann"].adapter.values, state.results["ann"].adapter.values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_local_shares_nothing(make_federation, dtype):
    spec = make_federation(method={"name": "local"}, exchange={"dtype": dtype})
    simulation = Simulation(spec, *loaded(spec))
    start = simulation.start()
    first = simulation.next_round(start)
    second = simulation.next_round(first)
    for state in (first, second):
        assert_array_equal(values_of(state), values_of(start))
        for result in state.results.values():
            assert not result.exchanged.any()
            assert result.upload.unpack()["values"].size == 0
    for client in spec.clients:
        # Values that are never sent are not rounded to the type on the wire.
        own = first.results[client.id]
        assert_array_equal(own.kept["values"], own.adapter.values)
        assert second.results[client.id].perplexity_before == own.perplexity_after
    # Each client gets the same result as in a federation of its own.
    alone = run(make_federation(method={"name": "local"}, rounds=2, clients=[spec.clients[1].model_dump()]))
    assert_array_equal(alone.results["bob"].adapter.values, second.results["bob"].adapter.values)


def test_local_survives_a_round_without_a_client(make_federation):
    spec = make_federation(method={"name": "local"}, participation={"fraction": 0.5}, exchange={"holders": 1}, rounds=3)
    seen: list[tuple[int, str]] = []
    run(spec, on_step=lambda round, client, step, steps, loss: seen.append((round, client)))
    assert {round for round, _ in seen} == {1, 2, 3}
    assert len(set(seen)) == 3


def test_clients_that_do_not_take_part_keep_their_last_result(make_federation):
    spec = make_federation(participation={"fraction": 0.5}, exchange={"holders": 1})
    simulation = Simulation(spec, *loaded(spec))
    state = simulation.start()
    for number in range(1, 7):
        before, state = state, simulation.next_round(state)
        assert state.round == number
        changed = [client for client, result in state.results.items() if result is not before.results.get(client)]
        assert len(changed) == 1
    assert set(state.results) == {"ann", "bob"}


def test_a_client_searches_once_in_the_first_round_that_it_takes_part_in(make_federation):
    spec = make_federation(participation={"fraction": 0.5}, exchange={"holders": 1})
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
def test_the_wire_rounds_the_changes_that_are_averaged(make_federation, dtype):
    clients = [make_federation().clients[0].model_dump()]
    state = run(make_federation(exchange={"dtype": dtype, "holders": 1}, clients=clients))
    held, tuned = state.architectures["ann"], state.results["ann"].adapter.values
    initial = state.results["ann"].adapter.space.initial_values(0)[held]
    rounded = pack(tuned - initial, dtype, seed=0).unpack()
    assert np.any(rounded != tuned - initial)
    assert_array_equal(state.results["ann"].upload.unpack()["values"], rounded)
    assert_array_equal(values_of(state)[held], initial + rounded)


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
