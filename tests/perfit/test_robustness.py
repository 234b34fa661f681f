"""How far one client can move a round, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from perfit.robustness import Measure, measure, root_mean_square, scales
from perfit.updates import Update

POSITIONS = np.array([True, False, True])
BASE = {"values": np.float32([1, 2, 3])}


def update(values, samples=4, **more) -> Update:
    vectors = {"values": np.float32(values)} | {name: np.float32(vector) for name, vector in more.items()}
    return Update.at(POSITIONS, vectors, samples)


def test_a_change_is_measured_from_the_servers_values():
    # (4 - 1, 7 - 3) = (3, 4): the root of (9 + 16) / 2. A control variate is itself a change: (5, 5).
    measured = measure(update([4, 7], control=[5, 5]), BASE)
    assert measured.samples == 4
    assert measured.changes == {"values": 3.53553, "control": 5}  # six digits of the root of 12.5


def test_a_vector_without_entries_has_not_moved():
    assert root_mean_square(0.0, 0) == 0


def weights(samples: list[int], max_share: float, *, weighted: bool = True) -> list[int]:
    measures = {str(number): Measure(count, {}, {}) for number, count in enumerate(samples)}
    return [s.weight for s in scales(measures, max_share=max_share, clip=None, weighted=weighted).values()]


@pytest.mark.parametrize(
    ("samples", "max_share", "expected"),
    [
        ([6, 4, 5], 0.5, [6, 4, 5]),  # nobody has half
        ([10**9, 4, 5], 0.5, [9, 4, 5]),  # as much as the two others
        ([100, 100, 1], 0.4, [2, 2, 1]),  # two at 2 of 5
        ([100, 50, 1], 1.0, [100, 50, 1]),
        ([7, 3, 2], 0.2, [1, 1, 1]),  # a share below a third: all alike
        ([10**9, 1], 0.5, [10**9, 1]),  # two cannot tell who is out of line
    ],
)
def test_nobody_has_more_than_the_share(samples, max_share, expected):
    assert weights(samples, max_share) == expected


def test_methods_that_weigh_clients_alike_have_nothing_to_cap():
    assert weights([10**9, 4, 5], 0.5, weighted=False) == [1, 1, 1]


def factors(changes: list[float], clip: float | None = 3.0) -> list[dict[str, float]]:
    measures = {str(number): Measure(1, {"values": change}, {}) for number, change in enumerate(changes)}
    return [dict(s.factors) for s in scales(measures, max_share=1, clip=clip, weighted=True).values()]


def test_a_change_beyond_three_times_the_median_is_cut_to_it():
    # The median of 1, 2 and 12 is 2: 12 becomes 6.
    assert factors([1, 2, 12]) == [{}, {}, {"values": 0.5}]
    assert factors([1, 2, 1e30]) == [{}, {}, {"values": pytest.approx(6e-30)}]


def test_what_is_not_cut():
    assert factors([1, 2, 6]) == [{}, {}, {}]  # three times the median, and not more
    assert factors([1, 1e30]) == [{}, {}]  # of two nobody is out of line
    assert factors([1, 2, 12], clip=None) == [{}, {}, {}]
    assert factors([0, 0, 5]) == [{}, {}, {}]  # a median of zero says nothing
