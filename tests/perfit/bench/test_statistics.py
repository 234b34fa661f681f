"""The statistics of benches with numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from perfit.bench.comparison import choose, compare
from perfit.bench.results import AnswerScores, CellResult
from perfit.bench.statistics import Cost, Interval, Point, bootstrap, gain

from .helpers import by_client, make_bench, make_cell, make_result

A, B = make_cell("fedit", 0), make_cell("fedit", 1)
POINT = Point({}, (make_result(A, [(20, 40), (10, 30)]), make_result(B, [(20, 20), (12, 16)], shared=(24, 28))))
"""Two seeds of two rounds: the last personal perplexities are 10 and 30, and 12 and 16."""


def test_mean_worst_client_and_spread_of_the_last_round():
    assert_array_equal(POINT.personal, [[10, 30], [12, 16]])
    assert POINT.personal.mean() == 17
    assert POINT.worst == (30 + 16) / 2
    assert POINT.spread == (10 + 2) / 2
    assert POINT.shared.mean() == (20 + 20 + 24 + 28) / 4
    assert POINT.start == 40
    assert POINT.validation == pytest.approx(10)
    assert_array_equal(POINT.by_round("personal"), [[30, 20], [20, 14]])


def test_gains_are_by_ratio_and_count_who_is_worse_off():
    own, baseline = np.array([[2.0, 8.0], [4.0, 21.0]]), np.array([[4.0, 4.0], [4.0, 20.0]])
    found = gain(own, baseline, keeps_clients=True)
    assert found.ratio.mean == pytest.approx(1.05**0.25)
    assert found.ratio.low < 1 < found.ratio.high
    assert (found.worse, found.worst) == (1, 2)  # 5 % above is not yet worse off
    assert POINT.geometric_mean == pytest.approx((10 * 30 * 12 * 16) ** 0.25)


def test_costs_of_all_clients_and_rounds():
    assert POINT.trainable == 30
    assert (POINT.total("bytes_up"), POINT.total("bytes_down")) == (400, 200)
    assert_array_equal(POINT.bytes_by_round(), [[300, 600], [300, 600]])
    assert POINT.client_seconds == 3
    assert POINT.peak_memory == 1_000_000


@pytest.mark.parametrize(
    ("target", "cost"),
    [
        (30, Cost(30, reached=2, rounds=1, bytes=300)),
        (20, Cost(20, reached=2, rounds=1.5, bytes=450)),  # one seed after round 2, one after round 1
        (15, Cost(15, reached=1, rounds=2, bytes=600)),
        (13, Cost(13, reached=0, rounds=None, bytes=None)),
    ],
)
def test_the_cost_to_reach_a_perplexity(target, cost):
    assert POINT.cost(target) == cost


def test_answers_are_means_over_the_clients_that_have_any():
    one = {"a": AnswerScores(records=2, exact_match=0.5, rouge_l=0.75)}
    two = by_client([AnswerScores(records=2, exact_match=m, rouge_l=r) for m, r in ((0.0, 0.25), (1.0, 0.5))])
    cells = tuple(make_result(cell, [(1, 1)], answers=answers) for cell, answers in ((A, one), (B, two)))
    point = Point({}, cells)
    assert (point.answers("exact_match"), point.answers("rouge_l")) == (0.5, 0.5)
    assert POINT.answers("rouge_l") is None


def test_the_point_is_chosen_on_validation_records_never_on_held_out_ones():
    better = Point({"x": 1}, (make_result(A, [(1, 1)], validation=(11, 11)),))
    chosen = Point({"x": 2}, (make_result(A, [(50, 50)], validation=(4, 25)),))
    tie = Point({"x": 3}, (make_result(A, [(1, 1)], validation=(25, 4)),))
    assert choose([better, chosen, tie]) is chosen  # by the geometric mean: the mean would take the first
    assert chosen.validation == pytest.approx(10)


def test_a_point_with_a_seed_that_diverged_is_never_chosen():
    failed = CellResult(job=B.job, environment="", failure="the loss is nan")
    half = Point({}, (make_result(A, [(1, 1)], validation=(1, 1)), failed))
    assert half.validation == math.inf
    assert choose([half, POINT]) is POINT
    assert choose([half]) is None


def test_a_bootstrap_of_equal_values_is_that_value():
    assert bootstrap(np.full((2, 3), -1.5), keeps_clients=True) == Interval(-1.5, -1.5, -1.5)


def test_a_bootstrap_of_two_clients():
    # Of two values drawn from {0, 1}, a quarter has the mean 0, a quarter the mean 1.
    assert bootstrap(np.array([[0.0, 1.0]]), keeps_clients=True) == Interval(0.5, 0, 1)
    assert bootstrap(np.array([[0.0], [1.0]]), keeps_clients=True) == Interval(0.5, 0, 1)


def test_clients_are_drawn_for_all_seeds_or_within_each():
    # Three seeds agree on two clients. Drawn once, the mean is 0 or 1 in a quarter of the replicates each; drawn in
    # each seed it is the mean of six draws: 0 in 1/64, less than 2.5 %, at most 1/6 in 7/64.
    values = np.array([[0.0, 1.0]] * 3)
    assert bootstrap(values, keeps_clients=True) == Interval(0.5, 0, 1)
    within = bootstrap(values, keeps_clients=False)
    np.testing.assert_allclose((within.low, within.high), (1 / 6, 5 / 6))


def test_a_bootstrap_gives_the_same_interval_again():
    values = np.random.default_rng(3).normal(size=(3, 7))
    assert bootstrap(values, keeps_clients=False) == bootstrap(values, keeps_clients=False)


def test_methods_are_compared_at_their_chosen_points_by_client_and_seed():
    bench = make_bench(
        methods={"fedit": {"grid": {"training.steps": [1, 2]}}, "local": {}, "lost": {"method": {"name": "fedit"}}},
        baselines=["local", "lost"],
    )
    one, two = (make_cell("fedit", point={"training.steps": steps}) for steps in (1, 2))
    local, lost = make_cell("local"), make_cell("lost")
    results = {
        one.file: make_result(one, [(99, 99)], validation=(20, 20)),
        two.file: make_result(two, [(10, 13)], validation=(9, 9)),
        local.file: make_result(local, [(12, 15)]),
        lost.file: CellResult(job=lost.job, environment="", failure="the loss is nan"),
    }
    fedit, of_local, of_lost = compare(bench, [one, two, local, lost], results).methods
    assert fedit.chosen.values == {"training.steps": 2}
    assert fedit.differences == {"local": Interval(-2, -2, -2)}
    assert (of_local.differences, of_lost.differences, of_lost.chosen) == ({}, {}, None)
