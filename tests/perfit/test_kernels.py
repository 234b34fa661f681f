"""The compiled loops, against numpy: what a reader checks by hand is in test_aggregation.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from perfit.kernels import SUMS, TILE, add_holders, examine, gather, set_mean, squared_distance

SIZES = [1, 7, 8, 9, 64, 1001, TILE - 1, TILE, TILE + 1, 3 * TILE + 5]
NOTHING = np.zeros(0, np.float32)


def random_positions(rng: np.random.Generator, size: int, clients: int) -> np.ndarray:
    """Positions of clients that share none, a few, half or all."""
    shares = rng.permutation(np.resize([0, 0.1, 0.5, 1], clients))[:, np.newaxis]
    return rng.random((clients, size)) < shares


def addresses(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.array([array.ctypes.data for array in arrays], dtype=np.uint64)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("clients", [1, 6, 300])
def test_holders(size, clients):
    positions = random_positions(np.random.default_rng(size), size, clients)
    for dtype in (np.uint16, np.uint32) if clients > 255 else (np.uint8, np.uint16, np.uint32):
        holders, masks = np.zeros(size, dtype), np.packbits(positions, axis=1)
        add_holders(addresses(masks), holders)
        assert_array_equal(holders, positions.sum(axis=0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_base", [True, False])
def test_the_mean(size, with_base):
    rng = np.random.default_rng(size)
    positions = random_positions(rng, size, 8)
    dense = rng.normal(0, 1, positions.shape).astype(np.float32)
    base = rng.normal(0, 1, size).astype(np.float32) if with_base else NOTHING
    weights, factors = rng.integers(1, 5000, 8).astype(np.float64), np.array([1, 1, 1, 1, 0.3, 0.5, 1, 0.25])
    shared = positions.sum(axis=0) >= 2
    before = rng.normal(0, 1, size).astype(np.float32)
    out = before.copy()
    masks, vectors = np.packbits(positions, axis=1), [row[held] for row, held in zip(dense, positions, strict=True)]
    squares, largest = np.zeros((8, SUMS)), np.zeros((8, SUMS), np.int32)
    set_mean(addresses(masks), addresses(vectors), weights, factors, base, shared, out, squares, largest)
    for at, (mask, values) in enumerate(zip(masks, vectors, strict=True)):
        if factors[at] == 1:
            found, change, _ = examine(mask, values, base)
            assert (largest[at].max(), squares[at].sum()) == (found, pytest.approx(change, rel=1e-12))

    origin = base.astype(np.float64) if with_base else np.zeros(size)
    scaled = (origin + factors[:, np.newaxis] * (dense - origin)).astype(np.float32)
    counted = np.where(factors[:, np.newaxis] == 1, dense, scaled)
    total = np.zeros(size)
    for weight, held, values in zip(weights, positions, counted, strict=True):  # in the clients' order
        total[held] += weight * values[held].astype(np.float64)
    expected = before.copy()
    expected[shared] = total[shared] / (weights @ positions)[shared]
    assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_the_squared_change(size, share):
    rng = np.random.default_rng(size)
    positions, base = rng.random(size) < share, rng.normal(0, 1, size).astype(np.float32)
    values = rng.normal(0, 1, np.count_nonzero(positions)).astype(np.float32)
    mask = np.packbits(positions)
    for origin, changes in ((base, values - base[positions]), (NOTHING, values)):
        largest, squares, count = examine(mask, np.append(values, np.float32(np.nan)), origin)
        assert np.int32(largest).view(np.float32) == np.abs(values).max(initial=0)
        assert squares == pytest.approx(np.sum(changes.astype(np.float64) ** 2), rel=1e-12)
        assert count == values.size


@pytest.mark.parametrize("size", [1, 7, 8, 100, 4099])
@pytest.mark.parametrize("share", [0.02, 0.5, 1])
def test_values_at_the_set_bits(size, share):
    rng = np.random.default_rng(size)
    positions, values = rng.random(size) < share, rng.standard_normal(size, dtype=np.float32)
    count = np.count_nonzero(positions)
    out = np.zeros(count + 16, np.float32)
    gather(np.packbits(positions), values, out[:count])
    assert_array_equal(out, np.append(values[positions], np.zeros(16, np.float32)))  # and nothing behind its end


def test_the_squared_distance():
    first, second = np.float32([1, 2, 3]), np.float32([4, 9, 7])
    assert squared_distance(first, second, np.array([True, False, True])) == 3**2 + 4**2
    assert squared_distance(first, second, np.zeros(3, dtype=bool)) == 0


def largest_magnitude(values: list[float]) -> np.float32:
    largest, _, count = examine(np.packbits(np.ones(len(values), dtype=bool)), np.float32(values), NOTHING)
    assert count == len(values)
    return np.int32(largest).view(np.float32)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], 0), ([-0.0, 1e-45], 1e-45), ([1, -3, 2], 3), ([1, -np.inf], np.inf), ([-3e38, 2e38], 3e38)],
)
def test_the_largest_magnitude(values, expected):
    assert largest_magnitude(values) == np.float32(expected)


@pytest.mark.parametrize("bad", [np.nan, -np.nan])
def test_what_is_not_a_number_has_no_magnitude(bad):
    assert np.isnan(largest_magnitude([1, bad, 9]))
    for mask in ([True, True, True], [True, True, False, True]):  # all positions, and some
        shared, out, largest = np.array(mask), np.empty(len(mask), np.float32), np.zeros((1, SUMS), np.int32)
        masks, one, values = np.packbits([mask], axis=1), np.ones(1), np.float32([1, bad, 9])
        set_mean(addresses(masks), addresses([values]), one, one, NOTHING, shared, out, np.zeros((1, SUMS)), largest)
        assert np.isnan(largest.max().view(np.float32))


def test_read_only_arrays_are_accepted():
    base = np.float32([1, 2, 3])
    base.setflags(write=False)
    assert examine(np.packbits([True, False, True]), np.float32([2, 5]), base)[1:] == (1 + 4, 2)


def test_a_directory_given_for_the_cache_is_used(tmp_path):
    command = [sys.executable, "-c", "import perfit.kernels"]
    subprocess.run(command, env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}, check=True)
    functions = {path.name.split("-")[0] for path in tmp_path.rglob("*.nbi")}
    assert {"kernels.set_mean", "kernels.add_holders", "kernels.examine"} <= functions
