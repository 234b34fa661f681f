"""Compiled loops over packed masks: numpy has no operation that moves packed values to the set bits of a mask.

Importing this module imports numba and compiles the loops, or loads them from numba's cache (docs/performance.md). That
takes longer than planning a round: import it where updates are averaged, not at the top of a module.

Masks are packed as ``np.packbits`` does: the first position is the highest bit of the first byte. Loops over a round's
updates take the addresses of their arrays, one for each client: they must stay alive, contiguous and unchanged.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

TILE = 2048
"""Positions whose sums stay in a core's first cache while all clients are added; a multiple of 16."""

SUMS = 16
"""Sums that a client's squares are spread over, likewise its maxima."""

_LANES = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1)[:, ::-1], axis=1).ravel()
"""Each byte with its first position as the lowest bit, as the processor counts."""
_SPREAD = np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1).view(np.uint64).ravel()
"""The bits of each byte, a byte for each bit."""


def _given(dtype: types.Type) -> types.Array:
    """The type of an array that is not changed."""
    return types.Array(dtype, 1, "C", readonly=True)


_MASK, _VECTOR, _NUMBERS = _given(types.uint8), _given(types.float32), _given(types.float64)
_ADDRESSES, _FLAGS = _given(types.uint64), _given(types.boolean)
_OUT = types.float32[::1]
_SUMS, _MAXIMA = types.float64[:, ::1], types.int32[:, ::1]
_SET_MEAN = types.void(_ADDRESSES, _ADDRESSES, _NUMBERS, _NUMBERS, _VECTOR, _FLAGS, _OUT, _SUMS, _MAXIMA)


