"""Adapter files: contents survive a round trip, bytes are reproducible, and broken files are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import load, save

from perfit.adapter import mask_hash
from perfit.adapter_file import (
    _DTYPES,
    AdapterFile,
    AdapterFileError,
    AdapterHeader,
    _serialized,
    dump_mask,
    dump_server_vectors,
    dump_transfer,
    dump_vectors,
    read_fields,
)
from perfit.exchange import DTYPES, Packed, Transfer, pack
from perfit.space import LoraSpace
from perfit.spec import FederationSpec

A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"
SPACE = LoraSpace.from_shapes({A: (2, 3), B: (5, 2)})
MASK = np.array([1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0], dtype=bool)
VALUES = np.array([0.1, -2.5, 1e-7, 3.0, 1 / 3, 65504.0], dtype=np.float32)
SOME = MASK & (np.arange(MASK.size) != 2) & (np.arange(MASK.size) != 13)
"""Four of the mask's six positions: two of A's three, two of B's."""
HEADER = AdapterHeader("f", 2, "ann", "some/model", 1, 2, budget=6, mask_digest=mask_hash(SPACE, MASK))


def mask_file(space: LoraSpace = SPACE, mask: np.ndarray = MASK) -> bytes:
    header = replace(HEADER, budget=int(np.count_nonzero(mask)), mask_digest=mask_hash(space, mask))
    return dump_mask(header, space, mask)


def values_file(values: np.ndarray = VALUES) -> bytes:
    return dump_vectors(HEADER, SPACE, {"values": values})


def transfer_file(dtype: str = "float32", positions: np.ndarray = MASK, frame: np.ndarray = MASK) -> bytes:
    """Two vectors at some of the frame's positions, as they cross."""
    values = np.resize(VALUES, np.count_nonzero(positions))
    vectors = {"values": pack(values, dtype, 1), "control": pack(-values, dtype, 2)}
    return dump_transfer(HEADER, frame, Transfer(positions, vectors))


def mask_of(data: bytes) -> np.ndarray:
    return AdapterFile.parse(data).mask


def values_of(data: bytes, positions: np.ndarray = MASK) -> np.ndarray:
    return AdapterFile.parse(data).vectors(positions, ["values"])["values"]


def transfer_of(data: bytes, dtype: str, frame: np.ndarray = MASK) -> Transfer:
    return AdapterFile.parse(data).transfer(frame, ["values", "control"], dtype)


def rewrite(data: bytes, tensors: dict[str, np.ndarray | None] | None = None, **fields: object) -> bytes:
    """The file with other tensors (None: without it) or header fields, as another program could write it."""
    changed = {**AdapterFile.parse(data).tensors, **(tensors or {})}
    kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
    return save(kept, metadata={"perfit": json.dumps({**read_fields(data), **fields})})


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


def test_several_vectors_in_a_file():
    vectors = {"values": VALUES, "control": -VALUES}
    file = AdapterFile.parse(dump_vectors(HEADER, SPACE, vectors))
    for read in (file.vectors(MASK, ["control", "values"]), file.named_vectors(MASK)):
        assert read.keys() == vectors.keys()
        for name, vector in vectors.items():
            same_bits(read[name], vector)


def test_vectors_on_some_positions_of_the_mask():
    shared = MASK & (np.arange(MASK.size) < 6)  # A alone
    data = dump_vectors(HEADER, SPACE, {"values": VALUES[:3]})
    same_bits(values_of(data, shared), VALUES[:3])
    with pytest.raises(AdapterFileError, match="no 6 values of float32 for values"):
        values_of(data)


def test_missing_and_surplus_vectors():
    both = AdapterFile.parse(dump_vectors(HEADER, SPACE, {"values": VALUES, "records": VALUES}))
    with pytest.raises(AdapterFileError, match="it holds 1 tensors besides values"):
        both.vectors(MASK, ["values"])
    with pytest.raises(AdapterFileError, match="no 6 values of float32 for control"):
        AdapterFile.parse(values_file()).vectors(MASK, ["values", "control"])


