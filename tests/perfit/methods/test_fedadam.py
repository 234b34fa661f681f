"""FedAdam: two rounds of Adam at the server, by hand and against float64.

One step of rate 1 takes a client exactly to its target, so that D = target - x.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from .helpers import BIG, LITTLE, MEAN, SMALL, Pull, federation_at, make_spec, masks, play, refusal, side_of

TAU = 0.001


def test_everything_is_trained_and_shared_but_the_moments_are_the_servers():
    spec = make_spec({"name": "fedadam"})
    assert masks(side_of(spec, "small").roles) == (SMALL,) * 3
    assert spec.algorithm.uploads == spec.algorithm.downloads == ("values",)
    assert spec.method.model_dump() == {
        "name": "fedadam",
        "server_learning_rate": 0.01,
        "beta1": 0.9,
        "beta2": 0.99,
    }


def test_a_round_by_hand():
    spec = make_spec({"name": "fedadam", "server_learning_rate": 4.001, "beta1": 0.5, "beta2": 0})
    before = federation_at(spec, [0] * 6)
    assert_array_equal(before.vectors["first_moment"], [0] * 6)
    assert_array_equal(before.vectors["second_moment"], np.float32([TAU**2] * 6))
    after = play(spec, before, {"small": Pull([4] * 6)}, rate=1)
    # D = 4: m = 2, v = 16, x = 4.001 * 2 / (4 + 0.001). Positions 2, 3 and 5 are nobody's.
    assert_allclose(after.vectors["values"], [2, 2, 0, 0, 2, 0], rtol=1e-6)
    assert_array_equal(after.vectors["first_moment"], [2, 2, 0, 0, 2, 0])
    assert_array_equal(after.vectors["second_moment"], np.float32([16, 16, TAU**2, TAU**2, 16, TAU**2]))


def test_two_rounds_against_float64():
    spec = make_spec({"name": "fedadam", "server_learning_rate": 0.1, "beta1": 0.9, "beta2": 0.5})
    first = play(spec, federation_at(spec, [0] * 6), {"big": BIG, "small": LITTLE})
    second = play(spec, first, {"small": Pull([1, 1, 0, 0, 1, 0])}, rate=1)
    for position in range(6):
        x, m, v = 0.0, 0.0, TAU**2
        for target in [MEAN[position], 1.0] if position in SMALL else [MEAN[position]]:
            d = target - x
            m = 0.9 * m + 0.1 * d
            v = 0.5 * v + 0.5 * d**2
            x += 0.1 * m / (math.sqrt(v) + TAU)
        assert_allclose(second.vectors["values"][position], x, rtol=1e-6)
        assert_allclose(second.vectors["first_moment"][position], m, rtol=1e-6)
        assert_allclose(second.vectors["second_moment"][position], v, rtol=1e-6)


def test_positions_that_nobody_shared_keep_all_three():
    spec = make_spec({"name": "fedadam"})
    first = play(spec, federation_at(spec, [0] * 6), {"big": BIG})
    second = play(spec, first, {"small": LITTLE})
    for name, vector in first.vectors.items():
        assert_array_equal(vector[[2, 3, 5]], second.vectors[name][[2, 3, 5]])
        assert (vector[SMALL] != second.vectors[name][SMALL]).all()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("momentum: 0.9", "method.momentum: method fedadam has no option 'momentum'; known keys: name, server_learn"),
        ("beta1: 1", "method.beta1: Input should be less than 1, but it is 1"),
        ("beta2: -0.1", "method.beta2: Input should be greater than or equal to 0, but it is -0.1"),
        ("server_learning_rate: 0", "method.server_learning_rate: Input should be greater than 0, but it is 0"),
    ],
)
def test_bounds_of_its_options(options, problem):
    assert refusal(f"name: fedadam, {options}").startswith(f"f.yaml:4: {problem}")
