"""The sparse adapter on the wire: safetensors, byte for byte reproducible, read without torch.

A file holds, for each LoRA matrix, its bit-packed mask (``mask/<name>``), the values at the set bits
(``values/<name>``), or both, and a header in the safetensors metadata. A personal architecture is sent once, as a
file of masks; updates then hold values alone and name the mask by its hash.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from perfit.adapter import SparseAdapter, mask_hash
from perfit.space import LoraSpace

FORMAT_VERSION = 1
WIRE_DTYPES = ("float32", "bfloat16", "float16")
# safetensors.numpy writes bfloat16, but does not read it.
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "U8": np.uint8}


class AdapterFileError(ValueError):
    """The bytes are not an adapter file of this format, or do not hold what they should."""


@dataclass(frozen=True)
class AdapterHeader:
    """What an adapter file says of itself.

    Args:
        federation: Name of the federation.
        round: The round whose tuning or aggregation gave the values; 0 for masks and for the initial adapter.
        client: The owner, or None for the global adapter.
        base_model: The frozen model that the adapter belongs to.
        rank: The client's own rank, or the expanded rank for the global adapter.
        expansion: Expanded rank over the federation's rank.
        budget: Number of positions held; filled in when the file is written.
        mask_sha256: Hash of the mask that the values stand on; filled in likewise.
        format_version: Of this file format.
    """

    federation: str
    round: int
    client: str | None
    base_model: str
    rank: int
    expansion: int
    budget: int = 0
    mask_sha256: str = ""
    format_version: int = FORMAT_VERSION


def dump_mask(header: AdapterHeader, space: LoraSpace, mask: np.ndarray) -> bytes:
    """Return the file of a personal architecture; mask is bool, shape (N,)."""
    tensors = {f"mask/{m.name}": np.packbits(mask[space.slices[m.name]]) for m in space.matrices}
    return _dump(header, space, mask, tensors)


def dump_values(header: AdapterHeader, adapter: SparseAdapter, dtype: str = "float32") -> bytes:
    """Return the file of an adapter's values in ``dtype``, without its mask."""
    values = to_wire(adapter.values, dtype)
    tensors, start = {}, 0
    for matrix in adapter.space.matrices:
        count = np.count_nonzero(adapter.mask[adapter.space.slices[matrix.name]])
        tensors[f"values/{matrix.name}"] = values[start : start + count]
        start += count
    return _dump(header, adapter.space, adapter.mask, tensors)


def to_wire(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 values to what ``dtype`` can carry (to nearest, ties to even)."""
    return values.astype(np.dtype(dtype))


def load_header(data: bytes) -> tuple[AdapterHeader, LoraSpace]:
    """Read what the file says of itself and the space it belongs to.

    Raises:
        AdapterFileError: The bytes are not an adapter file of this version.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        fields = dict(json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["perfit"]))
        if fields["format_version"] != FORMAT_VERSION:
            raise AdapterFileError(f"format version {fields['format_version']}, this release reads {FORMAT_VERSION}")
        space = LoraSpace.from_shapes(fields.pop("matrices"))
        header = AdapterHeader(**fields)
    except AdapterFileError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise AdapterFileError(f"not an adapter file: {error}") from error
    return header, space


def load_mask(data: bytes) -> tuple[AdapterHeader, LoraSpace, np.ndarray]:
    """Read a personal architecture: its header, space and mask (bool, shape (N,)).

    Raises:
        AdapterFileError: Not such a file, or the bits do not have the header's budget and hash.
    """
    header, space = load_header(data)
    tensors = _load(data)
    parts = []
    for matrix in space.matrices:
        packed = tensors.get(f"mask/{matrix.name}")
        if packed is None or packed.shape != (-(-matrix.size // 8),) or packed.dtype != np.uint8:
            raise AdapterFileError(f"no mask of {matrix.size} bits for {matrix.name}")
        parts.append(np.unpackbits(packed, count=matrix.size).astype(bool))
    mask = np.concatenate(parts)
    if np.count_nonzero(mask) != header.budget or mask_hash(space, mask) != header.mask_sha256:
        raise AdapterFileError("the bits do not have the budget and hash that the header names")
    return header, space, mask


def load_values(data: bytes, mask: np.ndarray) -> tuple[AdapterHeader, SparseAdapter]:
    """Read values onto the mask that the file names by its hash.

    Args:
        data: The file.
        mask: bool, shape (N,).

    Raises:
        AdapterFileError: Not such a file; another mask; a matrix has the wrong number of values; a value is not finite.
    """
    header, space = load_header(data)
    if mask.shape != (space.size,) or mask_hash(space, mask) != header.mask_sha256:
        raise AdapterFileError(f"the values stand on mask {header.mask_sha256[:12]}, not on the one given")
    tensors = _load(data)
    parts = []
    for matrix in space.matrices:
        count = np.count_nonzero(mask[space.slices[matrix.name]])
        part = tensors.get(f"values/{matrix.name}")
        if part is None or part.shape != (count,) or part.dtype.name not in WIRE_DTYPES:
            raise AdapterFileError(f"no {count} values for {matrix.name}")
        parts.append(part.astype(np.float32))
    values = np.concatenate(parts)
    if not np.isfinite(values).all():
        raise AdapterFileError(f"{np.count_nonzero(~np.isfinite(values))} values are not finite")
    return header, SparseAdapter(space, mask, values)


def load_dense(data: bytes) -> tuple[AdapterHeader, SparseAdapter]:
    """Read a global adapter, which holds every position.

    Raises:
        AdapterFileError: As :func:`load_values`.
    """
    _, space = load_header(data)
    return load_values(data, np.ones(space.size, dtype=bool))


def _dump(header: AdapterHeader, space: LoraSpace, mask: np.ndarray, tensors: dict[str, np.ndarray]) -> bytes:
    header = replace(header, budget=int(np.count_nonzero(mask)), mask_sha256=mask_hash(space, mask))
    fields = {**asdict(header), "matrices": space.to_list()}
    # One metadata key: safetensors keeps several in a hash map, whose order would change the bytes.
    return save(tensors, metadata={"perfit": json.dumps(fields, sort_keys=True)})


def _load(data: bytes) -> dict[str, np.ndarray]:
    try:
        parts = deserialize(data)
    except SafetensorError as error:
        raise AdapterFileError(f"not a safetensors file: {error}") from error
    for name, part in parts:
        if part["dtype"] not in _DTYPES:
            raise AdapterFileError(f"{name} is of type {part['dtype']}, want one of {', '.join(_DTYPES)}")
    return {name: np.frombuffer(p["data"], _DTYPES[p["dtype"]]).reshape(p["shape"]) for name, p in parts}
