"""Compiled loops over packed masks: numpy has no operation that moves packed values to the set bits of a mask.

Importing this module imports numba and compiles the loops, or loads them from numba's cache (docs/performance.md). That
takes longer than planning a round: import it where updates are averaged, not at the top of a module.

Masks are packed as ``np.packbits`` does: the first position is the highest bit of the first byte.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

TILE = 2048
"""Positions whose sums stay in a core's first cache while all clients are added; a multiple of eight."""

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1)
"""The bits of each byte, first position first."""
_SPREAD = _BITS.view(np.uint64).ravel()
"""The same, a byte for each bit."""
_COUNTS = _BITS.sum(axis=1, dtype=np.uint8)
_OFFSETS = np.argsort(1 - _BITS, axis=1, kind="stable").astype(np.uint8)
"""Where the bits of each byte are set; what follows the set ones is never used."""


def _given(dtype: types.Type, dimensions: int = 1) -> types.Array:
    """The type of an array that is not changed."""
    return types.Array(dtype, dimensions, "C", readonly=True)


_MASK, _MASKS, _FLAGS = _given(types.uint8), _given(types.uint8, 2), _given(types.boolean)
_VECTOR, _NUMBERS, _INDICES = _given(types.float32), _given(types.float64), _given(types.int64)
_SET_MEAN = types.void(_MASKS, _VECTOR, _INDICES, _NUMBERS, _NUMBERS, _VECTOR, _FLAGS, types.float32[::1])


@njit(types.int64(_MASK, types.uint16[::1]), cache=True, nogil=True)
def _positions(bits, out):
    """Write the positions of the set bits to ``out`` (uint16, eight longer than the bits), and return their number."""
    count = 0
    for byte in range(bits.size):
        for offset in range(8):
            out[count + offset] = 8 * byte + _OFFSETS[bits[byte], offset]
        count += _COUNTS[bits[byte]]
    return count


@njit([types.void(_MASKS, count[::1]) for count in (types.uint8, types.uint16, types.uint32)], cache=True, nogil=True)
def add_holders(masks, holders):
    """Count the clients that share each position.

    Args:
        masks: Packed masks, uint8, shape (clients, ceil(P / 8)).
        holders: uint8, uint16 or uint32, shape (P,): the counts are added to it.
    """
    tile = np.empty(TILE // 8, np.uint64)  # of eight counters, which hold up to 255 each
    for start in range(0, holders.size, TILE):
        stop = min(start + TILE, holders.size)
        for first in range(0, masks.shape[0], 255):
            tile[:] = 0
            for client in range(first, min(first + 255, masks.shape[0])):
                bits = masks[client, start // 8 : (stop + 7) // 8]
                for byte in range(bits.size):
                    tile[byte] += _SPREAD[bits[byte]]
            holders[start:stop] += tile.view(np.uint8)[: stop - start]


@njit(_SET_MEAN, cache=True, nogil=True)
def set_mean(masks, values, starts, weights, factors, base, shared, out):
    """Set shared positions to the weighted mean over the clients that hold them, in float64, in the clients' order.

    Args:
        masks: Packed masks, uint8, shape (clients, ceil(P / 8)); bits after the last position are zero.
        values: float32: each client's values at the set bits of its mask.
        starts: int64, shape (clients,): where a client's values begin in ``values``.
        weights: float64, shape (clients,): whole numbers.
        factors: float64, shape (clients,): a client counts with ``base + factor * (value - base)``, rounded to float32,
            or with its very value if the factor is 1.
        base: float32, shape (P,), or empty for zeros.
        shared: bool, shape (P,): the positions to set; each has a holder.
        out: float32, shape (P,): changed.
    """
    total, weight, where = np.empty(TILE), np.empty(TILE), np.empty(TILE + 8, np.uint16)
    ends = starts + 0
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        total[:] = -0.0  # -0.0 + -0.0 keeps its sign, 0.0 + -0.0 does not
        weight[:] = 0
        for client in range(masks.shape[0]):
            count = _positions(masks[client, start // 8 : (stop + 7) // 8], where)
            part, one, factor = values[ends[client] : ends[client] + count], weights[client], factors[client]
            ends[client] += count
            if factor != 1:
                for at in range(count):
                    origin = np.float64(base[start + where[at]]) if base.size else 0.0
                    total[where[at]] += one * np.float32(origin + factor * (part[at] - origin))
                    weight[where[at]] += one
            elif count == stop - start:
                for at in range(count):
                    total[at] += one * part[at]
                    weight[at] += one
            else:
                for at in range(count):
                    total[where[at]] += one * part[at]
                    weight[where[at]] += one
        for at in range(stop - start):
            if shared[start + at]:
                out[start + at] = total[at] / weight[at]


@njit(types.float64(_MASK, _VECTOR, _VECTOR), cache=True, nogil=True, fastmath={"reassoc"})
def squared_change(mask, values, base):
    """Return the sum of the squares of ``values`` (float32) less ``base`` (float32, shape (N,)) at a mask's positions.

    Args:
        mask: uint8, shape (ceil(N / 8),).
        values: float32, shape (number of set bits,).
        base: float32, shape (N,), or empty for zeros.

    Returns:
        The sum in float64, of which the last digits depend on the processor.
    """
    total, begin, where = 0.0, 0, np.empty(TILE + 8, np.uint16)
    if base.size == 0:
        for at in range(values.size):
            total += np.float64(values[at]) ** 2
        return total
    for start in range(0, base.size, TILE):
        stop = min(start + TILE, base.size)
        count = _positions(mask[start // 8 : (stop + 7) // 8], where)
        part, origin = values[begin : begin + count], base[start:stop]
        begin += count
        if count == stop - start:
            for at in range(count):
                total += (np.float64(part[at]) - origin[at]) ** 2
        else:
            for at in range(count):
                total += (np.float64(part[at]) - origin[where[at]]) ** 2
    return total


@njit(types.float64(_VECTOR, _VECTOR, _FLAGS), cache=True, nogil=True, fastmath={"reassoc"})
def squared_distance(first, second, where):
    """Return the sum of the squared differences of two float32 vectors at some positions (bool), in float64."""
    total = 0.0
    for at in range(first.size):
        if where[at]:
            total += (np.float64(first[at]) - second[at]) ** 2
    return total


@njit(types.float32(_VECTOR), cache=True, nogil=True)
def largest_magnitude(values):
    """Return the largest magnitude of float32 values, 0 if there are none; not finite if one of them is not."""
    largest = np.int32(0)
    for bits in values.view(np.int32):  # without their sign, floats have the order of their bits
        largest = max(largest, bits & np.int32(0x7FFFFFFF))
    return np.int32(largest).view(np.float32)
