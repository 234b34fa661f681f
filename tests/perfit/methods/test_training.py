"""Every method in real training: two clients of unequal rank, a tiny random Llama, two rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load
from transformers import TrainerCallback

from perfit.client import run_client
from perfit.export import WEIGHTS_FILE, peft_files
from perfit.lora import compact, dense_weights
from perfit.methods import METHODS, Roles
from perfit.round import ClientRound, split_state
from perfit.simulation import Simulation, State
from perfit.training import train

from .helpers import everything

NO_CLIPPING = {"optimizer": "sgd", "learning_rate": 0.1, "steps": 3, "max_gradient_norm": 1e6}


@dataclass(frozen=True)
class Run:
    """A simulation, and its states before, between and after two rounds."""

    simulation: Simulation
    states: tuple[State, State, State]

    def side(self, client: str, round: int) -> ClientRound:
        return ClientRound(self.simulation.spec, self.simulation.model.space, self.held(client), round)

    def roles(self, client: str) -> Roles:
        return self.side(client, 1).roles

    def held(self, client: str) -> np.ndarray:
        return self.states[-1].architectures[client]

    @property
    def initial(self) -> np.ndarray:
        return self.simulation.model.space.initial_values(self.simulation.spec.training.seed)


@pytest.fixture(scope="session")
def play(make_federation) -> Callable[..., Run]:
    """A function that plays two rounds of a method from a model that it loads, exchanging all that is shared."""

    def play(name: str, training: dict | None = None, **options) -> Run:
        torch.set_num_threads(1)
        spec = make_federation(method={"name": name, **options}, training=training or {}, exchange={"holders": 1})
        simulation = Simulation.load(spec, Path("unused"))
        first = simulation.next_round(simulation.start())
        return Run(simulation, (simulation.start(), first, simulation.next_round(first)))

    return play


@pytest.fixture(scope="session")
def played(play) -> Callable[[str], Run]:
    """The same for a method with its default options, once per session."""
    return cache(play)


def assert_same(one: State, other: State) -> None:
    """Two states are the same to the last bit."""
    assert {name: vector.tobytes() for name, vector in one.vectors.items()} == {
        name: vector.tobytes() for name, vector in other.vectors.items()
    }
    for client, result in one.results.items():
        twin = other.results[client]
        assert_array_equal(result.adapter.mask, twin.adapter.mask)
        assert result.adapter.values.tobytes() == twin.adapter.values.tobytes()
        assert {name: vector.tobytes() for name, vector in result.kept.items()} == {
            name: vector.tobytes() for name, vector in twin.kept.items()
        }
        assert (result.losses, result.perplexity_after) == (twin.losses, twin.perplexity_after)


@pytest.mark.parametrize("name", METHODS)
def test_two_runs_give_the_same_bytes(play, played, name):
    again = play(name)
    assert again.states[-1].round == 2
    for one, other in zip(played(name).states, again.states, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("name", METHODS)
def test_exactly_the_shared_positions_are_sent(played, name):
    run = played(name)
    for client, result in run.states[-1].results.items():
        shared, sent = run.roles(client).shared, result.upload.unpack()
        updated = shared & run.side(client, 2).active
        assert_array_equal(result.exchanged, shared)
        assert_array_equal(result.updated, updated)
        assert_array_equal(result.upload.positions, updated)
        assert {vector: len(values) for vector, values in sent.items()} == {
            vector: np.count_nonzero(updated) for vector in METHODS[name].uploads
        }
        if METHODS[name].start is None:  # else what it has tuned: tests/perfit/test_round.py
            assert_array_equal(sent["values"], result.adapter.dense()[updated])


@pytest.mark.parametrize("name", METHODS)
def test_what_is_not_trained_has_its_initial_bits_and_what_is_trained_moves(played, name):
    run = played(name)
    for client, result in run.states[-1].results.items():
        roles, values = run.roles(client), result.adapter.dense()
        assert values[roles.held & ~roles.trained].tobytes() == run.initial[roles.held & ~roles.trained].tobytes()
        assert not values[~roles.held].any()
        moved = values[roles.trained] != run.initial[roles.trained]
        # After a search, a column of B may be left whose row of A is gone: it has no gradient.
        assert moved.all() if run.simulation.spec.search is None else moved.any()


@pytest.mark.parametrize("name", METHODS)
def test_positions_that_nobody_shares_keep_their_global_bits(played, name):
    run = played(name)
    shared = run.roles("ann").shared | run.roles("bob").shared
    first, last = run.states[0].vectors, run.states[-1].vectors
    for vector in first:
        assert first[vector][~shared].tobytes() == last[vector][~shared].tobytes()


class Optimised(TrainerCallback):
    """Counts the numbers that the optimiser has a gradient of."""

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.count = sum(parameter.grad.numel() for parameter in parameters)


@pytest.mark.parametrize("name", METHODS)
def test_the_optimiser_has_exactly_the_trained_positions(played, name):
    run = played(name)
    spec, model = run.simulation.spec, run.simulation.model
    side, seen = run.side("bob", 1), Optimised()
    with compact(model.peft, model.space, side.initial, side.active):
        records = run.simulation.data["bob"].train.examples
        train(model.peft, records, model.tokenizer, spec.training, steps=1, seed=0, callbacks=[seen])
        weights = np.concatenate([weight.detach().numpy().ravel() for weight in dense_weights(model.peft).values()])
    assert seen.count == np.count_nonzero(side.active)
    assert_array_equal(weights[~side.active], side.initial[~side.active])
    assert (weights[side.active] != side.initial[side.active]).any()


@pytest.mark.parametrize("name", METHODS)
def test_the_second_round_goes_on_from_the_first(played, name):
    run = played(name)
    simulation, (_, first, second) = run.simulation, run.states
    downloads, _ = split_state(simulation.spec, first.vectors)
    again = run_client(
        simulation.model,
        simulation.spec,
        simulation.spec.client("bob"),
        2,
        simulation.data["bob"],
        run.held("bob"),
        everything(run.roles("bob"), downloads),
        first.results["bob"].kept,
    )
    assert again.adapter.values.tobytes() == second.results["bob"].adapter.values.tobytes()


def test_fedprox_with_mu_0_is_fedit(play, played):
    for one, other in zip(play("fedprox", mu=0).states, played("fedit").states, strict=True):
        assert_same(one, other)


def test_a_large_mu_holds_clients_near_where_they_started(play):
    def drift(mu: float) -> float:
        run = play("fedprox", NO_CLIPPING, mu=mu)
        return float(np.linalg.norm(run.states[1].vectors["values"] - run.initial))

    assert drift(5) < 0.9 * drift(0)


def test_fedavgm_at_rate_1_without_momentum_is_fedit(play, played):
    for one, other in zip(play("fedavgm", momentum=0).states, played("fedit").states, strict=True):
        assert one.vectors["values"].tobytes() == other.vectors["values"].tobytes()


def test_ffa_lora_leaves_a_as_it_was_drawn(played):
    run = played("ffa-lora")
    spec, space = run.simulation.spec, run.simulation.model.space
    exported = load(peft_files(spec.expanded_lora, spec.model, run.states[-1].results["ann"].adapter)[WEIGHTS_FILE])
    for name, drawn in space.split(run.initial).items():
        assert (exported[name].tobytes() == drawn.tobytes()) == name.endswith("lora_A.weight")
    trained = run.roles("ann").trained
    assert_array_equal(trained, ~space.a_mask)


def test_fedsa_lora_shares_a_and_keeps_b(played):
    run = played("fedsa-lora")
    a, (_, first, second) = run.simulation.model.space.a_mask, run.states
    both = run.held("ann") & run.held("bob")
    ann, bob = [second.results[client].adapter.dense() for client in ("ann", "bob")]
    assert (ann != bob)[both & ~a].all()
    downloads, _ = split_state(run.simulation.spec, first.vectors)
    starts = {}
    for client in ("ann", "bob"):
        side = run.side(client, 2)
        start = side.begin(everything(side.roles, downloads), first.results[client].kept)
        starts[client] = side.dense(start.values)
    assert_array_equal(starts["ann"][both & a], starts["bob"][both & a])
    assert_array_equal(starts["bob"][~a], first.results["bob"].adapter.dense()[~a])


def test_scaffolds_control_variate_is_option_ii_under_sgd(play):
    run = play("scaffold", NO_CLIPPING)
    _, first, second = run.states
    for client in ("ann", "bob"):
        shared = run.roles(client).shared
        x, c = first.vectors["values"][shared], first.vectors["control"][shared]
        y = second.results[client].upload.unpack()["values"]
        old, new = first.results[client].kept["control"], second.results[client].kept["control"]
        # 3 steps of rate 0.1; the mean gradients are of size 0.1, the quotient's rounding of 1e-7.
        assert_allclose(new, old - c + (x - y) / (3 * 0.1), atol=2e-6)
        assert np.abs(old - c).max() > 1e-3
        assert_array_equal(second.results[client].upload.unpack()["control"], new - old)