@intrinsic
def _pointer(typing, address, dtype):
    """Return an address (uint64) as a pointer to numbers of a type."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(dtype.dtype)(address, dtype), generate


@intrinsic
def _ones(typing, byte):
    """Return the number of set bits of a byte."""

    def generate(context, builder, signature, arguments):
        return builder.zext(builder.ctpop(arguments[0]), ir.IntType(64))

    return types.int64(types.uint8), generate


@intrinsic
def _pack(typing, values, at, lanes, packed, begin):
    """Write those of 16 float32 values whose bits are set to ``begin`` and the places behind it.

    All of the 16 places change. ``compressstore`` writes no others, but is microcode on Zen 4, and takes 18 times as
    long there (https://github.com/llvm/llvm-project/issues/133568).
    """

    def generate(context, builder, signature, arguments):
        _, at, lanes, _, begin = arguments
        vector, bits = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(1), 16)
        values, packed = (make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 3))
        source, target = (
            builder.bitcast(builder.gep(data, [place]), vector.as_pointer())
            for data, place in ((values, at), (packed, begin))
        )
        kind, unset = ir.FunctionType(vector, [vector, bits, vector]), ir.Constant(vector, ir.Undefined)
        compress = cgutils.get_or_insert_function(builder.module, kind, "llvm.experimental.vector.compress.v16f32")
        chosen = builder.call(compress, [builder.load(source, align=4), builder.bitcast(lanes, bits), unset])
        builder.store(chosen, target, align=4)
        return context.get_dummy_value()

    return types.void(values, types.int64, types.uint16, packed, types.int64), generate


@intrinsic
def _add(typing, values, groups, one, base, total, weight, squares, largest):
    """Add ``one`` times float32 values to those float64 places of ``total`` whose bits are set, in groups of 16.

    ``one`` itself is added to these places of ``weight``, the squares of the values' differences from ``base`` to
    ``squares``, and ``largest`` is raised to the bits of their magnitudes; at other places nothing changes.
    """

    def generate(context, builder, signature, arguments):
        arrays = [make_array(signature.args[at])(context, builder, arguments[at]) for at in (0, 1, 3, 4, 5, 6, 7)]
        values, groups, base, total, weight, squares, largest = (array.data for array in arrays)
        (count,) = cgutils.unpack_tuple(builder, arrays[1].shape)
        narrow, wide, whole = (ir.VectorType(kind, 16) for kind in (ir.FloatType(), ir.DoubleType(), ir.IntType(32)))
        flags = ir.VectorType(ir.IntType(1), 16)

        def same(kind, number):
            return ir.Constant(kind, [number] * 16)

        def at_place(data, first, kind):
            return builder.bitcast(builder.gep(data, [first]), kind.as_pointer())

        def increase(place, term):
            builder.store(builder.fadd(builder.load(place, align=8), term), place, align=8)

        nothing = ir.Constant(ir.IntType(64), 0)
        squares, largest = at_place(squares, nothing, wide), at_place(largest, nothing, whole)
        begin, changes, most = (cgutils.alloca_once(builder, kind) for kind in (nothing.type, wide, whole))  # registers
        builder.store(nothing, begin)
        builder.store(builder.load(squares, align=8), changes)
        builder.store(builder.load(largest, align=4), most)
        ones = ir.Constant(wide, ir.Undefined)
        for lane in range(16):
            ones = builder.insert_element(ones, arguments[2], ir.Constant(ir.IntType(32), lane))
        with cgutils.for_range(builder, count) as loop:
            at = builder.shl(loop.index, ir.Constant(nothing.type, 4))
            here, source = builder.load(builder.gep(groups, [loop.index])), builder.gep(values, [builder.load(begin)])
            bits = builder.bitcast(here, flags)
            kind = ir.FunctionType(narrow, [source.type, flags, narrow])
            expand = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.expandload.v16f32")
            given = builder.call(expand, [source, bits, same(narrow, -0.0)])
            used = builder.zext(builder.ctpop(here), nothing.type)
            builder.store(builder.add(builder.load(begin), used), begin)
            increase(at_place(total, at, wide), builder.fmul(builder.fpext(given, wide), ones))
            increase(at_place(weight, at, wide), builder.select(bits, ones, same(wide, 0.0)))
            change = builder.fsub(given, builder.load(at_place(base, at, narrow), align=4))
            change, fused = builder.fpext(builder.select(bits, change, same(narrow, 0.0)), wide), ("contract",)
            square = builder.fmul(change, change, flags=fused)
            builder.store(builder.fadd(builder.load(changes), square, flags=fused), changes)
            magnitude = builder.and_(builder.bitcast(given, whole), same(whole, 0x7FFFFFFF))
            before = builder.load(most)
            builder.store(builder.select(builder.icmp_signed(">", magnitude, before), magnitude, before), most)
        builder.store(builder.load(changes), squares, align=8)
        builder.store(builder.load(most), largest, align=4)
        return context.get_dummy_value()

    given = values, groups, types.float64, base, total, weight, squares, largest
    return types.void(*given), generate


@njit(types.void(_MASK, _VECTOR, _OUT), cache=True, nogil=True)
def gather(bits, values, out):
    """Write the values (float32, shape (P,)) at the set bits of a packed mask to ``out``, of as many."""
    count, at = 0, 0
    while at + 16 <= values.size and count + 16 <= out.size:
        here, there = bits[at >> 3], bits[(at >> 3) + 1]
        _pack(values, at, np.uint16(_LANES[here]) | np.uint16(_LANES[there]) << np.uint16(8), out, count)
        count += _ones(here) + _ones(there)
        at += 16
    for place in range(at, values.size):
        if bits[place >> 3] << (place & 7) & 128:
            out[count] = values[place]
            count += 1


@njit(types.int64(_MASK), cache=True, nogil=True)
def count_set(bits):
    """Return the number of set bits of a packed mask, uint8."""
    count = 0
    for byte in bits:
        count += _ones(byte)
    return count


@njit(
    [types.void(_ADDRESSES, count[::1]) for count in (types.uint8, types.uint16, types.uint32)],
    cache=True,
    nogil=True,
)
def add_holders(masks, holders):
    """Count the clients that share each position.

    Args:
        masks: Addresses of the packed masks, uint64, shape (clients,).
        holders: uint8, uint16 or uint32, shape (P,): the counts are added to it.
    """
    tile = np.empty(TILE // 8, np.uint64)  # of eight counters, which hold up to 255 each
    for first in range(0, holders.size, TILE):
        size = min(TILE, holders.size - first)
        for some in range(0, masks.size, 255):
            tile[:] = 0
            for client in range(some, min(some + 255, masks.size)):
                bits = carray(_pointer(masks[client] + np.uint64(first // 8), np.uint8), ((size + 7) // 8,))
                for byte in range(bits.size):
                    tile[byte] += _SPREAD[bits[byte]]
            holders[first : first + size] += tile.view(np.uint8)[:size]


@njit(types.float64[::1](), cache=True, nogil=True)
def _line_aligned():
    """Return a tile of float64 that begins with a line of the cache, so that no vector of it lies in two."""
    tile = np.empty(TILE + 8)
    ahead = -tile.ctypes.data % 64 // 8
    return tile[ahead : ahead + TILE]


@njit(types.float32[::1](_MASK, _VECTOR, types.float64, _VECTOR, _OUT), cache=True, nogil=True)
def _limited(bits, values, factor, base, tile):
    """Return the values at the set bits, of whose change from ``base``, or from zero, a factor is left, in a tile."""
    count = count_set(bits)
    if base.size:
        gather(bits, base, tile)
    for at in range(count):
        origin = np.float64(tile[at]) if base.size else 0.0
        tile[at] = origin + factor * (values[at] - origin)
    return tile[:count]


@njit(types.float64(_MASK, _VECTOR, _VECTOR, _OUT), cache=True, nogil=True, fastmath={"reassoc"})
def _squares(bits, values, base, tile):
    """Return the sum of the squared differences of values from those of ``base`` at the set bits, or from zero."""
    total = 0.0
    if base.size == 0:
        for at in range(values.size):
            total += np.float64(values[at]) ** 2
        return total
    if values.size < base.size:
        gather(bits, base, tile)
        base = tile
    for at in range(values.size):
        total += np.float64(values[at] - base[at]) ** 2
    return total


@njit(
    types.Tuple((types.int64, types.float64, types.int64))(_MASK, _VECTOR, _VECTOR),
    cache=True,
    nogil=True,
)
def examine(mask, values, base):
    """Look through the values of an update at a range of positions.

    Args:
        mask: The range's bits, uint8.
        values: float32: those at the set bits, and any further ones.
        base: float32, shape (P,): what they have changed, or empty for zeros.

    Returns:
        The bits of the largest magnitude, which without a sign have the order of the numbers, infinity and NaN last;
        the sum of the squared changes in float64, of which the last digits depend on the processor; how many values.
    """
    largest, squares, count, tile = np.int32(0), 0.0, 0, np.empty(TILE, np.float32)
    for byte in range(0, mask.size, TILE // 8):
        bits = mask[byte : byte + TILE // 8]
        part = values[count : count + count_set(bits)]
        count += part.size
        numbers = part.view(np.int32)
        for at in range(numbers.size):
            largest = max(largest, np.int32(numbers[at] & np.int32(0x7FFFFFFF)))
        squares += _squares(bits, part, base[8 * byte : 8 * byte + TILE], tile)
    return np.int64(largest), squares, count


@njit(types.void(_NUMBERS, _NUMBERS, types.float64, _FLAGS, _OUT), cache=True, nogil=True, error_model="numpy")
def _divide(total, weight, more, shared, out):
    """Set shared places of ``out`` to the total over the weight; in a function of its own LLVM makes vectors of it."""
    for at in range(out.size):
        mean, kept = np.float32(total[at] / (weight[at] + more)), out[at]
        out[at] = mean if shared[at] else kept


@njit(_SET_MEAN, cache=True, nogil=True, error_model="numpy")
def set_mean(masks, vectors, weights, factors, base, shared, out, squares, largest):
    """Set shared positions to the weighted mean over the clients that hold them, in float64, in the clients' order.

    What :func:`examine` finds is found on the way, while the values are in the cache.

    Args:
        masks: Addresses of the packed masks, uint64, shape (clients,); bits after the last position are zero.
        vectors: Addresses of the float32 values at the set bits, uint64, shape (clients,).
        weights: float64, shape (clients,): whole numbers.
        factors: float64, shape (clients,): a client counts with ``base + factor * (value - base)``, rounded to float32,
            or with its very value if the factor is 1.
        base: float32, shape (P,), or empty for zeros.
        shared: bool, shape (P,): the positions to set; each has a holder.
        out: float32, shape (P,): changed.
        squares: float64, shape (clients, SUMS): sums of squared changes, of values that count, are added to these.
        largest: int32, shape (clients, SUMS): raised to the bits of the largest magnitudes.
    """
    total, weight, tile = _line_aligned(), _line_aligned(), np.empty(TILE, np.float32)
    origin, cursors = np.zeros(TILE, np.float32), np.zeros(masks.size, np.int64)
    groups = np.empty(TILE // 16, np.uint16)
    lanes = groups.view(np.uint8)
    for first in range(0, out.size, TILE):
        size, everywhere = min(TILE, out.size - first), 0.0
        total[:] = -0.0  # -0.0 + -0.0 keeps its sign, 0.0 + -0.0 does not
        weight[:] = 0
        if base.size:
            origin[:size] = base[first : first + size]
        for client in range(masks.size):
            bits = carray(_pointer(masks[client] + np.uint64(first // 8), np.uint8), ((size + 7) // 8,))
            values = carray(_pointer(vectors[client] + np.uint64(4 * cursors[client]), np.float32), (size,))
            one, factor, count = weights[client], factors[client], count_set(bits)
            cursors[client] += count
            if count == size and factor == 1:
                everywhere += one
                for at in range(size):
                    total[at] += one * values[at]
                found, change, _ = examine(bits, values, origin[:size])
                largest[client, 0] = max(largest[client, 0], found)
                squares[client, 0] += change
                continue
            if factor != 1:
                values = _limited(bits, values, factor, base[first : first + size], tile)
            for byte in range(bits.size):
                lanes[byte] = _LANES[bits[byte]]
            lanes[bits.size :] = 0
            some = groups[: (bits.size + 1) // 2]
            _add(values, some, one, origin, total, weight, squares[client], largest[client])
        _divide(total, weight, everywhere, shared[first : first + size], out[first : first + size])


@njit(types.float64(_VECTOR, _VECTOR, _FLAGS), cache=True, nogil=True, fastmath={"reassoc"})
def squared_distance(first, second, where):
    """Return the sum of the squared differences of two float32 vectors at some positions (bool), in float64."""
    total = 0.0
    for at in range(first.size):
        if where[at]:
            total += (np.float64(first[at]) - second[at]) ** 2
    return total
