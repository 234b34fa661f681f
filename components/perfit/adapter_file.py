"""Adapter files: safetensors, reproducible byte for byte, read without torch.

A mask file holds the bit-packed mask of each LoRA matrix (``mask/<matrix>``). A vector file holds named vectors at the
positions that it covers, one tensor per vector and matrix (``values/<matrix>``, ``control/<matrix>``, ...). Both have a
header in the safetensors metadata. A client sends its mask once; its updates refer to the mask by its hash.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save

from perfit.adapter import mask_hash
from perfit.space import LoraSpace
from perfit.spec import FederationSpec

FORMAT_VERSION = 2
ALL_POSITIONS = "all"
"""Stands in for a mask's hash in files that cover every position of the space."""
# safetensors.numpy writes bfloat16, but does not read it.
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "U8": np.uint8}
_WIRE_DTYPES = ("float32", "bfloat16", "float16")


class AdapterFileError(ValueError):
    """The bytes are not an adapter file of this format, or its content is not what was expected."""


@dataclass(frozen=True)
class AdapterHeader:
    """The header of an adapter file.

    Args:
        federation: Name of the federation.
        round: The round that the file is from; 0 for the initial vectors.
        client: The owner's id, or None for the server's files.
        base_model: The frozen model that the adapter belongs to.
        rank: The client's own rank, or the expanded rank for the server's files.
        expansion: Expanded rank divided by the federation's rank.
        budget: Positions that the client holds; N for the server's files.
        mask_sha256: Hash of the mask of these positions, or ``ALL_POSITIONS``.
        base_sha256: In an update: hash of the global adapter that the round started from.
        format_version: Version of the file format.
    """

    federation: str
    round: int
    client: str | None
    base_model: str
    rank: int
    expansion: int
    budget: int
    mask_sha256: str
    base_sha256: str = ""
    format_version: int = FORMAT_VERSION

    @classmethod
    def of_client(cls, spec: FederationSpec, client: str, round: int, budget: int, mask_sha256: str) -> AdapterHeader:
        """Return the header of a client's file."""
        rank = spec.rank_of(spec.client(client))
        return cls(spec.name, round, client, spec.model, rank, spec.expansion, budget, mask_sha256)

    def at_base(self, sha256: str) -> AdapterHeader:
        """Return the header of an update that was tuned from the global adapter of this hash."""
        return replace(self, base_sha256=sha256)

    @classmethod
    def of_server(cls, spec: FederationSpec, space: LoraSpace, round: int) -> AdapterHeader:
        """Return the header of a file with the server's vectors after a round."""
        return cls(spec.name, round, None, spec.model, space.rank, spec.expansion, space.size, ALL_POSITIONS)


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file, parsed once.

    Args:
        header: The file's header.
        space: The space that the header describes.
        tensors: The stored tensors, by name.
    """

    header: AdapterHeader
    space: LoraSpace
    tensors: Mapping[str, np.ndarray]

    @classmethod
    def parse(cls, data: bytes) -> AdapterFile:
        """Read a file.

        Raises:
            AdapterFileError: The bytes are not an adapter file of this version.
        """
        header, space = _parse_header(data)
        return cls(header, space, _parse_tensors(data))

    @cached_property
    def mask(self) -> np.ndarray:
        """The architecture in the file: bool, shape (N,).

        Raises:
            AdapterFileError: There is none, or it does not have the header's budget and hash.
        """
        packed = {matrix.name: self.tensors.get(f"mask/{matrix.name}") for matrix in self.space.matrices}
        for matrix in self.space.matrices:
            part = packed[matrix.name]
            if part is None or part.shape != (-(-matrix.size // 8),) or part.dtype != np.uint8:
                raise AdapterFileError(f"no mask of {matrix.size} bits for {matrix.name}")
        mask = np.empty(self.space.size, dtype=bool)
        for name, at in self.space.slices.items():
            mask[at] = np.unpackbits(packed[name], count=at.stop - at.start)
        if np.count_nonzero(mask) != self.header.budget or mask_hash(self.space, mask) != self.header.mask_sha256:
            raise AdapterFileError("the mask does not have the header's budget and hash")
        return mask

    def vectors(self, positions: np.ndarray, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return named vectors at the positions that the file covers.

        Args:
            positions: bool, shape (N,).
            names: The vectors to return; the file may hold no others.

        Returns:
            Each float32, of shape (number of positions,).

        Raises:
            AdapterFileError: The file holds other tensors, a vector has the wrong length, or a value is not finite.
        """
        names = list(names)
        surplus = set(self.tensors) - {f"{name}/{matrix.name}" for name in names for matrix in self.space.matrices}
        if surplus or positions.shape != (self.space.size,):
            problem = f"it holds {len(surplus)} tensors besides {', '.join(names)}, or belongs to another space"
            raise AdapterFileError(problem)
        counts = self.space.counts(positions)
        return {name: self._vector(name, counts) for name in names}

    def named_vectors(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Return all vectors in the file, by name; see :meth:`vectors`."""
        return self.vectors(positions, sorted({name.partition("/")[0] for name in self.tensors}))

    def _vector(self, name: str, counts: Mapping[str, int]) -> np.ndarray:
        vector, start, extremes = np.empty(sum(counts.values()), dtype=np.float32), 0, []
        for matrix, count in counts.items():
            part = self.tensors.get(f"{name}/{matrix}")
            if part is None or part.shape != (count,) or part.dtype.name not in _WIRE_DTYPES:
                raise AdapterFileError(f"no {count} {name} for {matrix}")
            target = vector[start : start + count]
            target[:] = part
            extremes += [target.min(), target.max()] if count else []  # while it is in the cache
            start += count
        if not np.isfinite(extremes).all():
            raise AdapterFileError(f"{np.count_nonzero(~np.isfinite(vector))} {name} are not finite")
        return vector


def dump_mask(header: AdapterHeader, space: LoraSpace, mask: np.ndarray) -> bytes:
    """Return the file of a personal architecture; mask is bool, shape (N,)."""
    return _dump(header, space, {f"mask/{m.name}": np.packbits(mask[space.slices[m.name]]) for m in space.matrices})


def dump_vectors(
    header: AdapterHeader,
    space: LoraSpace,
    positions: np.ndarray,
    vectors: Mapping[str, np.ndarray],
    dtype: str = "float32",
) -> bytes:
    """Return the file of named vectors.

    Args:
        header: The file's header.
        space: The expanded space of N positions.
        positions: bool, shape (N,).
        vectors: float32, shape (number of positions,), by name.
        dtype: Type of the values in the file.
    """
    ends = np.cumsum(list(space.counts(positions).values()))[:-1]
    tensors = {}
    for name, vector in vectors.items():
        for matrix, part in zip(space.matrices, np.split(to_wire(vector, dtype), ends), strict=True):
            tensors[f"{name}/{matrix.name}"] = part
    return _dump(header, space, tensors)


def dump_server_vectors(spec: FederationSpec, space: LoraSpace, round: int, vectors: Mapping[str, np.ndarray]) -> bytes:
    """Return the file of the server's vectors after a round, each float32 of shape (N,)."""
    return dump_vectors(AdapterHeader.of_server(spec, space, round), space, np.ones(space.size, dtype=bool), vectors)


def to_wire(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 values to ``dtype`` (to nearest, ties to even)."""
    return values.astype(np.dtype(dtype), copy=False)


def _dump(header: AdapterHeader, space: LoraSpace, tensors: dict[str, np.ndarray]) -> bytes:
    fields = {**asdict(header), "matrices": space.to_list()}
    # One metadata key: safetensors keeps several in a hash map, whose order would change the bytes.
    return save(tensors, metadata={"perfit": json.dumps(fields, sort_keys=True)})


def read_fields(data: bytes) -> dict[str, Any]:
    """Return the one entry of a safetensors file's metadata.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: There is none.
    """
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["perfit"]))


def _parse_tensors(data: bytes) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file as views of its bytes; safetensors' own reader copies them."""
    start = 8 + int.from_bytes(data[:8], "little")
    tensors, end = {}, start
    try:
        entries = dict(json.loads(data[8:start]))
        entries.pop("__metadata__")
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            first, stop = entry["data_offsets"]
            if entry["dtype"] not in _DTYPES:
                raise AdapterFileError(f"{name} is of type {entry['dtype']}, want one of {', '.join(_DTYPES)}")
            dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"]
            if any(type(number) is not int or number < 0 for number in (*shape, stop)) or start + first != end:
                raise ValueError(f"{name} has no plain shape, or does not follow the tensor before it")
            tensors[name] = np.frombuffer(data, dtype, math.prod(shape), end).reshape(shape)
            end += tensors[name].nbytes
            if end != start + stop:
                raise ValueError(f"the shape of {name} does not fit its offsets")
    except AdapterFileError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise AdapterFileError(f"not a safetensors file: {error}") from error
    if end != len(data):
        raise AdapterFileError(f"not a safetensors file: {len(data) - end} bytes follow its last tensor")
    return tensors


def _parse_header(data: bytes) -> tuple[AdapterHeader, LoraSpace]:
    try:
        fields = read_fields(data)
        if fields["format_version"] != FORMAT_VERSION:
            raise AdapterFileError(f"format version {fields['format_version']}, this release reads {FORMAT_VERSION}")
        space = LoraSpace.from_shapes(fields.pop("matrices"))
        return AdapterHeader(**fields), space
    except AdapterFileError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise AdapterFileError(f"not an adapter file: {error}") from error
