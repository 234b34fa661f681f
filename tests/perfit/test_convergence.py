"""The step size of Theorem 1, against quotients worked out by hand."""

from __future__ import annotations

import math

import pytest

from perfit.convergence import step_size_limit
from perfit.errors import PerfitError


@pytest.mark.parametrize(
    ("smoothness", "local_steps", "limit"),
    [
        (2.0, 5, 0.00625),  # 1 / 160
        (0.5, 1, 0.125),  # 1 / 8
        (0.25, 2, 0.125),
    ],
)
def test_one_over_sixteen_times_smoothness_times_steps(smoothness, local_steps, limit):
    assert step_size_limit(smoothness, local_steps) == limit


@pytest.mark.parametrize("smoothness", [0.0, -0.5, math.nan])
def test_a_smoothness_that_is_not_positive(smoothness):
    with pytest.raises(PerfitError) as caught:
        step_size_limit(smoothness, 5)
    assert caught.value.problem == f"the smoothness L is {smoothness}"
    assert caught.value.fix == "give a positive estimate"