@pytest.mark.parametrize("positions", [MASK, SOME, np.zeros_like(MASK)], ids=["all", "some", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_crosses_comes_back(dtype, positions):
    data = transfer_file(dtype, positions)
    transfer = transfer_of(data, dtype)
    assert_array_equal(transfer.positions, positions)
    assert transfer.vectors.keys() == {"values", "control"}
    values = np.resize(VALUES, np.count_nonzero(positions))
    same_packed(transfer.vectors["values"], pack(values, dtype, 1))
    same_packed(transfer.vectors["control"], pack(-values, dtype, 2))
    assert ("positions" in AdapterFile.parse(data).tensors) == (positions is not MASK)


def test_what_crosses_names_no_matrices():
    assert AdapterFile.parse(transfer_file()).space is None
    with pytest.raises(AdapterFileError, match="it names LoRA matrices, as no file does that crosses in a round"):
        transfer_of(rewrite(transfer_file(), matrices=SPACE.to_list()), "float32")
    with pytest.raises(AdapterFileError, match="it names no LoRA matrices"):
        mask_of(rewrite(mask_file(), matrices=None))


def same_packed(actual: Packed, expected: Packed) -> None:
    for ours, theirs in [(actual.values, expected.values), (actual.scales, expected.scales)]:
        assert (ours.dtype, ours.tobytes()) == (theirs.dtype, theirs.tobytes())


@pytest.mark.parametrize(("dtype", "bytes_"), [("float32", 4), ("bfloat16", 2), ("float16", 2), ("int8", 1)])
def test_bytes_that_cross(dtype, bytes_):
    def tensors(positions: np.ndarray) -> int:
        data = transfer_file(dtype, positions)
        return len(data) - 8 - int.from_bytes(data[:8], "little")

    scales = 4 if dtype == "int8" else 0
    assert tensors(MASK) == 2 * (6 * bytes_ + scales)
    assert tensors(SOME) == 2 * (4 * bytes_ + scales) + 1  # a bit for each of the six


def test_random_transfers_come_back():
    rng = np.random.default_rng(0)
    for dtype in [*DTYPES] * 10:
        rank, into, out = rng.integers(1, 30, size=3).tolist()
        space = LoraSpace.from_shapes({A: (rank, into), B: (out, rank)})
        frame = rng.random(space.size) < rng.random()
        positions = frame & (rng.random(space.size) < rng.random())
        packed = pack(rng.standard_normal(np.count_nonzero(positions), dtype=np.float32), dtype, 0)
        data = dump_transfer(HEADER, frame, Transfer(positions, {"values": packed}))
        transfer = AdapterFile.parse(data).transfer(frame, ["values"], dtype)
        assert_array_equal(transfer.positions, positions)
        same_packed(transfer.vectors["values"], packed)


@pytest.mark.parametrize(("dtype", "other"), [*permutations(DTYPES, 2)])
def test_what_crosses_in_another_type(dtype, other):
    problem = "2 tensors besides" if other == "int8" else f"no 6 values of {dtype} for values"
    with pytest.raises(AdapterFileError, match=problem):
        transfer_of(transfer_file(other), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"values": None}, "no 6 values of .* for values"),
        ({"control": None}, "no 6 values of .* for control"),
        ({"control": np.zeros(6, np.float64)}, "control is of type F64"),
        ({"control": np.zeros(6, np.uint8)}, "no 6 values of .* for control"),
        ({"control": np.zeros(5, np.uint8)}, "no 6 values of .* for control"),
        ({"momentum": np.zeros(6, np.float32)}, "1 tensors besides values, control"),
        ({"values/a.scales": np.zeros(1, np.float32)}, "1 tensors besides values, control"),
        ({"scales": np.zeros(1, np.float32), "x": np.zeros(1, np.uint8)}, "2 tensors besides values, control"),
        ({"positions": np.zeros(2, np.uint8)}, "no positions of 6 bits"),
        ({"positions": np.zeros((1, 1), np.uint8)}, "no positions of 6 bits"),
        ({"positions": np.zeros(1, np.int8)}, "no positions of 6 bits"),
        ({"positions": np.packbits(MASK[MASK])}, "bits for its positions, although it covers all"),
        ({"positions": np.packbits(SOME[MASK]) | np.uint8(1)}, "bits of its positions behind the last"),
        # Bits of four positions in a file of six values.
        ({"positions": np.packbits(SOME[MASK])}, "no 4 values of .* for values"),
    ],
)
def test_what_crosses_with_other_tensors(dtype, tensors, problem):
    with pytest.raises(AdapterFileError, match=problem):
        transfer_of(rewrite(transfer_file(dtype), tensors), dtype)


