"""FedProx: mu pulls every step back towards the client's start."""

from __future__ import annotations

import pytest
from numpy.testing import assert_array_equal

from .helpers import BIG, LITTLE, SMALL, Pull, federation_at, make_spec, masks, play, refusal, side_of


def test_everything_is_trained_and_shared():
    assert masks(side_of(make_spec({"name": "fedprox"}), "small").roles) == (SMALL,) * 3


@pytest.mark.parametrize(
    ("mu", "value"),
    [
        # Gradient w - 4 + mu * w, rate 1/2, two steps from 0:
        (0, 3),  # 0 -> 2 -> 3
        (1, 2),  # 0 -> 2 -> 2: at 2 the pull of the loss, -2, and that of the start, 2, are equal
        (2, 1),  # 0 -> 2 -> 1
        (0.5, 2.5),  # 0 -> 2 -> 2.5
    ],
)
def test_two_steps_by_hand(mu, value):
    spec = make_spec({"name": "fedprox", "mu": mu})
    after = play(spec, federation_at(spec, [0] * 6), {"big": Pull([4] * 6)}, steps=2)
    assert_array_equal(after.values["big"], [value] * 6)
    assert_array_equal(after.vectors["values"], [value] * 6)


def test_the_start_is_the_servers_value_not_zero():
    spec = make_spec({"name": "fedprox", "mu": 1})
    after = play(spec, federation_at(spec, [4] * 6), {"big": Pull([8] * 6)}, steps=2)
    # From 4: the gradient -4 gives 6; there -2 + 1 * (6 - 4) is 0.
    assert_array_equal(after.values["big"], [6] * 6)


def test_with_mu_0_it_is_fedit():
    fedit, fedprox = make_spec({"name": "fedit"}), make_spec({"name": "fedprox", "mu": 0})
    pulls = {"big": BIG, "small": LITTLE}
    one, other = [play(spec, federation_at(spec, [0.1] * 6), pulls, steps=3, rate=0.3) for spec in (fedit, fedprox)]
    assert one.vectors["values"].tobytes() == other.vectors["values"].tobytes()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("nu: 1", "method.nu: method fedprox has no option 'nu'; known keys: name, mu"),
        ("mu: -1", "method.mu: Input should be greater than or equal to 0, but it is -1"),
        ("mu: .inf", "method.mu: Input should be a finite number, but it is inf"),
        ("mu: yes", "method.mu: True is a boolean, which this key does not take"),
    ],
)
def test_bounds_of_its_options(options, problem):
    assert refusal(f"name: fedprox, {options}") == f"f.yaml:4: {problem}"
