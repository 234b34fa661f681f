"""Adapter files: what goes in comes out, the same bytes always, and nothing broken gets in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import load, save

from perfit.adapter import SparseAdapter, mask_hash
from perfit.adapter_file import (
    AdapterFileError,
    AdapterHeader,
    dump_mask,
    dump_values,
    load_dense,
    load_header,
    load_mask,
    load_values,
    to_wire,
)
from perfit.space import LoraSpace

A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"
SPACE = LoraSpace.from_shapes({A: (2, 3), B: (5, 2)})
MASK = np.array([1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0], dtype=bool)
VALUES = np.array([0.1, -2.5, 1e-7, 3.0, 1 / 3, 65504.0], dtype=np.float32)
ADAPTER = SparseAdapter(SPACE, MASK, VALUES)
HEADER = AdapterHeader("f", 2, "ann", "some/model", rank=1, expansion=2, budget=0, mask_sha256="")


def filled(header: AdapterHeader) -> AdapterHeader:
    return replace(header, budget=6, mask_sha256=mask_hash(SPACE, MASK))


def rewrite(data: bytes, tensors: dict[str, np.ndarray] | None = None, **fields: object) -> bytes:
    """The file with other tensors or header fields, as another program could write it."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["perfit"])
    return save({**load(data), **(tensors or {})}, metadata={"perfit": json.dumps({**header, **fields})})


def same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype == np.float32
    assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def test_a_mask_comes_back():
    header, space, mask = load_mask(dump_mask(HEADER, SPACE, MASK))
    assert (header, space) == (filled(HEADER), SPACE)
    assert mask.dtype == bool
    assert_array_equal(mask, MASK)


def test_float32_values_come_back_to_the_bit():
    awkward = np.array([-0.0, 1e-45, 3.4028235e38, 0.1, np.pi, -1e-38], dtype=np.float32)
    header, adapter = load_values(dump_values(HEADER, replace(ADAPTER, values=awkward)), MASK)
    assert (header, adapter.space) == (filled(HEADER), SPACE)
    assert_array_equal(adapter.mask, MASK)
    same_bits(adapter.values, awkward)


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_half_precision_rounds_to_nearest(name, dtype):
    data = dump_values(HEADER, ADAPTER, name)
    _, adapter = load_values(data, MASK)
    same_bits(adapter.values, VALUES.astype(dtype).astype(np.float32))
    same_bits(adapter.values, to_wire(VALUES, name).astype(np.float32))
    assert len(dump_values(HEADER, ADAPTER)) - len(data) >= 2 * VALUES.size


def test_ties_round_to_even():
    # bfloat16 keeps 8 bits of precision: 257 and 259 lie midway between its neighbours 256, 258 and 260.
    assert_array_equal(to_wire(np.array([257, 259], np.float32), "bfloat16").astype(np.float32), [256, 260])


def test_a_matrix_without_values():
    mask = MASK & (np.arange(MASK.size) < 6)
    adapter = SparseAdapter(SPACE, mask, VALUES[:3])
    assert_array_equal(load_mask(dump_mask(HEADER, SPACE, mask))[2], mask)
    same_bits(load_values(dump_values(HEADER, adapter), mask)[1].values, VALUES[:3])


def test_a_global_adapter_holds_every_position():
    values = np.arange(SPACE.size, dtype=np.float32)
    header = replace(HEADER, client=None, rank=2)
    found, adapter = load_dense(dump_values(header, SparseAdapter(SPACE, np.ones(SPACE.size, bool), values)))
    assert (found.client, found.budget) == (None, 16)
    same_bits(adapter.values, values)
    with pytest.raises(AdapterFileError, match="not on the one given"):
        load_dense(dump_values(HEADER, ADAPTER))


def test_random_masks_come_back():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rank, into, out = rng.integers(1, 9, size=3).tolist()
        space = LoraSpace.from_shapes({A: (rank, into), B: (out, rank)})
        mask = rng.random(space.size) < rng.random()
        values = rng.standard_normal(np.count_nonzero(mask), dtype=np.float32)
        assert_array_equal(load_mask(dump_mask(HEADER, space, mask))[2], mask)
        loaded = load_values(dump_values(HEADER, SparseAdapter(space, mask, values)), mask)[1]
        same_bits(loaded.values, values)


def test_the_header_is_read_alone():
    assert load_header(dump_values(HEADER, ADAPTER)) == (filled(HEADER), SPACE)


def test_the_same_bytes_in_every_process():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_adapter_file as t;print(t.everything().hex())"
    here = os.path.dirname(__file__)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, here],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {everything().hex()}


def everything() -> bytes:
    files = [dump_values(HEADER, ADAPTER, dtype) for dtype in ("float32", "bfloat16", "float16")]
    return b"".join([dump_mask(HEADER, SPACE, MASK), *files])


def test_no_prefix_of_a_file_is_a_file():
    mask_file, values_file = dump_mask(HEADER, SPACE, MASK), dump_values(HEADER, ADAPTER)
    for data, read in [(mask_file, load_mask), (values_file, lambda data: load_values(data, MASK))]:
        for length in range(len(data)):
            with pytest.raises(AdapterFileError):
                read(data[:length])


def test_a_flipped_bit_never_gives_another_mask():
    data = dump_mask(HEADER, SPACE, MASK)
    for flipped in flips(data):
        try:
            mask = load_mask(flipped)[2]
        except AdapterFileError:
            continue
        assert_array_equal(mask, MASK)


