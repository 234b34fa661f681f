"""What crosses: rounding to each type on the wire, and the choice of the largest changes."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from perfit.exchange import BLOCK, DTYPES, Exchange, Transfer, pack


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def drawn(size: int) -> np.ndarray:
    """Values of many magnitudes and both signs."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal(size) * 10.0 ** rng.integers(-6, 3, size)).astype(np.float32)


def units(vector: np.ndarray) -> np.ndarray:
    """The int8 unit at each position: the largest magnitude of its block, divided by 127."""
    blocks = np.split(vector, range(BLOCK, vector.size, BLOCK))
    return np.concatenate([np.full(block.size, np.abs(block).max() / 127) for block in blocks])


def test_float32_crosses_to_the_bit():
    awkward = floats(-0.0, 1e-45, 3.4028235e38, 0.1, np.pi, -1e-38)
    packed = pack(awkward, "float32", seed=0)
    assert packed.values.dtype == np.float32
    assert packed.unpack().tobytes() == awkward.tobytes()


@pytest.mark.parametrize(
    ("dtype", "crosses"),
    [
        # 1 + 2^-8 lies half-way between two bfloat16, of which 1 is the even one; 1 + 2^-10 is a float16.
        ("bfloat16", [1, 1, 0.10009765625]),
        ("float16", [1 + 2**-8, 1 + 2**-10, 0.0999755859375]),
    ],
)
def test_shorter_floats_by_hand(dtype, crosses):
    received = pack(floats(1 + 2**-8, 1 + 2**-10, 0.1), dtype, seed=0).unpack()
    assert_array_equal(received, floats(*crosses))
    assert received.dtype == np.float32


def test_ties_round_to_even():
    # bfloat16 keeps 8 bits of precision: 257 and 259 lie midway between its neighbours 256, 258 and 260.
    assert_array_equal(pack(floats(257, 259), "bfloat16", seed=0).unpack(), [256, 260])


@pytest.mark.parametrize(("dtype", "type_"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_shorter_floats_round_to_nearest_whatever_the_seed(dtype, type_):
    vector = drawn(300)
    for seed in (0, 1):
        packed = pack(vector, dtype, seed)
        assert packed.values.dtype == type_
        assert packed.scales.size == 0
        assert packed.values.tobytes() == vector.astype(type_).tobytes()


def test_int8_by_hand():
    # The largest magnitude, 2.54, is 127 units of 0.02; multiples of the unit are not rounded.
    packed = pack(floats(2.54, -2.54, 0.02, 0, -1), "int8", seed=0)
    assert packed.values.dtype == np.int8
    assert_array_equal(packed.values, [127, -127, 1, 0, -50])
    assert_array_equal(packed.scales, floats(2.54) / np.float32(127))


def test_int8_rounds_up_or_down_to_the_next_unit():
    levels = {int(pack(floats(127, 0.25, -0.25), "int8", seed).values[k]) for seed in range(50) for k in (1, 2)}
    assert levels == {-1, 0, 1}


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 300, 3 * BLOCK])
def test_int8_errs_by_less_than_a_unit_of_its_block(size):
    vector = drawn(size)
    packed = pack(vector, "int8", seed=1)
    assert packed.scales.shape == (math.ceil(size / BLOCK),)
    assert packed.scales.dtype == np.float32
    # The unit, the level and their product are each rounded to float32.
    assert np.all(np.abs(packed.unpack() - vector) <= units(vector) * (1 + 1e-4))


def test_int8_is_exact_in_expectation():
    vector, seeds = drawn(300), 2000
    total = np.zeros(vector.size)
    for seed in range(seeds):
        total += pack(vector, "int8", seed).unpack()
    # Each error lies in an interval of one unit. By Hoeffding's inequality the mean of S of them is off by t units with
    # a probability of at most 2 * exp(-2 * S * t^2): over 300 positions 1e-9 for t = 0.083. Rounding to nearest is off
    # by up to 0.5.
    t = math.sqrt(math.log(2 * vector.size / 1e-9) / (2 * seeds))
    assert np.all(np.abs(total / seeds - vector) <= t * units(vector))


def test_int8_follows_from_its_seed():
    vector = drawn(300)
    first, again, other = (pack(vector, "int8", seed).values for seed in (5, 5, 6))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_int8_keeps_zeros_also_in_a_block_of_zeros():
    vector = drawn(3 * BLOCK)
    vector[:BLOCK] = 0
    vector[BLOCK::2] = 0
    for seed in range(20):
        packed = pack(vector, "int8", seed)
        assert packed.scales[0] == 0
        assert not packed.unpack()[vector == 0].any()


def test_the_largest_values_of_int8_never_turn_over():
    # In float32, 127 and a draw just below one are 128 about four times in a million: 16 times here.
    vector = np.resize(floats(1, -1), 2**22)
    assert np.all(np.abs(pack(vector, "int8", seed=0).unpack() - vector) < 0.01)


def test_int8_of_values_below_its_smallest_unit():
    # 1e-45 is the smallest float32: a 127th of it is zero.
    assert_array_equal(pack(floats(1e-45, -1e-45), "int8", seed=0).unpack(), [0, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_vector(dtype):
    packed = pack(floats(), dtype, seed=0)
    assert (packed.values.dtype, packed.values.size, packed.scales.size) == (np.dtype(DTYPES[dtype]), 0, 0)
    assert (packed.unpack().dtype, packed.unpack().size) == (np.float32, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_leaves_the_vector_as_it_is(dtype):
    vector = drawn(300)
    pack(vector, dtype, seed=0)
    assert vector.tobytes() == drawn(300).tobytes()


def test_a_transfer_unpacks_every_vector():
    vectors = {"values": pack(floats(1, 2), "float16", 0), "control": pack(floats(127, -127), "int8", 0)}
    unpacked = Transfer(np.array([True, False, True]), vectors).unpack()
    assert {name: vector.tolist() for name, vector in unpacked.items()} == {"values": [1, 2], "control": [127, -127]}


def test_the_largest_changes_whatever_their_sign():
    exchange = Exchange(top=0.5)
    assert_array_equal(exchange.largest(floats(0.1, -3, 2, 0)), [False, True, True, False])
    assert_array_equal(Exchange().largest(floats(0.1, -3, 0)), [True, True, True])


def test_of_equal_changes_the_first_are_chosen():
    assert_array_equal(Exchange(top=0.5).largest(floats(1, -1, 1, -1)), [True, True, False, False])
    # Of 1000 changes 200 of size 3, then the first 300 of the 400 of size 2.
    many = np.resize(floats(1, -2, 3, 2, -1), 1000)
    twos = np.abs(many) == 2
    assert_array_equal(Exchange(top=0.5).largest(many), (many == 3) | twos & (np.cumsum(twos) <= 300))


@pytest.mark.parametrize(
    ("top", "positions", "count"),
    [(1, 0, 0), (1, 7, 7), (0.5, 0, 0), (0.5, 1, 1), (0.5, 8, 4), (0.01, 8, 1), (0.3, 9, 3), (0.99, 9, 9)],
)
def test_how_many_changes_are_uploaded(top, positions, count):
    exchange = Exchange(top=top)
    assert exchange.count(positions) == count
    assert np.count_nonzero(exchange.largest(drawn(positions))) == count


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, True),
        ({"dtype": "float32", "top": 0.5}, True),
        *(({"dtype": dtype}, dtype != "float32") for dtype in DTYPES),
    ],
)
def test_values_are_uploaded_only_if_all_of_them_cross_as_they_are(options, changes):
    assert Exchange(**options).sends_changes == changes
