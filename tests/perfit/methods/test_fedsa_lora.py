"""FedSA-LoRA: A and B are trained, A is shared, B is each client's own."""

from __future__ import annotations

from numpy.testing import assert_array_equal

from .helpers import BIG, LITTLE, A, B, everything, federation_at, make_spec, masks, play, refusal, side_of

FEDSA = make_spec({"name": "fedsa-lora"})


def test_everything_is_trained_and_a_alone_is_shared():
    assert masks(side_of(FEDSA, "big").roles) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3])
    assert masks(side_of(FEDSA, "small").roles) == ([0, 1, 4], [0, 1, 4], [0, 1])


def test_two_rounds_by_hand():
    first = play(FEDSA, federation_at(FEDSA, [0] * 6), {"big": BIG, "small": LITTLE})
    # A crosses: half-way from 0 to the targets. B does not.
    assert_array_equal(first.updates["big"].vectors["values"], [1, 2, 3, 4])
    assert_array_equal(first.updates["small"].vectors["values"], [5, 6])
    assert_array_equal(first.vectors["values"], [4, 5, 3, 4, 0, 0])
    assert_array_equal(first.values["big"], [1, 2, 3, 4, 5, 6])
    assert_array_equal(first.kept["small"]["values"], [5, 6, 1])
    # In the second round A starts from the mean, B from the client's own: half-way from 4, 5, 3, 4 and 5, 6.
    second = play(FEDSA, first, {"big": BIG})
    assert_array_equal(second.values["big"], [3, 4.5, 4.5, 6, 7.5, 9])
    assert_array_equal(second.vectors["values"], [3, 4.5, 4.5, 6, 0, 0])


def test_a_is_the_same_for_all_when_a_round_starts_and_b_is_not():
    spec = make_spec({"name": "fedsa-lora"}, {"big": 2, "other": 2})
    after = play(spec, federation_at(spec, [0] * 6), {"big": BIG, "other": LITTLE})
    sides = {name: side_of(spec, name) for name in ("big", "other")}
    big, other = [
        side.begin(everything(side.roles, after.vectors), after.kept[name]).values for name, side in sides.items()
    ]
    assert_array_equal(big[A], other[A])
    assert_array_equal(big[B], [5, 6])
    assert_array_equal(other[B], [1, 0])


def test_it_has_no_options():
    assert refusal("name: fedsa-lora, mu: 1") == (
        "f.yaml:4: method.mu: method fedsa-lora has no option 'mu'; known keys: name"
    )
