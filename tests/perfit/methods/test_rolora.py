"""RoLoRA: B is trained and uploaded in odd rounds, A in even ones; both are downloaded in each."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from .helpers import BIG, LITTLE, SMALL, SPACE, A, B, Pull, federation_at, make_spec, masks, play, refusal, side_of

ROLORA = make_spec({"name": "rolora"})


def test_everything_is_trained_and_shared_in_turn():
    assert masks(side_of(ROLORA, "small").roles) == (SMALL,) * 3
    turns = [np.flatnonzero(side_of(ROLORA, "big", round).active).tolist() for round in (1, 2, 3, 4)]
    assert turns == [B, A, B, A]
    assert [np.flatnonzero(side_of(ROLORA, "small", round).active).tolist() for round in (1, 2)] == [[4], [0, 1]]


def test_three_rounds_by_hand():
    pulls = {"big": BIG, "small": LITTLE}
    first = play(ROLORA, federation_at(ROLORA, [1, 1, 1, 1, 0, 0]), pulls)
    # B half-way from 0 to 10 and 12, and to 2; of three samples against one: (5 + 3*1)/4.
    assert_array_equal(first.updates["big"].vectors["values"], [5, 6])
    assert_array_equal(first.updates["small"].vectors["values"], [1])
    assert_array_equal(first.vectors["values"], [1, 1, 1, 1, 2, 6])
    assert_array_equal(first.values["small"], [1, 1, 0, 0, 1, 0])
    # A half-way from 1 to 2, 4, 6, 8 and to 10, 12: (1.5 + 3*5.5)/4, (2.5 + 3*6.5)/4. B stays at the server's values.
    second = play(ROLORA, first, pulls)
    assert_array_equal(second.updates["big"].vectors["values"], [1.5, 2.5, 3.5, 4.5])
    assert_array_equal(second.updates["small"].vectors["values"], [5.5, 6.5])
    assert_array_equal(second.vectors["values"], [4.5, 5.5, 3.5, 4.5, 2, 6])
    assert_array_equal(second.values["small"], [5.5, 6.5, 0, 0, 2, 0])
    # B half-way from 2 and 6, with the A that the server has now, not the one that was drawn or that a client had last.
    third = play(ROLORA, second, pulls)
    assert_array_equal(third.values["big"], [4.5, 5.5, 3.5, 4.5, 6, 9])
    assert_array_equal(third.vectors["values"], [4.5, 5.5, 3.5, 4.5, (6 + 3 * 2) / 4, 9])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_matrices_go_down_and_one_goes_up(dtype):
    spec = make_spec({"name": "rolora"}, exchange={"dtype": dtype})
    after = federation_at(spec, [1, 1, 1, 1, 0, 0])
    for up in (B, A, B):
        after = play(spec, after, {"big": BIG})
        assert after.downloads["big"].positions.all()
        assert_array_equal(np.flatnonzero(after.uploads["big"].positions), up)
        assert after.uploads["big"].vectors["values"].values.size == len(up)


def test_who_missed_a_round_starts_from_the_servers_values_in_both():
    first = play(ROLORA, federation_at(ROLORA, [1, 1, 1, 1, 0, 0]), {"big": BIG})
    second = play(ROLORA, first, {"small": Pull([0] * 6)})
    assert_array_equal(second.values["small"], [0.5, 0.5, 0, 0, 5, 0])
    assert_array_equal(second.vectors["values"], [0.5, 0.5, 1, 1, 5, 6])


def test_of_a_rank_of_its_own_a_client_goes_on_from_its_own_values():
    spec = make_spec({"name": "rolora"}, exchange={"holders": 2})
    drawn, pulls = SPACE.initial_values(seed=0), {"big": BIG, "small": LITTLE}
    first = play(spec, federation_at(spec, drawn), pulls)
    assert_array_equal(first.values["big"][[2, 3, 5]], [drawn[2], drawn[3], 6])
    second = play(spec, first, pulls)
    assert_allclose(second.values["big"][[2, 3, 5]], [(drawn[2] + 6) / 2, (drawn[3] + 8) / 2, 6], rtol=1e-6)
    assert_array_equal(second.vectors["values"][[2, 3, 5]], drawn[[2, 3, 5]])


def test_the_mean_of_products_is_the_product_of_means():
    rng = np.random.default_rng(0)
    spec = make_spec({"name": "rolora"}, {"ann": 2, "bob": 2, "eve": 2}, aggregation={"max_share": 1, "clip": None})
    samples = {"ann": 1, "bob": 3, "eve": 10}
    pulls = {name: Pull(rng.normal(0, 1, 6), count) for name, count in samples.items()}
    after = federation_at(spec, rng.normal(0, 1, 6))
    for _ in range(4):
        after = play(spec, after, pulls)
        products = [product(after.values[name]) for name in samples]
        mean = np.average(products, axis=0, weights=list(samples.values()))
        assert_allclose(product(after.vectors["values"]), mean, atol=1e-6)


def product(values: np.ndarray) -> np.ndarray:
    return values[B].astype(np.float64) @ values[A].reshape(2, 2)


def test_it_has_no_options():
    assert refusal("name: rolora, first: a") == (
        "f.yaml:4: method.first: method rolora has no option 'first'; known keys: name"
    )
