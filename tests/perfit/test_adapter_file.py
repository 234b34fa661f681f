"""Adapter files: contents survive a round trip, bytes are reproducible, and broken files are refused."""

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

from perfit.adapter import mask_hash
from perfit.adapter_file import (
    AdapterFile,
    AdapterFileError,
    AdapterHeader,
    dump_mask,
    dump_server_vectors,
    dump_vectors,
    to_wire,
)
from perfit.space import LoraSpace
from perfit.spec import FederationSpec

A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"
SPACE = LoraSpace.from_shapes({A: (2, 3), B: (5, 2)})
MASK = np.array([1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0], dtype=bool)
VALUES = np.array([0.1, -2.5, 1e-7, 3.0, 1 / 3, 65504.0], dtype=np.float32)
HEADER = AdapterHeader("f", 2, "ann", "some/model", 1, 2, budget=6, mask_sha256=mask_hash(SPACE, MASK))


def mask_file(space: LoraSpace = SPACE, mask: np.ndarray = MASK) -> bytes:
    header = replace(HEADER, budget=int(np.count_nonzero(mask)), mask_sha256=mask_hash(space, mask))
    return dump_mask(header, space, mask)


def values_file(values: np.ndarray = VALUES, dtype: str = "float32") -> bytes:
    return dump_vectors(HEADER, SPACE, MASK, {"values": values}, dtype)


def mask_of(data: bytes) -> np.ndarray:
    return AdapterFile.parse(data).mask


def values_of(data: bytes, positions: np.ndarray = MASK) -> np.ndarray:
    return AdapterFile.parse(data).vectors(positions, ["values"])["values"]


