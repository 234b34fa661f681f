"""FlexLoRA: by hand, and against numpy's SVD of the mean of dense products."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from .helpers import (
    SHAPES,
    SMALL,
    SPACE,
    WIDE,
    A,
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

FLEXLORA = make_spec({"name": "flexlora"})
BIG = Pull([0, 8, 0, 8, 1, 1], samples=1)
"""Its product is 1 * (0, 8) + 1 * (0, 8) = (0, 16)."""
LITTLE = Pull([2, 0, 0, 0, 2, 0], samples=3)
"""Its product is 2 * (2, 0) = (4, 0)."""


def test_everything_is_trained_and_shared():
    assert masks(side_of(FLEXLORA, "small").roles) == (SMALL,) * 3


def test_a_round_by_hand():
    # Steps of rate 1 take clients to their targets. The mean product is (3 * (4, 0) + (0, 16)) / 4 = (3, 4), of norm 5.
    before = federation_at(FLEXLORA, [1, 2, 3, 4, 5, 6])
    after = play(FLEXLORA, before, {"big": BIG, "small": LITTLE}, rate=1).vectors["values"]
    sign = np.sign(after[4])
    assert_allclose(sign * after, [0.6, 0.8, sign * 3, sign * 4, 5, 0], rtol=1e-6)
    assert after.dtype == np.float32


def test_each_client_takes_its_ranks_and_goes_on_from_the_mean():
    first = play(FLEXLORA, federation_at(FLEXLORA, [0] * 6), {"big": BIG, "small": LITTLE}, rate=1)
    second = play(FLEXLORA, first, {"big": BIG, "small": LITTLE}, rate=0)
    assert_array_equal(second.values["small"], np.where(SPACE.plain_mask(1), first.vectors["values"], 0))
    assert_allclose(product(SPACE, second.vectors["values"]), [[3, 4]], rtol=1e-6)


@pytest.mark.parametrize("ranks", [[2], [1, 1], [2, 1], [6, 2, 1, 4], [2] * 3 + [6], [3, 1, 6, 2] * 12], ids=str)
def test_the_first_ranks_are_the_truncated_svd_of_the_mean_product(ranks):
    spec = make_spec({"name": "flexlora"}, lora={"rank": 6}, aggregation={"max_share": 1, "clip": None})
    rng = np.random.default_rng(len(ranks))
    updates = random_updates(rng, ranks)
    state = {"values": rng.normal(0, 1, WIDE.size).astype(np.float32)}
    after = merged(spec, state, updates)
    weights = [update.samples for update in updates.values()]
    for module in SHAPES:
        products = [product(WIDE, dense(update), module) for update in updates.values()]
        mean = np.average(products, axis=0, weights=weights)
        u, s, vt = np.linalg.svd(mean, full_matrices=False)
        for rank in range(1, 7):
            expected = (u[:, :rank] * s[:rank]) @ vt[:rank]
            assert_allclose(product(WIDE, after, module, rank), expected, atol=1e-5 * s[0])
        # Ranks that the mean does not have: B is zero there, and A is what it was.
        matrices, before = WIDE.split(after), WIDE.split(state["values"])
        a, b = (f"base_model.model.{module}.lora_{letter}.weight" for letter in "AB")
        needed = min(6, np.linalg.matrix_rank(mean))
        assert_array_equal(matrices[b][:, needed:], 0)
        assert_array_equal(matrices[a][needed:], before[a][needed:])
        assert_allclose(np.linalg.norm(matrices[a][:needed], axis=1), 1, rtol=1e-6)


def test_ranks_that_too_few_clients_share_are_not_in_the_mean():
    limits = {"max_share": 1, "clip": None}
    spec = make_spec({"name": "flexlora"}, lora={"rank": 6}, exchange={"holders": 2}, aggregation=limits)
    updates = random_updates(np.random.default_rng(3), [4, 2, 1])
    after = merged(spec, {"values": np.zeros(WIDE.size, dtype=np.float32)}, updates)
    weights = [update.samples for update in updates.values()]
    for module in SHAPES:
        products = [product(WIDE, dense(update), module, rank=2) for update in updates.values()]
        assert_allclose(product(WIDE, after, module), np.average(products, axis=0, weights=weights), atol=1e-5)


def test_a_rank_of_one_holder_stays_the_clients_own():
    spec = make_spec({"name": "flexlora"}, exchange={"holders": 2})
    after = play(spec, federation_at(spec, [0] * 6), {"big": BIG, "small": LITTLE}, rate=1)
    # Rank one alone crosses: (3 * (4, 0) + 1 * (0, 8)) / 4 = (3, 2).
    assert_array_equal(after.updates["big"].vectors["values"], [0, 8, 1])
    assert_allclose(product(SPACE, after.vectors["values"]), [[3, 2]], rtol=1e-6)
    second = play(spec, after, {"big": BIG, "small": LITTLE}, rate=0)
    assert_array_equal(second.values["big"][[2, 3, 5]], [0, 8, 1])


def test_without_updates_all_stays():
    before = federation_at(FLEXLORA, [1, 2, 3, 4, 5, 6])
    after = play(FLEXLORA, before, {"big": BIG}, lost=["big"])
    assert_array_equal(after.vectors["values"], before.vectors["values"])


def test_products_of_zero_keep_a():
    # Where B is zero, as at the start, there is nothing to decompose.
    before = federation_at(FLEXLORA, SPACE.initial_values(seed=0))
    after = play(FLEXLORA, before, {"big": Pull([9, 9, 9, 9, 0, 0])}, rate=1)
    assert_array_equal(after.vectors["values"], before.vectors["values"])
    assert (after.values["big"][A] == 9).all()


def test_robust_rules_go_position_by_position_and_do_not_fit():
    with pytest.raises(ValueError, match="median does not fit method flexlora, whose rule sees whole matrices"):
        make_spec({"name": "flexlora"}, aggregation={"rule": "median"})


def test_it_has_no_options():
    assert refusal("name: flexlora, rank: 1") == (
        "f.yaml:4: method.rank: method flexlora has no option 'rank'; known keys: name"
    )
