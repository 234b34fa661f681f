"""PerFIT with mixes of the client's own choice: which it takes, and when there is nothing to choose."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from perfit.methods import ClientStart

from .helpers import MEAN, everything, make_spec, side_of

OWN = np.array([0, 4, 8, 12, 16, 20], dtype=np.float32)


def on_records(loss):
    """A score by a loss that all of four records have, of ten tokens each: without an error."""
    return lambda mix: np.array([[10 * loss(mix), 10]] * 4)


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
    start = begin(on_records(lambda mix: np.sum((mix - best) ** 2)))
    assert start.own_weight == weight
    assert_array_equal(start.values, values)
    assert start.values.dtype == np.float32
    assert_array_equal(start.received["values"], MEAN)


def test_of_equal_losses_the_servers_values():
    start = begin(on_records(lambda mix: 1.0))
    assert start.own_weight == 0
    assert_array_equal(start.values, MEAN)


def test_a_loss_that_is_not_finite_is_not_chosen():
    start = begin(on_records(lambda mix: 2.0 if mix[0] == 3 else np.nan))
    assert start.own_weight == 0.25
    assert begin(on_records(lambda mix: np.inf)).own_weight == 0


@pytest.mark.parametrize(
    ("own", "weight"),
    [
        # Nats of two records of ten tokens under own values; under the others' (12, 8), and under mixes 99 each.
        ([9, 9], 0),  # better by 0.1 a token, of which the standard error is sqrt(2 * 8) / 20 = 0.2
        ([9, 6], 1),  # by 0.25, of which it is sqrt(2 * 0.5) / 20 = 0.05
        ([12, 8], 0),
    ],
)
def test_own_values_must_be_evidently_better(own, weight):
    def score(mix):
        nats = {0: own, 4: [12, 8]}.get(mix[0], [99, 99])
        return np.array([nats, [10, 10]], dtype=float).T

    assert (MEAN[0], OWN[0]) == (4, 0)
    assert begin(score).own_weight == weight
    assert begin(lambda mix: score(mix)[:1]).own_weight == 0, "one record is no evidence"
    side = side_of(make_spec({"name": "perfit-adaptive"}), "big")
    end = side.end(ClientStart(OWN), np.array(MEAN, dtype=np.float32), score)
    assert end.weight == 0, "tuning that is worse is given up without: it may have diverged"


def test_nothing_is_scored_where_own_and_shared_values_are_the_same():
    def score(mix):
        raise AssertionError("scored")

    start = begin(score, kept=OWN, received=OWN)
    assert start.own_weight is None
    assert_array_equal(start.values, OWN)


@pytest.mark.parametrize(("target", "weight"), [(OWN, 0), (MEAN, 1), ([1, 4.25, 6.75, 10, 12.5, 16.5], 0.25)])
def test_a_client_ends_with_the_part_of_its_tuning_that_helps(target, weight):
    side = side_of(make_spec({"name": "perfit-adaptive"}), "big")
    tuned = np.array(MEAN, dtype=np.float32)
    end = side.end(ClientStart(OWN), tuned, on_records(lambda mix: np.sum((mix - target) ** 2)))
    assert end.weight == weight
    assert_array_equal(end.values, target)
    assert end.values.dtype == np.float32


def test_without_validation_records_a_client_ends_with_what_it_tuned():
    side = side_of(make_spec({"name": "perfit-adaptive"}), "big")
    end = side.end(ClientStart(OWN), np.array(MEAN, dtype=np.float32), score=None)
    assert end.weight is None
    assert_array_equal(end.values, MEAN)


def test_the_search_is_perfits():
    options = {"metric": "gradient", "search_steps": 12}
    assert make_spec({"name": "perfit-adaptive", **options}).search == make_spec({"name": "perfit", **options}).search
