"""SCAFFOLD: control variates by hand, under plain gradient descent, where they are the paper's option II.

Two steps of rate 1/2, so that K * rate = 1 and (x - y) / (K * rate) is x - y.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from .helpers import SMALL, SPACE, Federation, Pull, federation_at, make_spec, masks, play, refusal, side_of

SCAFFOLD = make_spec({"name": "scaffold"})
APART = {"big": Pull([4] * 6), "small": Pull([-4] * 6)}
"""Two clients whose losses pull in opposite directions."""


def play_two_steps(before: Federation, pulls) -> Federation:
    return play(SCAFFOLD, before, pulls, steps=2, rate=0.5)


def test_everything_is_trained_and_shared():
    assert masks(side_of(SCAFFOLD, "small").roles) == (SMALL,) * 3


def test_the_first_round_by_hand():
    first = play_two_steps(federation_at(SCAFFOLD, [0] * 6), APART)
    # No correction yet. big: 0 -> 2 -> 3 under the gradients -4 and -2, whose mean is -3; small: the mirror image.
    assert_array_equal(first.values["big"], [3] * 6)
    assert_array_equal(first.kept["big"]["control"], [-3] * 6)
    assert_array_equal(first.kept["small"]["control"], [3, 3, 3])
    # At positions 0, 1 and 4 the two cancel out; at the others big is the only client there is, and c is its own.
    assert_array_equal(first.vectors["values"], [0, 0, 3, 3, 0, 3])
    assert_array_equal(first.vectors["control"], [0, 0, -3, -3, 0, -3])


def test_the_second_round_by_hand():
    first = play_two_steps(federation_at(SCAFFOLD, [0] * 6), APART)
    second = play_two_steps(first, APART)
    # Position 0 of big: c - c_i = 3. Gradients -4 + 3 and -3.5 + 3: 0 -> 0.5 -> 0.75, not as far off as 3.
    # Position 2: c - c_i = 0. Gradients -1 and -0.5: 3 -> 3.5 -> 3.75.
    assert_array_equal(second.values["big"], [0.75, 0.75, 3.75, 3.75, 0.75, 3.75])
    assert_array_equal(second.kept["big"]["control"], [-3.75, -3.75, -0.75, -0.75, -3.75, -0.75])
    # What crosses is the change: -3.75 + 3 and -0.75 + 3.
    assert_array_equal(second.updates["big"].vectors["control"], [-0.75, -0.75, 2.25, 2.25, -0.75, 2.25])
    assert_array_equal(second.vectors["values"], [0, 0, 3.75, 3.75, 0, 3.75])
    assert_array_equal(second.vectors["control"], [0, 0, -0.75, -0.75, 0, -0.75])


def test_c_after_a_round_in_which_one_of_two_took_part():
    first = play_two_steps(federation_at(SCAFFOLD, [0] * 6), APART)
    second = play_two_steps(first, {"big": APART["big"]})
    # Where two clients share the position, c moves by half of big's change, -0.75; where big is alone, by all of 2.25.
    assert_array_equal(second.vectors["control"], [-0.375, -0.375, -0.75, -0.75, -0.375, -0.75])
    assert_array_equal(second.kept["small"]["control"], first.kept["small"]["control"])


def random_federation(rounds: int, holders: int = 1) -> list[tuple[Federation, str, Federation]]:
    """Rounds of three clients of unlike samples, two in each; (before, one of the two, after) for each and round."""
    ranks, exchange = {"ann": 2, "bob": 1, "eve": 2}, {"holders": holders}
    rng, spec = np.random.default_rng(0), make_spec({"name": "scaffold"}, ranks, exchange=exchange)
    samples = dict(zip(("ann", "bob", "eve"), (1, 3, 10), strict=True))
    pulls = {name: Pull(rng.normal(0, 1, 6), count) for name, count in samples.items()}
    before, history = federation_at(spec, rng.normal(0, 1, 6)), []
    for number in range(rounds):
        taking_part = {name: pulls[name] for name in pulls if name != list(pulls)[number % 3]}
        after = play(spec, before, taking_part, steps=3, rate=0.2)
        history += [(before, name, after) for name in taking_part]
        before = after
    return history


def test_a_new_control_variate_is_the_papers_option_ii():
    for before, name, after in random_federation(5):
        shared = after.updates[name].positions
        c, x, y = before.vectors["control"][shared], before.vectors["values"][shared], after.values[name][shared]
        old = before.kept.get(name, {}).get("control", np.zeros(y.size))
        assert_allclose(after.kept[name]["control"], old - c + (x - y) / (3 * 0.2), atol=1e-6)


@pytest.mark.parametrize("holders", [1, 2])
def test_c_stays_the_mean_of_all_clients_control_variates(holders):
    # Hence the corrections c - c_i of all clients sum to zero: each counts the same, and as 0 before its first round.
    # Of two holders, the positions of rank 2 are exchanged only in the rounds of ann and eve.
    spec = make_spec({"name": "scaffold"}, {"ann": 2, "bob": 1, "eve": 2})
    for _, _, after in random_federation(5, holders):
        total, clients = np.zeros(SPACE.size), np.zeros(SPACE.size)
        for client in spec.clients:
            held = SPACE.plain_mask(spec.rank_of(client))
            total[held] += after.kept.get(client.id, {}).get("control", 0)
            clients[held] += 1
        assert_allclose(after.vectors["control"], total / clients, atol=1e-6)


def test_it_has_no_options():
    assert refusal("name: scaffold, server_learning_rate: 1") == (
        "f.yaml:4: method.server_learning_rate: method scaffold has no option 'server_learning_rate'; known keys: name"
    )
