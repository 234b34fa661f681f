"""FedDPA: the first ranks of a client's LoRA are shared, the others its own."""

from __future__ import annotations

import pytest
from numpy.testing import assert_allclose, assert_array_equal

from perfit.space import LoraSpace

from .helpers import BIG, LITTLE, SMALL, SPACE, federation_at, make_spec, masks, play, refusal, side_of

FEDDPA = make_spec({"name": "feddpa"})
DRAWN = SPACE.initial_values(seed=0)
WIDE = LoraSpace.from_shapes({"base_model.model.q.lora_A.weight": (8, 3), "base_model.model.q.lora_B.weight": (5, 8)})


def test_of_rank_two_the_first_is_shared_and_a_client_of_rank_one_has_no_more():
    assert masks(side_of(FEDDPA, "big").roles) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], SMALL)
    assert masks(side_of(FEDDPA, "small").roles) == (SMALL,) * 3


@pytest.mark.parametrize(
    ("share", "rank", "shared"),
    [(0.5, 8, 4), (0.5, 6, 3), (0.25, 8, 2), (0.9, 8, 7), (0.99, 8, 7), (0.01, 8, 1), (0.01, 1, 1), (0.99, 1, 1)],
)
def test_the_global_share_of_a_rank(share, rank, shared):
    spec = make_spec({"name": "feddpa", "global_share": share}, lora={"rank": 8})
    held = WIDE.plain_mask(rank)
    roles = spec.roles(WIDE, held)
    assert_array_equal(roles.held, held)
    assert_array_equal(roles.trained, held)
    assert_array_equal(roles.shared, WIDE.plain_mask(shared))


def test_two_rounds_by_hand():
    first = play(FEDDPA, federation_at(FEDDPA, [0] * 6), {"big": BIG, "small": LITTLE})
    # Rank one, at positions 0, 1 and 4, crosses: half-way from 0 to the targets. Big's other rank does not, and starts
    # from the initial values: half-way from these to 6, 8 and 12.
    assert_array_equal(first.updates["big"].vectors["values"], [1, 2, 5])
    assert_array_equal(first.updates["small"].vectors["values"], [5, 6, 1])
    assert_array_equal(first.vectors["values"], [4, 5, 0, 0, 2, 0])
    assert_allclose(first.values["big"], [1, 2, (DRAWN[2] + 6) / 2, (DRAWN[3] + 8) / 2, 5, 6], rtol=1e-6)
    # In the second round rank one starts from the mean, 4, 5 and 2, the other from big's own.
    second = play(FEDDPA, first, {"big": BIG})
    assert_allclose(second.values["big"], [3, 4.5, (DRAWN[2] + 18) / 4, (DRAWN[3] + 24) / 4, 6, 9], rtol=1e-6)
    assert_array_equal(second.vectors["values"], [3, 4.5, 0, 0, 6, 0])


@pytest.mark.parametrize("share", [0, 1])
def test_one_of_the_adapters_cannot_be_all(share):
    bound = "greater than 0" if share == 0 else "less than 1"
    problem = refusal(f"name: feddpa, global_share: {share}")
    assert problem == f"f.yaml:4: method.global_share: Input should be {bound}, but it is {share}"
