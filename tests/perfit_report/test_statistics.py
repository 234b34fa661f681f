"""Overlap and density of masks made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from perfit.space import LoraSpace
from perfit_report.statistics import chance_overlap, densities, jaccard

Q, V = "base_model.model.layers.0.q_proj", "base_model.model.layers.0.v_proj"
SPACE = LoraSpace.from_shapes(
    {
        f"{Q}.lora_A.weight": (2, 3),
        f"{Q}.lora_B.weight": (5, 2),
        f"{V}.lora_A.weight": (2, 4),
        f"{V}.lora_B.weight": (2, 2),
    }
)


def test_overlap_is_shared_over_held_by_either():
    masks = np.array([[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]], dtype=bool)
    expected = [[1, 2 / 4, 0, 3 / 6], [2 / 4, 1, 0, 3 / 6], [0, 0, 1, 2 / 6], [3 / 6, 3 / 6, 2 / 6, 1]]
    assert_array_equal(jaccard(iter(masks)), expected)


def test_overlap_of_masks_too_long_to_be_unpacked_at_once():
    size = 2**23 + 5
    first, second = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    first[: 2**22], second[2**21 : 2**22] = True, True
    first[-3:], second[-1:] = True, True
    assert jaccard([first, second, first])[0, 1] == (2**21 + 1) / (2**22 + 3)


def test_masks_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        jaccard([np.ones(8, dtype=bool), np.ones(17, dtype=bool)])


def test_overlap_expected_by_chance():
    # Halves of 100 positions share 25 and cover 75; a half and all of them share 50 and cover 100.
    assert_allclose(chance_overlap(np.array([50, 50, 100]), 100)[0], [1 / 3, 1 / 3, 1 / 2])


def test_random_masks_overlap_as_expected_by_chance():
    generator = np.random.default_rng(0)
    masks = [generator.permutation(100_000) < budget for budget in (25_000, 50_000)]
    assert_allclose(jaccard(masks), np.where(np.eye(2), 1, chance_overlap([25_000, 50_000], 100_000)), atol=0.005)


def test_density_of_each_module_and_of_its_matrices():
    mask = np.zeros(SPACE.size, dtype=bool)
    mask[:3] = True  # q: half of A's 6, of B's 10 one
    mask[6] = True
    mask[24:] = True  # v: none of A's 8, all of B's 4
    density = densities(SPACE, [mask, ~mask])
    assert density.shape == (2, 2, 3)
    assert_allclose(density[0], [[4 / 16, 3 / 6, 1 / 10], [4 / 12, 0, 1]])
    assert_allclose(density[1], 1 - density[0])
