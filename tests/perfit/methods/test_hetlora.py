"""HetLoRA: by hand, and against dense products padded with zeros."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from .helpers import (
    SHAPES,
    SMALL,
    WIDE,
    Pull,
    dense,
    federation_at,
    make_spec,
    masks,
    merged,
    play,
    product,
    random_updates,
    refusal,
    side_of,
)

HETLORA = make_spec({"name": "hetlora"})
BIG = Pull([3, 0, 0, 4, 1, 1], samples=7)
"""Its product is 1 * (3, 0) + 1 * (0, 4), of norm 5."""
LITTLE = Pull([6, 8, 0, 0, 1, 0], samples=1)
"""Its product is 1 * (6, 8), of norm 10."""


def test_everything_is_trained_and_shared():
    assert masks(side_of(HETLORA, "small").roles) == (SMALL,) * 3


def test_a_round_by_hand():
    # Steps of rate 1 take clients to their targets. Weights 1/3 and 2/3, whatever the samples; small is padded with 0.
    before = federation_at(HETLORA, [9] * 6)
    after = play(HETLORA, before, {"big": BIG, "small": LITTLE}, rate=1).vectors["values"]
    assert_allclose(after, [(3 + 2 * 6) / 3, 2 * 8 / 3, 0, 4 / 3, 1, 1 / 3], rtol=1e-6)
    assert after.dtype == np.float32


def test_a_client_alone_is_the_mean():
    after = play(HETLORA, federation_at(HETLORA, [9] * 6), {"small": LITTLE}, rate=1)
    assert_array_equal(after.vectors["values"], [6, 8, 9, 9, 1, 9])


def test_a_rank_of_one_holder_stays_the_clients_own():
    spec = make_spec({"name": "hetlora"}, exchange={"holders": 2})
    after = play(spec, federation_at(spec, [9] * 6), {"big": BIG, "small": LITTLE}, rate=1)
    # Of big, (3, 0) alone crosses and is weighed: 3 against 10.
    assert_allclose(after.vectors["values"], [(3 * 3 + 10 * 6) / 13, 80 / 13, 9, 9, 1, 9], rtol=1e-5)
    assert_array_equal(play(spec, after, {"big": BIG, "small": LITTLE}, rate=0).values["big"][[2, 3, 5]], [0, 4, 1])


def test_products_of_zero_count_the_same():
    pulls = {"big": Pull([1, 2, 3, 4, 0, 0]), "small": Pull([5, 6, 0, 0, 0, 0])}
    after = play(HETLORA, federation_at(HETLORA, [9] * 6), pulls, rate=1)
    assert_array_equal(after.vectors["values"], [3, 4, 1.5, 2, 0, 0])


def test_a_large_norm_does_not_outweigh_all_others():
    spec = make_spec({"name": "hetlora"}, dict.fromkeys(("ann", "bob", "eve"), 1), aggregation={"clip": None})
    pulls = {"ann": Pull([3, 4, 0, 0, 1, 0]), "bob": Pull([4, 3, 0, 0, 1, 0]), "eve": Pull([60, 80, 0, 0, 1, 0])}
    after = play(spec, federation_at(spec, [0] * 6), pulls, rate=1)
    assert_allclose(after.vectors["values"], [(3 + 4 + 2 * 60) / 4, (4 + 3 + 2 * 80) / 4, 0, 0, 1, 0], rtol=1e-5)


@pytest.mark.parametrize("ranks", [[2], [1, 4, 6], [3, 1, 6, 2] * 3], ids=str)
def test_against_dense_products(ranks):
    spec = make_spec({"name": "hetlora"}, lora={"rank": 6}, aggregation={"max_share": 1, "clip": None})
    rng = np.random.default_rng(len(ranks))
    updates = random_updates(rng, ranks)
    state = {"values": rng.normal(0, 1, WIDE.size).astype(np.float32)}
    norms = [
        np.sqrt(sum(np.sum(product(WIDE, dense(update), module) ** 2) for module in SHAPES))
        for update in updates.values()
    ]
    expected = np.average([dense(update) for update in updates.values()], axis=0, weights=norms)
    held = WIDE.plain_mask(max(ranks))
    after = merged(spec, state, updates)
    assert_allclose(after[held], expected[held], atol=1e-5)
    assert_array_equal(after[~held], state["values"][~held])


def test_without_updates_all_stays():
    before = federation_at(HETLORA, [1, 2, 3, 4, 5, 6])
    after = play(HETLORA, before, {"big": BIG}, lost=["big"])
    assert_array_equal(after.vectors["values"], before.vectors["values"])


def test_robust_rules_go_position_by_position_and_do_not_fit():
    with pytest.raises(ValueError, match="trimmed_mean does not fit method hetlora, whose rule sees whole matrices"):
        make_spec({"name": "hetlora"}, aggregation={"rule": "trimmed_mean"})


def test_it_has_no_options():
    assert refusal("name: hetlora, gamma: 0.99") == (
        "f.yaml:4: method.gamma: method hetlora has no option 'gamma'; known keys: name"
    )