def rewrite(data: bytes, tensors: dict[str, np.ndarray] | None = None, **fields: object) -> bytes:
    """The file with other tensors or header fields, as another program could write it."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["perfit"])
    return save({**load(data), **(tensors or {})}, metadata={"perfit": json.dumps({**header, **fields})})


def same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype == np.float32
    assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def test_a_mask_comes_back():
    file = AdapterFile.parse(mask_file())
    assert (file.header, file.space) == (HEADER, SPACE)
    assert file.mask.dtype == bool
    assert_array_equal(file.mask, MASK)


def test_float32_values_come_back_to_the_bit():
    awkward = np.array([-0.0, 1e-45, 3.4028235e38, 0.1, np.pi, -1e-38], dtype=np.float32)
    file = AdapterFile.parse(values_file(awkward))
    assert (file.header, file.space) == (HEADER, SPACE)
    vectors = file.vectors(MASK, ["values"])
    assert list(vectors) == ["values"]
    same_bits(vectors["values"], awkward)


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_half_precision_rounds_to_nearest(name, dtype):
    data = values_file(dtype=name)
    same_bits(values_of(data), VALUES.astype(dtype).astype(np.float32))
    same_bits(values_of(data), to_wire(VALUES, name).astype(np.float32))
    assert len(values_file()) - len(data) >= 2 * VALUES.size


def test_several_vectors_in_a_file():
    vectors = {"values": VALUES, "control": -VALUES}
    file = AdapterFile.parse(dump_vectors(HEADER, SPACE, MASK, vectors))
    for read in (file.vectors(MASK, ["control", "values"]), file.named_vectors(MASK)):
        assert read.keys() == vectors.keys()
        for name, vector in vectors.items():
            same_bits(read[name], vector)


def test_vectors_on_some_positions_of_the_mask():
    shared = MASK & (np.arange(MASK.size) < 6)  # A alone
    data = dump_vectors(HEADER, SPACE, shared, {"values": VALUES[:3]})
    same_bits(values_of(data, shared), VALUES[:3])
    with pytest.raises(AdapterFileError, match=f"no 3 values for {B}"):
        values_of(data)


def test_missing_and_surplus_vectors():
    both = AdapterFile.parse(dump_vectors(HEADER, SPACE, MASK, {"values": VALUES, "records": VALUES}))
    with pytest.raises(AdapterFileError, match="it holds 2 tensors besides values"):
        both.vectors(MASK, ["values"])
    with pytest.raises(AdapterFileError, match=f"no 3 control for {A}"):
        AdapterFile.parse(values_file()).vectors(MASK, ["values", "control"])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", [1 + 2**-7, 1 + 2**-10, 1 + 2**-20]),
        ("float16", [1 + 2**-7, 1 + 2**-10, 1]),
        ("bfloat16", [1 + 2**-7, 1, 1]),
    ],
)
def test_what_the_wire_can_carry(dtype, expected):
    values = np.array([1 + 2**-7, 1 + 2**-10, 1 + 2**-20], dtype=np.float32)
    assert_array_equal(to_wire(values, dtype).astype(np.float32), expected)


def test_ties_round_to_even():
    # bfloat16 keeps 8 bits of precision: 257 and 259 lie midway between its neighbours 256, 258 and 260.
    assert_array_equal(to_wire(np.array([257, 259], np.float32), "bfloat16").astype(np.float32), [256, 260])


def test_a_matrix_without_values():
    mask = MASK & (np.arange(MASK.size) < 6)
    assert_array_equal(mask_of(mask_file(mask=mask)), mask)
    same_bits(values_of(dump_vectors(HEADER, SPACE, mask, {"values": VALUES[:3]}), mask), VALUES[:3])


SPEC = FederationSpec.model_validate(
    {"name": "f", "model": "some/model", "lora": {"rank": 1}, "clients": [{"id": "ann", "data": "ann.jsonl"}]}
)


def test_a_file_of_the_server_holds_every_position():
    values, everywhere = np.arange(SPACE.size, dtype=np.float32), np.ones(SPACE.size, dtype=bool)
    data = dump_server_vectors(SPEC, SPACE, 3, {"values": values, "momentum": values + 1})
    file = AdapterFile.parse(data)
    assert file.header == AdapterHeader.of_server(SPEC, SPACE, 3)
    assert file.header == AdapterHeader("f", 3, None, "some/model", 2, 2, budget=16, mask_sha256="all")
    read = file.vectors(everywhere, ["values", "momentum"])
    same_bits(read["values"], values)
    same_bits(read["momentum"], values + 1)
    with pytest.raises(AdapterFileError, match=f"no 6 values for {A}"):
        values_of(values_file(), everywhere)


def test_the_header_of_a_client():
    header = AdapterHeader.of_client(SPEC, "ann", 2, 6, HEADER.mask_sha256)
    assert header == HEADER


def test_random_masks_come_back():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rank, into, out = rng.integers(1, 9, size=3).tolist()
        space = LoraSpace.from_shapes({A: (rank, into), B: (out, rank)})
        mask = rng.random(space.size) < rng.random()
        values = rng.standard_normal(np.count_nonzero(mask), dtype=np.float32)
        assert_array_equal(mask_of(mask_file(space, mask)), mask)
        same_bits(values_of(dump_vectors(HEADER, space, mask, {"values": values}), mask), values)


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
    files = [values_file(dtype=dtype) for dtype in ("float32", "bfloat16", "float16")]
    several = dump_vectors(HEADER, SPACE, MASK, {"values": VALUES, "control": VALUES})
    return b"".join([mask_file(), *files, several])


def test_no_prefix_of_a_file_is_a_file():
    for data, read in [(mask_file(), mask_of), (values_file(), values_of)]:
        for length in range(len(data)):
            with pytest.raises(AdapterFileError):
                read(data[:length])


def test_a_flipped_bit_never_gives_another_mask():
    data = mask_file()
    for flipped in flips(data):
        try:
            mask = mask_of(flipped)
        except AdapterFileError:
            continue
        assert_array_equal(mask, MASK)


def test_a_flipped_bit_never_gives_another_error():
    data = values_file()
    for flipped in flips(data):
        try:
            values = values_of(flipped)
        except AdapterFileError:
            continue
        assert np.isfinite(values).all()


def flips(data: bytes):
    for position in range(len(data)):
        for bit in range(8):
            yield data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


def test_a_flipped_bit_in_the_packed_mask():
    data = bytearray(mask_file())
    data[-1] ^= 0b0100_0000  # the last position, the second bit of the last byte
    with pytest.raises(AdapterFileError, match="the mask does not have the header's budget and hash"):
        mask_of(bytes(data))


def test_another_mask_of_the_same_budget():
    data = mask_file()
    swapped = np.packbits(MASK[:6][::-1])
    assert np.any(swapped != np.packbits(MASK[:6]))
    with pytest.raises(AdapterFileError, match="the mask does not have the header's budget and hash"):
        mask_of(rewrite(data, {f"mask/{A}": swapped}))


@pytest.mark.parametrize("packed", [np.zeros(2, np.uint8), np.zeros((1, 1), np.uint8)])
def test_mask_bits_of_another_shape(packed):
    with pytest.raises(AdapterFileError, match=f"no mask of 6 bits for {A}"):
        mask_of(rewrite(mask_file(), {f"mask/{A}": packed}))


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (np.roll(MASK, 1), f"no 2 values for {A}"),
        (np.ones(16, bool), f"no 6 values for {A}"),
        (MASK[:15], "belongs to another space"),
    ],
    ids=["other", "all", "short"],
)
def test_values_on_other_positions(other, problem):
    # Only the counts are checked here: the file does not contain the mask that its header names.
    with pytest.raises(AdapterFileError, match=problem):
        values_of(values_file(), other)


@pytest.mark.parametrize(
    "part",
    [np.zeros(2, np.float32), np.zeros(4, np.float32), np.zeros((3, 1), np.float32)],
    ids=["few", "many", "shape"],
)
def test_values_of_another_count(part):
    with pytest.raises(AdapterFileError, match=f"no 3 values for {A}"):
        values_of(rewrite(values_file(), {f"values/{A}": part}))


def test_a_space_far_beyond_the_bytes():
    huge = rewrite(mask_file(), matrices=[[A, 10**9, 10**9], [B, 10**9, 10**9]])
    with pytest.raises(AdapterFileError, match="no mask of 1000000000000000000 bits"):
        mask_of(huge)


def test_a_vector_file_is_not_a_mask_file_nor_the_reverse():
    with pytest.raises(AdapterFileError, match=f"no mask of 6 bits for {A}"):
        mask_of(values_file())
    with pytest.raises(AdapterFileError, match="it holds 2 tensors besides values"):
        values_of(mask_file())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_that_are_not_finite(bad, dtype):
    values = VALUES.copy()
    values[1] = values[4] = bad
    with pytest.raises(AdapterFileError, match="2 values are not finite"):
        values_of(values_file(values, dtype))


def test_tensors_of_another_type():
    for dtype in (np.float64, np.int32):
        with pytest.raises(AdapterFileError, match=A):
            values_of(rewrite(values_file(), {f"values/{A}": np.zeros(3, dtype)}))
    for dtype in (np.int8, bool):
        with pytest.raises(AdapterFileError, match=A):
            mask_of(rewrite(mask_file(), {f"mask/{A}": np.zeros(1, dtype)}))


def test_a_type_that_numpy_does_not_have():
    data = mask_file().replace(b'"U8","shape":[1]', b'"F8_E4M3","shape":[1]')
    data = (int.from_bytes(data[:8], "little") + 5).to_bytes(8, "little") + data[8:]
    with pytest.raises(AdapterFileError, match=A):
        mask_of(data)


def with_entry(data: bytes, **entry: object) -> bytes:
    """The file with other properties of its first tensor."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first = min(header.keys() - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
    header[first] |= entry
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


