"""FedAvgM: momentum at the server, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from perfit.round import merge, new_cohort
from perfit.updates import Update

from .helpers import BIG, LITTLE, MEAN, SMALL, SPACE, federation_at, make_spec, masks, play, refusal, side_of

FEDAVGM = make_spec({"name": "fedavgm", "server_learning_rate": 0.5, "momentum": 0.5})


def test_everything_is_trained_and_shared_but_the_momentum_is_the_servers():
    assert masks(side_of(FEDAVGM, "small").roles) == (SMALL,) * 3
    assert FEDAVGM.algorithm.uploads == FEDAVGM.algorithm.downloads == ("values",)


def test_two_rounds_by_hand():
    first = play(FEDAVGM, federation_at(FEDAVGM, [0] * 6), {"big": BIG, "small": LITTLE})
    # From 0 the step D is the mean itself: m = D, and x = m / 2.
    assert_array_equal(first.vectors["momentum"], MEAN)
    assert_array_equal(first.vectors["values"], [2, 2.5, 1.5, 2, 1, 3])
    second = play(FEDAVGM, first, {"small": LITTLE})
    # small goes half-way from 2, 2.5, 1 to 10, 12, 2: D = 4, 4.75, 0.5, and m = (4, 5, 2) / 2 + D = 6, 7.25, 1.5.
    # x moves by m / 2. Positions 2, 3 and 5, which nobody shared, keep value and momentum.
    assert_array_equal(second.vectors["momentum"], [6, 7.25, 3, 4, 1.5, 6])
    assert_array_equal(second.vectors["values"], [5, 6.125, 1.5, 2, 1.75, 3])


def awkward_values(rng: np.random.Generator) -> np.ndarray:
    """Of very different sizes, so that x + (mean - x) is not the mean."""
    return np.float32(rng.choice([1, -1, 1e-10, -1e-10, 1e-42, 0.0, -0.0, 3.1], size=SPACE.size))


def test_at_rate_1_without_momentum_it_is_fedit_bit_for_bit():
    fedit, plain = make_spec({"name": "fedit"}), make_spec({"name": "fedavgm", "momentum": 0})
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values, after = awkward_values(rng), []
        updates = [Update.at(SPACE.plain_mask(2), {"values": awkward_values(rng)}, samples=3)]
        updates.append(Update.at(SPACE.plain_mask(1), {"values": awkward_values(rng)[SMALL]}, samples=seed + 1))
        for spec in (fedit, plain):
            state = spec.algorithm.init(values)
            cohort = new_cohort(spec, SPACE, state)
            for number, update in enumerate(updates[seed % 2 :]):
                cohort.add(str(number), update)
            after.append(merge(spec, SPACE, state, cohort)["values"])
        assert after[0].tobytes() == after[1].tobytes()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("beta1: 0.9", "method.beta1: method fedavgm has no option 'beta1'; known keys: name, server_learning_rate, "),
        ("momentum: 1", "method.momentum: Input should be less than 1, but it is 1"),
        ("momentum: -0.1", "method.momentum: Input should be greater than or equal to 0, but it is -0.1"),
        ("server_learning_rate: 0", "method.server_learning_rate: Input should be greater than 0, but it is 0"),
    ],
)
def test_bounds_of_its_options(options, problem):
    assert refusal(f"name: fedavgm, {options}").startswith(f"f.yaml:4: {problem}")