def test_a_flipped_bit_never_gives_another_error():
    data = dump_values(HEADER, ADAPTER)
    for flipped in flips(data):
        try:
            adapter = load_values(flipped, MASK)[1]
        except AdapterFileError:
            continue
        assert np.isfinite(adapter.values).all()


def flips(data: bytes):
    for position in range(len(data)):
        for bit in range(8):
            yield data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


def test_a_flipped_bit_in_the_packed_mask():
    data = bytearray(dump_mask(HEADER, SPACE, MASK))
    data[-1] ^= 0b0100_0000  # the last position, the second bit of the last byte
    with pytest.raises(AdapterFileError, match="the bits do not have the budget and hash that the header names"):
        load_mask(bytes(data))


def test_another_mask_of_the_same_budget():
    data = dump_mask(HEADER, SPACE, MASK)
    swapped = np.packbits(MASK[:6][::-1])
    assert np.any(swapped != np.packbits(MASK[:6]))
    with pytest.raises(AdapterFileError, match="the bits do not have the budget and hash"):
        load_mask(rewrite(data, {f"mask/{A}": swapped}))


@pytest.mark.parametrize("packed", [np.zeros(2, np.uint8), np.zeros((1, 1), np.uint8)])
def test_mask_bits_of_another_shape(packed):
    with pytest.raises(AdapterFileError, match=f"no mask of 6 bits for {A}"):
        load_mask(rewrite(dump_mask(HEADER, SPACE, MASK), {f"mask/{A}": packed}))


@pytest.mark.parametrize("other", [np.roll(MASK, 1), np.ones(16, bool), MASK[:15]], ids=["other", "all", "short"])
def test_values_on_another_mask(other):
    named = mask_hash(SPACE, MASK)[:12]
    with pytest.raises(AdapterFileError, match=f"the values stand on mask {named}, not on the one given"):
        load_values(dump_values(HEADER, ADAPTER), other)


@pytest.mark.parametrize(
    "part",
    [np.zeros(2, np.float32), np.zeros(4, np.float32), np.zeros((3, 1), np.float32)],
    ids=["few", "many", "shape"],
)
def test_values_of_another_count(part):
    with pytest.raises(AdapterFileError, match=f"no 3 values for {A}"):
        load_values(rewrite(dump_values(HEADER, ADAPTER), {f"values/{A}": part}), MASK)


def test_a_space_far_beyond_the_bytes():
    huge = rewrite(dump_mask(HEADER, SPACE, MASK), matrices=[[A, 10**9, 10**9], [B, 10**9, 10**9]])
    with pytest.raises(AdapterFileError, match="no mask of 1000000000000000000 bits"):
        load_mask(huge)


def test_a_kind_of_file_in_place_of_the_other():
    with pytest.raises(AdapterFileError, match=f"no mask of 6 bits for {A}"):
        load_mask(dump_values(HEADER, ADAPTER))
    with pytest.raises(AdapterFileError, match=f"no 3 values for {A}"):
        load_values(dump_mask(HEADER, SPACE, MASK), MASK)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_that_are_not_finite(bad, dtype):
    values = VALUES.copy()
    values[1] = values[4] = bad
    with pytest.raises(AdapterFileError, match="2 values are not finite"):
        load_values(dump_values(HEADER, replace(ADAPTER, values=values), dtype), MASK)


def test_tensors_of_another_type():
    for dtype in (np.float64, np.int32):
        with pytest.raises(AdapterFileError, match=A):
            load_values(rewrite(dump_values(HEADER, ADAPTER), {f"values/{A}": np.zeros(3, dtype)}), MASK)
    for dtype in (np.int8, bool):
        with pytest.raises(AdapterFileError, match=A):
            load_mask(rewrite(dump_mask(HEADER, SPACE, MASK), {f"mask/{A}": np.zeros(1, dtype)}))


def test_a_type_that_numpy_does_not_have():
    data = dump_mask(HEADER, SPACE, MASK).replace(b'"U8","shape":[1]', b'"F8_E4M3","shape":[1]')
    data = (int.from_bytes(data[:8], "little") + 5).to_bytes(8, "little") + data[8:]
    with pytest.raises(AdapterFileError, match=A):
        load_mask(data)


@pytest.mark.parametrize("fields", [{}, {"sparsity": "2:4"}], ids=["the same fields", "a field more"])
def test_another_format_version_is_named(fields):
    data = rewrite(dump_values(HEADER, ADAPTER), format_version=2, **fields)
    with pytest.raises(AdapterFileError, match="format version 2, this release reads 1"):
        load_header(data)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"no safetensors at all",
        lambda data: (2**63 - 1).to_bytes(8, "little") + data[8:],
        lambda data: save(load(data)),
        lambda data: save(load(data), metadata={"perfit": "[]"}),
        lambda data: save(load(data), metadata={"perfit": '"text"'}),
        lambda data: save(load(data), metadata={"perfit": "{"}),
        lambda data: rewrite(data, matrices=[]),
        lambda data: rewrite(data, matrices=[[A, 2, 3]]),
        lambda data: rewrite(data, matrices=[[A, 2, float("inf")], [B, 5, 2]]),
        lambda data: rewrite(data, matrices=5),
        lambda data: rewrite(data, colour="blue"),
    ],
)
def test_headers_that_are_none(spoil: Callable[[bytes], bytes]):
    with pytest.raises(AdapterFileError, match="not an adapter file"):
        load_header(spoil(dump_values(HEADER, ADAPTER)))
