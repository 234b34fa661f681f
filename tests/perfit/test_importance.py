"""Importance over two steps, by hand."""

from __future__ import annotations

import pytest
import torch

from perfit.importance import METRICS

WEIGHTS = [[2.0, -3.0, 0.0], [1.0, -4.0, 0.5]]
START = [3.0, -3.0, 0.0]
GRADIENTS = [[1.0, 2.0, 5.0], [-3.0, 0.5, 2.0]]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("taylor", [2 * 1 + 1 * 3, 3 * 2 + 4 * 0.5, 0 + 0.5 * 2]),
        ("gradient", [1 + 3, 2 + 0.5, 5 + 2]),
        ("magnitude", [2, 1, 0.5]),
    ],
)
def test_two_steps(metric, expected):
    score = torch.zeros(3)
    for weight, gradient in zip(WEIGHTS, GRADIENTS, strict=True):
        score = METRICS[metric](score, torch.tensor(weight), torch.tensor(gradient), torch.tensor(START))
    assert score.tolist() == expected
