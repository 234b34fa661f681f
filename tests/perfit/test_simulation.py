"""Whole federations in memory: equal runs, equal methods, and averages that a person can check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from perfit.federation import next_round, on_the_wire, run_federation, start_federation, start_values

from perfit.adapter import SparseAdapter
from perfit.adapter_file import to_wire
from perfit.space import LoraSpace

from .tiny import loaded


def run(spec, **more):
    return run_federation(spec, Path("unused"), **more)


def assert_same(first, second) -> None:
    """Two states are the same to the last bit."""
    assert first.values.tobytes() == second.values.tobytes()
    assert first.masks.keys() == second.masks.keys()
    assert first.tunings.keys() == second.tunings.keys()
    for client, mask in first.masks.items():
        assert_array_equal(mask, second.masks[client])
    for client, tuning in first.tunings.items():
        other = second.tunings[client]
        assert tuning.adapter.values.tobytes() == other.adapter.values.tobytes()
        assert (tuning.losses, tuning.perplexity_after) == (other.losses, other.perplexity_after)


def equal_ranks(make_federation, **sections):
    clients = [{**client.model_dump(), "rank": None} for client in make_federation().clients]
    return make_federation(clients=clients, rounds=2, **sections)


@pytest.mark.parametrize("method", ["perfit", "fedit", "local"])
def test_two_runs_give_the_same_bytes(make_federation, method):
    spec = make_federation(method={"name": method}, rounds=2)
    first = run(spec)
    assert first.round == 2
    assert_same(first, run(spec))


def test_with_expansion_1_and_nothing_to_prune_perfit_is_fedit(make_federation):
    perfit = equal_ranks(make_federation, lora={"expansion": 1})
    fedit = equal_ranks(make_federation, lora={"expansion": 1}, method={"name": "fedit"})
    assert_same(run(perfit), run(fedit))


@pytest.mark.parametrize("expansion", [1, 3])
def test_fedit_knows_no_expansion(make_federation, expansion):
    other = make_federation(method={"name": "fedit"}, lora={"expansion": expansion})
    assert_same(run(other), run(make_federation(method={"name": "fedit"}, lora={"expansion": 2})))


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
    model, data = loaded(spec)
    start = start_federation(model, spec, data)
    state = next_round(model, spec, data, start)
    ann, bob = (state.masks[client] for client in ("ann", "bob"))
    assert [np.count_nonzero(ann), np.count_nonzero(bob)] == [model.space.budget(2), model.space.budget(1)]
    dense_ann, dense_bob = (state.tunings[client].adapter.dense().astype(float) for client in ("ann", "bob"))
    # Six training records of ann's, four of bob's.
    assert_array_equal(state.values[ann & ~bob], dense_ann[ann & ~bob])
    assert_array_equal(state.values[bob & ~ann], dense_bob[bob & ~ann])
    shared = ((6 * dense_ann + 4 * dense_bob) / 10).astype(np.float32)
    assert np.any(ann & bob)
    assert_array_equal(state.values[ann & bob], shared[ann & bob])
    assert np.any(~ann & ~bob)
    assert_array_equal(state.values[~ann & ~bob], start.values[~ann & ~bob])


def test_clients_start_from_the_global_values_at_their_positions(make_federation):
    spec = make_federation()
    model, data = loaded(spec)
    state = next_round(model, spec, data, start_federation(model, spec, data))
    for client in spec.clients:
        adapter = start_values(spec, client, model, state)
        assert_array_equal(adapter.mask, state.masks[client.id])
        assert_array_equal(adapter.values, state.values[adapter.mask])


def test_a_client_alone_keeps_its_own_values(make_federation):
    spec = make_federation(clients=[make_federation().clients[0].model_dump()], rounds=2)
    state = run(spec)
    assert_array_equal(state.values[state.masks["ann"]], state.tunings["ann"].adapter.values)


def test_local_exchanges_nothing(make_federation):
    spec = make_federation(method={"name": "local"})
    model, data = loaded(spec)
    start = start_federation(model, spec, data)
    first = next_round(model, spec, data, start)
    second = next_round(model, spec, data, first)
    for state in (first, second):
        assert_array_equal(state.values, start.values)
    for client in spec.clients:
        own = first.tunings[client.id]
        assert_array_equal(start_values(spec, client, model, first).values, own.adapter.values)
        assert second.tunings[client.id].perplexity_before == own.perplexity_after
    # Each client is as it is in a federation of its own.
    alone = run(make_federation(method={"name": "local"}, rounds=2, clients=[spec.clients[1].model_dump()]))
    assert_array_equal(alone.tunings["bob"].adapter.values, second.tunings["bob"].adapter.values)


def test_local_survives_a_round_without_a_client(make_federation):
    spec = make_federation(method={"name": "local"}, participation={"fraction": 0.5}, rounds=3)
    seen: list[tuple[int, str]] = []
    run(spec, on_step=lambda round, client, step, steps, loss: seen.append((round, client)))
    assert {round for round, _ in seen} == {1, 2, 3}
    assert len(set(seen)) == 3


def test_who_does_not_take_part_keeps_its_last_tuning(make_federation):
    spec = make_federation(participation={"fraction": 0.5})
    model, data = loaded(spec)
    state = start_federation(model, spec, data)
    for number in range(1, 7):
        before, state = state, next_round(model, spec, data, state)
        assert state.round == number
        changed = [c for c, tuning in state.tunings.items() if tuning is not before.tunings.get(c)]
        assert len(changed) == 1
    assert set(state.tunings) == {"ann", "bob"}


@pytest.mark.parametrize("method", ["perfit", "fedit"])
def test_progress_names_round_client_and_step(make_federation, method):
    seen: list[tuple[int, str, int, int]] = []
    spec = make_federation(method={"name": method})
    run(spec, on_step=lambda *progress: seen.append(progress[:4]))
    search = [(0, client, step, 3) for client in ("ann", "bob") for step in (1, 2, 3)]
    tuning = [(1, client, step, 2) for client in ("ann", "bob") for step in (1, 2)]
    assert seen == (search if method == "perfit" else []) + tuning


def test_the_wire_rounds_what_is_averaged(make_federation):
    spec = make_federation(wire_dtype="bfloat16", clients=[make_federation().clients[0].model_dump()])
    state = run(spec)
    tuned = state.tunings["ann"].adapter.values
    rounded = to_wire(tuned, "bfloat16").astype(np.float32)
    assert np.any(rounded != tuned)
    assert_array_equal(state.values[state.masks["ann"]], rounded)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_on_the_wire(make_federation, dtype):
    space = LoraSpace.from_shapes({"q.lora_A.weight": (1, 2), "q.lora_B.weight": (1, 1)})
    values = np.array([1 + 2**-7, 1 + 2**-10, 1 + 2**-20], dtype=np.float32)
    expected = {
        "float32": values,
        "float16": [1 + 2**-7, 1 + 2**-10, 1],
        "bfloat16": [1 + 2**-7, 1, 1],
    }
    adapter = SparseAdapter(space, np.ones(3, dtype=bool), values)
    assert_array_equal(on_the_wire(adapter, make_federation(wire_dtype=dtype)).values, expected[dtype])
