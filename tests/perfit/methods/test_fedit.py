"""FedIT: the mean by samples, over the clients that have the position."""

from __future__ import annotations

from numpy.testing import assert_array_equal

from .helpers import BIG, LITTLE, MEAN, SMALL, federation_at, make_spec, masks, play, refusal, side_of

FEDIT = make_spec({"name": "fedit"})


def test_everything_is_trained_and_shared():
    assert masks(side_of(FEDIT, "big").roles) == ([0, 1, 2, 3, 4, 5],) * 3
    assert masks(side_of(FEDIT, "small").roles) == (SMALL,) * 3


def test_a_round_by_hand():
    after = play(FEDIT, federation_at(FEDIT, [0] * 6), {"big": BIG, "small": LITTLE})
    assert_array_equal(after.values["big"], [1, 2, 3, 4, 5, 6])
    assert_array_equal(after.values["small"], [5, 6, 0, 0, 1, 0])
    assert_array_equal(after.vectors["values"], MEAN)
    assert after.vectors.keys() == {"values"}
    assert {client: kept.keys() for client, kept in after.kept.items()} == {"big": {"values"}, "small": {"values"}}


def test_a_second_round_starts_from_the_mean():
    before = federation_at(FEDIT, MEAN)
    after = play(FEDIT, before, {"small": LITTLE})
    # Half-way from 4, 5, 2 to 10, 12, 2; the other positions keep their values.
    assert_array_equal(after.vectors["values"], [7, 8.5, 3, 4, 2, 6])


def test_it_has_no_options():
    assert refusal("name: fedit, mu: 1") == "f.yaml:4: method.mu: method fedit has no option 'mu'; known keys: name"
