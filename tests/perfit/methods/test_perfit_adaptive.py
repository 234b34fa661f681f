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


def by_record(*nats):
    """A score of records of ten tokens, by the nats of each under the shared values, the middle and its own."""

    def score(mix):
        rows = {MEAN[0]: 0, (MEAN[0] + OWN[0]) / 2: 1, OWN[0]: 2}
        return np.array([[record[rows[mix[0]]] if mix[0] in rows else 99, 10] for record in nats], dtype=float)

    return score


@pytest.mark.parametrize(
    ("nats", "lowest_quarter", "mean"),
    [
        # Of four samples of two records one has the first twice, one the second twice, two have both.
        ([(5, 9, 1), (1, 9, 5)], 0, 0.25),  # one says own, the others, of equal losses, shared
        ([(5, 9, 1), (1, 9, 4)], 0, 0.75),  # both together: own
        ([(5, 2, 1), (1, 2, 5)], 0, 0.5),  # both together: the middle
        # Of 27 samples of three one has the last three times.
        ([(5, 9, 1), (5, 9, 1), (1, 9, 2)], 1 - 4 / 27, 26 / 27),
        ([(5, 9, 1), (5, 9, 1)], 1, 1),
        ([(5, 9, 1)], 1, 1),
    ],
)
def test_samples_of_the_records_choose_weights_of_own_values_the_lowest_quarter_of_tuned_ones_all(
    nats, lowest_quarter, mean
):
    score = by_record(*nats)
    side = side_of(make_spec({"name": "perfit-adaptive"}), "big")
    end = side.end(ClientStart(np.array(MEAN, dtype=np.float32)), OWN, score)
    assert begin(score).own_weight == pytest.approx(lowest_quarter, abs=0.1)
    assert end.weight == pytest.approx(mean, abs=0.05)
    assert begin(score).own_weight == begin(score).own_weight


def test_tuning_that_is_worse_is_given_up():
    side = side_of(make_spec({"name": "perfit-adaptive"}), "big")
    end = side.end(ClientStart(OWN), np.array(MEAN, dtype=np.float32), by_record((9, 9, 1), (8, 9, 2)))
    assert end.weight == 0
    assert_array_equal(end.values, OWN)


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