@pytest.mark.parametrize(
    "entry",
    [
        {"data_offsets": [-4, 8]},
        {"data_offsets": [4, 16]},
        {"data_offsets": [0, 16]},
        {"data_offsets": [0, 2**80]},
        {"data_offsets": [0]},
        {"data_offsets": "ab"},
        {"data_offsets": None},
        {"shape": [-3]},
        {"shape": [-1, -3]},
        {"shape": [4]},
        {"shape": [2**62, 4]},
        {"shape": [3.0]},
        {"shape": [True, 3]},
        {"shape": [1] * 100 + [3]},
        {"shape": 3},
        {"dtype": ["F32"]},
        {"dtype": "F64"},
        {"dtype": None},
    ],
    ids=str,
)
def test_tensors_that_are_not_where_they_should_be(entry):
    assert_array_equal(values_of(with_entry(values_file())), VALUES)
    with pytest.raises(AdapterFileError):
        AdapterFile.parse(with_entry(values_file(), **entry))


@pytest.mark.parametrize("change", [lambda data: data + b"1", lambda data: data[:-1]])
def test_bytes_after_the_tensors_and_bytes_that_are_missing(change):
    with pytest.raises(AdapterFileError, match="not a safetensors file"):
        AdapterFile.parse(change(values_file()))


@pytest.mark.parametrize("fields", [{}, {"sparsity": "2:4"}], ids=["the same fields", "a field more"])
def test_another_format_version_is_named(fields):
    data = rewrite(values_file(), format_version=1, **fields)
    with pytest.raises(AdapterFileError, match="format version 1, this release reads 2"):
        AdapterFile.parse(data)


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
def test_invalid_headers(spoil: Callable[[bytes], bytes]):
    with pytest.raises(AdapterFileError, match="not an adapter file"):
        AdapterFile.parse(spoil(values_file()))
