"""A mask with its values."""

from __future__ import annotations

import numpy as np
import pytest
from blake3 import blake3
from numpy.testing import assert_array_equal

from perfit.adapter import SparseAdapter, mask_hash
from perfit.space import LoraSpace

SPACE = LoraSpace.from_shapes({"q.lora_A.weight": (1, 4), "q.lora_B.weight": (5, 1)})
MASK = np.array([1, 0, 0, 1, 0, 0, 0, 0, 1], dtype=bool)


def test_values_are_at_the_set_bits():
    adapter = SparseAdapter(SPACE, MASK, np.array([1.5, -2, 3], dtype=np.float32))
    assert adapter.budget == 3
    assert adapter.dense().dtype == np.float32
    assert_array_equal(adapter.dense(), [1.5, 0, 0, -2, 0, 0, 0, 0, 3])


@pytest.mark.parametrize(
    ("mask", "values", "message"),
    [
        (MASK[:8], np.zeros(2, np.float32), r"mask is bool\(8,\), want bool\(9,\)"),
        (MASK.astype(np.uint8), np.zeros(3, np.float32), r"mask is uint8\(9,\), want bool\(9,\)"),
        (MASK, np.zeros(4, np.float32), r"values are float32\(4,\), want float32\(3,\)"),
        (MASK, np.zeros(3, np.float64), r"values are float64\(3,\), want float32\(3,\)"),
    ],
)
def test_parts_that_do_not_fit(mask, values, message):
    with pytest.raises(ValueError, match=message):
        SparseAdapter(SPACE, mask, values)


def test_a_mask_is_named_by_the_shapes_and_its_packed_bits():
    # 1001 0000 | 1(000 0000)
    text = b'[["q.lora_A.weight", 1, 4], ["q.lora_B.weight", 5, 1]]' + bytes([0b10010000, 0b10000000])
    assert mask_hash(SPACE, MASK) == blake3(text).hexdigest()


def test_the_name_follows_bits_and_space():
    other_bits = MASK.copy()
    other_bits[1] = True
    other_space = LoraSpace.from_shapes({"q.lora_A.weight": (1, 5), "q.lora_B.weight": (4, 1)})
    assert len({mask_hash(SPACE, MASK), mask_hash(SPACE, other_bits), mask_hash(other_space, MASK)}) == 3
