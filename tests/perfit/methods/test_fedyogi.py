"""FedYogi: FedAdam except for the second moment, which moves up or down by a share of D^2.

One step of rate 1 takes a client exactly to its target, so that D = target - x.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from .helpers import SMALL, Federation, Pull, federation_at, make_spec, masks, play, refusal, side_of

TAU = 0.001
YOGI = make_spec({"name": "fedyogi", "server_learning_rate": 0.5, "beta1": 0.5, "beta2": 0.5})


def constant(x: float, m: float, v: float) -> Federation:
    vectors = {"values": x, "first_moment": m, "second_moment": v}
    return Federation({name: np.full(6, value, dtype=np.float32) for name, value in vectors.items()})


def test_everything_is_trained_and_shared_but_the_moments_are_the_servers():
    assert masks(side_of(YOGI, "small").roles) == (SMALL,) * 3
    assert YOGI.algorithm.uploads == YOGI.algorithm.downloads == ("values",)


@pytest.mark.parametrize(
    ("v", "d", "after"),
    [
        (8, 1, 7.5),  # down by 1/2 of D^2; Adam's would be 4.5
        (1, 4, 9),  # up by 1/2 of 16; Adam's would be 8.5
        (4, 2, 4),  # v = D^2: it stays
    ],
)
def test_the_second_moment_by_hand(v, d, after):
    state = play(YOGI, constant(0, 0, v), {"big": Pull([d] * 6)}, rate=1)
    assert_array_equal(state.vectors["second_moment"], [after] * 6)
    # The first moment is Adam's: half of D.
    assert_array_equal(state.vectors["first_moment"], [d / 2] * 6)
    assert_allclose(state.vectors["values"], [0.5 * d / 2 / (math.sqrt(after) + TAU)] * 6, rtol=1e-6)


def test_two_rounds_against_float64():
    first = play(YOGI, federation_at(YOGI, [0] * 6), {"big": Pull([4, -2, 0.5, 0, 3, 1])}, rate=1)
    second = play(YOGI, first, {"big": Pull([2] * 6)}, rate=1)
    for position, target in enumerate([4, -2, 0.5, 0, 3, 1]):
        x, m, v = 0.0, 0.0, TAU**2
        for d in [target, None]:
            d = 2 - x if d is None else d
            m = 0.5 * m + 0.5 * d
            v = v - 0.5 * d**2 * np.sign(v - d**2)
            x += 0.5 * m / (math.sqrt(v) + TAU)
        actual = [second.vectors[name][position] for name in ("values", "first_moment", "second_moment")]
        assert_allclose(actual, [x, m, v], rtol=2e-6)


def test_positions_that_nobody_shared_keep_all_three():
    after = play(YOGI, constant(1, 2, 3), {"small": Pull([9] * 6)})
    for name, value in {"values": 1, "first_moment": 2, "second_moment": 3}.items():
        assert_array_equal(after.vectors[name][[2, 3, 5]], [value] * 3)
        assert (after.vectors[name][SMALL] != value).all()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("tau: 1", "method.tau: method fedyogi has no option 'tau'; known keys: name, server_learning_rate, beta1, "),
        ("beta1: 1", "method.beta1: Input should be less than 1, but it is 1"),
        ("beta2: 1", "method.beta2: Input should be less than 1, but it is 1"),
        ("server_learning_rate: -1", "method.server_learning_rate: Input should be greater than 0, but it is -1"),
    ],
)
def test_bounds_of_its_options(options, problem):
    assert refusal(f"name: fedyogi, {options}").startswith(f"f.yaml:4: {problem}")
