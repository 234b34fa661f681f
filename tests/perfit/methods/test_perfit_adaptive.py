"""PerFIT with a start of the client's own choice: which mix it takes, and when there is nothing to choose."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from .helpers import MEAN, everything, make_spec, side_of

OWN = np.array([0, 4, 8, 12, 16, 20], dtype=np.float32)


def begin(score, kept=OWN, received=MEAN):
    """What client ``big`` begins its second round with."""
    side = side_of(make_spec({"name": "perfit-adaptive"}), "big", round=2)
    shared = {"values": np.array(received, dtype=np.float32)}
    return side.begin(everything(side.roles, shared), {"values": kept}, score)


@pytest.mark.parametrize(
    ("best", "weight", "values"),
    [
        (MEAN, 0, MEAN),
        (OWN, 1, OWN),
        ([2, 4.5, 5.5, 8, 9, 13], 0.5, [2, 4.5, 5.5, 8, 9, 13]),  # (MEAN + OWN) / 2
        ([3, 4.75, 4.25, 6, 5.5, 9.5], 0.25, [3, 4.75, 4.25, 6, 5.5, 9.5]),  # (3 MEAN + OWN) / 4
        (1.2 * OWN - 0.2 * np.array(MEAN), 1, OWN),  # beyond its own values
    ],
)
def test_the_mix_with_the_lowest_validation_loss(best, weight, values):
    start = begin(lambda mix: float(np.sum((mix - best) ** 2)))
    assert start.own_weight == weight
    assert_array_equal(start.values, values)
    assert start.values.dtype == np.float32
    assert_array_equal(start.received["values"], MEAN)


def test_of_equal_losses_the_servers_values():
    start = begin(lambda mix: 1.0)
    assert start.own_weight == 0
    assert_array_equal(start.values, MEAN)


def test_a_loss_that_is_not_finite_is_not_chosen():
    start = begin(lambda mix: 2.0 if mix[0] == 3 else float("nan"))
    assert start.own_weight == 0.25


def test_nothing_is_scored_where_own_and_shared_values_are_the_same():
    def score(mix):
        raise AssertionError("scored")

    start = begin(score, kept=OWN, received=OWN)
    assert start.own_weight is None
    assert_array_equal(start.values, OWN)


def test_the_search_is_perfits():
    options = {"metric": "gradient", "search_steps": 12}
    assert make_spec({"name": "perfit-adaptive", **options}).search == make_spec({"name": "perfit", **options}).search
