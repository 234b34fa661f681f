"""Local tuning: nothing is shared, and every client continues from its own values."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from .helpers import BIG, LITTLE, SMALL, SPACE, federation_at, make_spec, masks, play, refusal, side_of

LOCAL = make_spec({"name": "local"})


def test_everything_is_trained_and_nothing_shared():
    assert masks(side_of(LOCAL, "big").roles) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [])
    assert masks(side_of(LOCAL, "small").roles) == (SMALL, SMALL, [])


def test_two_rounds_by_hand():
    before = federation_at(LOCAL, [7] * 6)
    first = play(LOCAL, before, {"big": BIG, "small": LITTLE})
    second = play(LOCAL, first, {"big": BIG})
    # B starts from 0: half-way to 10 and 12 after a round, three quarters after two.
    assert_array_equal(first.values["big"][[4, 5]], [5, 6])
    assert_array_equal(second.values["big"][[4, 5]], [7.5, 9])
    # A starts from the initial values, the same for every client.
    drawn, target = SPACE.initial_values(seed=0), np.array(BIG.target)
    assert_allclose(second.values["big"][:4], (drawn / 4 + 3 * target / 4)[:4], rtol=1e-6)
    # A client that does not take part keeps its values, and the server receives nothing.
    assert_array_equal(second.kept["small"]["values"], first.values["small"][SMALL])
    assert second.updates["big"].vectors["values"].size == 0
    assert_array_equal(second.vectors["values"], [7] * 6)


def test_it_has_no_options():
    assert refusal("name: local, mu: 1") == "f.yaml:4: method.mu: method local has no option 'mu'; known keys: name"