def test_values_for_all_positions_of_which_the_bits_are_missing():
    with pytest.raises(AdapterFileError, match="no 6 values of float32 for values"):
        transfer_of(rewrite(transfer_file(positions=SOME), {"positions": None}), "float32")


def test_bits_for_a_frame_of_another_size():
    everywhere = np.ones_like(MASK)
    with pytest.raises(AdapterFileError, match="no positions of 16 bits"):
        transfer_of(transfer_file(positions=SOME), "float32", everywhere)
    with pytest.raises(AdapterFileError, match="no positions of 6 bits"):
        transfer_of(transfer_file(positions=SOME, frame=everywhere), "float32")


@pytest.mark.parametrize(
    ("scales", "problem"),
    [
        (None, "no 1 values of float32 for control.scales"),
        (np.zeros(0, np.float32), "no 1 values of float32 for control.scales"),
        (np.zeros(2, np.float32), "no 1 values of float32 for control.scales"),
        (np.zeros((1, 1), np.float32), "no 1 values of float32 for control.scales"),
        (np.zeros(1, np.float16), "no 1 values of float32 for control.scales"),
        (np.array([np.nan], np.float32), "1 control are not finite"),
        (np.array([-np.inf], np.float32), "1 control are not finite"),
    ],
)
def test_other_scales(scales, problem):
    with pytest.raises(AdapterFileError, match=problem):
        transfer_of(rewrite(transfer_file("int8"), {"control.scales": scales}), "int8")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_scales_of_values_that_have_none(dtype):
    with pytest.raises(AdapterFileError, match="1 tensors besides values, control"):
        transfer_of(rewrite(transfer_file(dtype), {"control.scales": np.zeros(1, np.float32)}), dtype)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_crosses_and_is_not_finite(dtype, bad):
    part = np.array([1, bad, bad, 0, 0, 0], dtype=DTYPES[dtype])
    with pytest.raises(AdapterFileError, match="2 control are not finite"):
        transfer_of(rewrite(transfer_file(dtype), {"control": part}), dtype)


def test_a_flipped_bit_in_what_crosses_never_gives_another_error():
    data = transfer_file("int8", SOME)
    for flipped in flips(data):
        with suppress(AdapterFileError):
            transfer = transfer_of(flipped, "int8")
            assert not (transfer.positions & ~MASK).any()
            assert np.isfinite([packed.scales for packed in transfer.vectors.values()]).all()


def test_a_matrix_without_values():
    mask = MASK & (np.arange(MASK.size) < 6)
    assert_array_equal(mask_of(mask_file(mask=mask)), mask)
    same_bits(values_of(dump_vectors(HEADER, SPACE, {"values": VALUES[:3]}), mask), VALUES[:3])


SPEC = FederationSpec.model_validate(
    {"name": "f", "model": "some/model", "lora": {"rank": 1}, "clients": [{"id": "ann", "data": "ann.jsonl"}]}
)


def test_a_file_of_the_server_holds_every_position():
    values, everywhere = np.arange(SPACE.size, dtype=np.float32), np.ones(SPACE.size, dtype=bool)
    data = dump_server_vectors(SPEC, SPACE, 3, {"values": values, "momentum": values + 1})
    file = AdapterFile.parse(data)
    assert file.header == AdapterHeader.of_server(SPEC, SPACE, 3)
    assert file.header == AdapterHeader("f", 3, None, "some/model", 2, 2, budget=16, mask_digest="all")
    read = file.vectors(everywhere, ["values", "momentum"])
    same_bits(read["values"], values)
    same_bits(read["momentum"], values + 1)
    with pytest.raises(AdapterFileError, match="no 16 values of float32 for values"):
        values_of(values_file(), everywhere)


def test_the_header_of_a_client():
    header = AdapterHeader.of_client(SPEC, "ann", 2, 6, HEADER.mask_digest)
    assert header == HEADER


def test_random_masks_come_back():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rank, into, out = rng.integers(1, 9, size=3).tolist()
        space = LoraSpace.from_shapes({A: (rank, into), B: (out, rank)})
        mask = rng.random(space.size) < rng.random()
        values = rng.standard_normal(np.count_nonzero(mask), dtype=np.float32)
        assert_array_equal(mask_of(mask_file(space, mask)), mask)
        same_bits(values_of(dump_vectors(HEADER, space, {"values": values}), mask), values)


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
    files = [transfer_file(dtype, positions) for dtype in DTYPES for positions in (MASK, SOME)]
    several = dump_vectors(HEADER, SPACE, {"values": VALUES, "control": VALUES})
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
    swapped = np.packbits(MASK[::-1])
    assert np.any(swapped != np.packbits(MASK))
    with pytest.raises(AdapterFileError, match="the mask does not have the header's budget and hash"):
        mask_of(rewrite(data, {"mask": swapped}))


@pytest.mark.parametrize("packed", [np.zeros(3, np.uint8), np.zeros((2, 1), np.uint8)])
def test_mask_bits_of_another_shape(packed):
    with pytest.raises(AdapterFileError, match="no mask of 16 bits"):
        mask_of(rewrite(mask_file(), {"mask": packed}))


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (SOME, "no 4 values of float32 for values"),
        (np.ones(16, bool), "no 16 values of float32 for values"),
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
    [np.zeros(5, np.float32), np.zeros(7, np.float32), np.zeros((6, 1), np.float32)],
    ids=["few", "many", "shape"],
)
def test_values_of_another_count(part):
    with pytest.raises(AdapterFileError, match="no 6 values of float32 for values"):
        values_of(rewrite(values_file(), {"values": part}))


def test_a_space_far_beyond_the_bytes():
    huge = rewrite(mask_file(), matrices=[[A, 10**9, 10**9], [B, 10**9, 10**9]])
    with pytest.raises(AdapterFileError, match="no mask of 2000000000000000000 bits"):
        mask_of(huge)


def test_a_vector_file_is_not_a_mask_file_nor_the_reverse():
    with pytest.raises(AdapterFileError, match="no mask of 16 bits"):
        mask_of(values_file())
    with pytest.raises(AdapterFileError, match="it holds 1 tensors besides values"):
        values_of(mask_file())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad):
    values = VALUES.copy()
    values[1] = values[4] = bad
    with pytest.raises(AdapterFileError, match="2 values are not finite"):
        values_of(values_file(values))


def test_tensors_of_another_type():
    for dtype in (np.float64, np.int32):
        with pytest.raises(AdapterFileError, match="values"):
            values_of(rewrite(values_file(), {"values": np.zeros(6, dtype)}))
    for dtype in (np.int8, bool):
        with pytest.raises(AdapterFileError, match="mask"):
            mask_of(rewrite(mask_file(), {"mask": np.zeros(2, dtype)}))


def test_a_type_that_numpy_does_not_have():
    data = mask_file().replace(b'"U8","shape":[2]', b'"F8_E4M3","shape":[2]')
    data = (int.from_bytes(data[:8], "little") + 5).to_bytes(8, "little") + data[8:]
    with pytest.raises(AdapterFileError, match="mask is of type F8_E4M3"):
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
    with pytest.raises(AdapterFileError, match="format version 1, this release reads 3"):
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


@pytest.mark.parametrize("seed", range(30))
def test_files_are_those_of_the_library(seed):
    rng = np.random.default_rng(seed)
    names, dtypes = ["values", "control", "values.scales", "positions", 'ö"'], [*_DTYPES.values()]
    tensors = {name: np.zeros(rng.integers(5), dtypes[rng.integers(5)]) for name in names[: rng.integers(6)]}
    metadata = {"perfit": json.dumps({"client": 'ö"'})}
    assert b"".join(_serialized(tensors, metadata)) == save(dict(tensors), metadata=metadata)
