"""Adapter files: safetensors, reproducible byte for byte, read without torch.

A mask file holds a bit-packed mask (``mask``). A vector file holds named vectors at the positions that it covers, one
tensor a vector (``values``, ``control``, ...). Both follow the order of the space, whose matrices are in the header,
which is in the safetensors metadata. A client sends its mask once; other files refer to the mask by its hash.

What crosses in a round, an upload or a download, is a vector file in the type on the wire. Its header leaves the
matrices out: the mask's hash stands for them. If it covers less than both sides know of, ``positions`` tells,
bit-packed, which of these it covers; ``<name>.scales`` are the scales of int8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from perfit.adapter import packed_hash
from perfit.exchange import BLOCK, DTYPES, Packed, Transfer
from perfit.space import LoraSpace
from perfit.spec import FederationSpec
from perfit.updates import count_bits

FORMAT_VERSION = 3
ALL_POSITIONS = "all"
"""Stands in for a mask's hash in files that cover every position of the space."""
# safetensors.numpy writes bfloat16, but does not read it.
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I8": np.int8, "U8": np.uint8}
_POSITIONS = "positions"


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
        mask_digest: Hash of the mask of these positions, or ``ALL_POSITIONS``.
        base_digest: In an upload and a download: hash of the global adapter that the round starts from.
        format_version: Version of the file format.
    """

    federation: str
    round: int
    client: str | None
    base_model: str
    rank: int
    expansion: int
    budget: int
    mask_digest: str
    base_digest: str = ""
    format_version: int = FORMAT_VERSION

    @classmethod
    def of_client(cls, spec: FederationSpec, client: str, round: int, budget: int, mask_digest: str) -> AdapterHeader:
        """Return the header of a client's file."""
        rank = spec.rank_of(spec.client(client))
        return cls(spec.name, round, client, spec.model, rank, spec.expansion, budget, mask_digest)

    def at_base(self, digest: str) -> AdapterHeader:
        """Return the header of what crosses in a round that starts from the global adapter of this hash."""
        return replace(self, base_digest=digest)

    @classmethod
    def of_download(
        cls, spec: FederationSpec, client: str, round: int, budget: int, mask_digest: str, base_digest: str
    ) -> AdapterHeader:
        """Return the header of what a client downloads; without a search, that of what all clients of its rank do."""
        header = cls.of_client(spec, client, round, budget, mask_digest).at_base(base_digest)
        return header if spec.search else replace(header, client=None)

    @classmethod
    def of_server(cls, spec: FederationSpec, space: LoraSpace, round: int) -> AdapterHeader:
        """Return the header of a file with the server's vectors after a round."""
        return cls(spec.name, round, None, spec.model, space.rank, spec.expansion, space.size, ALL_POSITIONS)


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file, parsed once.

    Args:
        header: The file's header.
        space: The space that the header describes; None if the file is of what crosses in a round.
        tensors: The stored tensors, by name.
    """

    header: AdapterHeader
    space: LoraSpace | None
    tensors: Mapping[str, np.ndarray]

    @classmethod
    def parse(cls, data: bytes | np.ndarray, expected: LoraSpace | None = None) -> AdapterFile:
        """Read a file.

        Args:
            data: Bytes, or uint8 of one dimension; the file's tensors are views of it.
            expected: A space that is not built again if it is the file's.

        Raises:
            AdapterFileError: The bytes are not an adapter file of this version.
        """
        try:
            tree, start = _header(data)
            header, space = _parse_fields(_fields(tree), expected)
            return cls(header, space, _views(data, tree, start))
        except AdapterFileError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise AdapterFileError(f"not an adapter file: {error}") from error

    @cached_property
    def mask(self) -> np.ndarray:
        """The architecture in the file: bool, shape (N,); raises as :attr:`packed_mask`."""
        return np.unpackbits(self.packed_mask, count=self.space.size).view(bool)

    @cached_property
    def packed_mask(self) -> np.ndarray:
        """The architecture in the file as ``np.packbits`` packs it: uint8, shape (ceil(N / 8),).

        Raises:
            AdapterFileError: There is none, or it does not have the header's budget and hash.
        """
        if self.space is None:
            raise AdapterFileError("it names no LoRA matrices")
        mask = self._bits("mask", self.space.size)
        if count_bits(mask) != self.header.budget or packed_hash(self.space, mask) != self.header.mask_digest:
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
        return {name: packed.values for name, packed in self._packed(positions, list(names), "float32", []).items()}

    def named_vectors(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Return all vectors in the file, by name; see :meth:`vectors`."""
        return self.vectors(positions, sorted(self.tensors))

    def raw_vectors(self, count: int, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return float32 vectors that crossed in a round at all positions that both sides know of, as they are.

        Args:
            count: Number of these positions.
            names: The vectors to return; the file may hold no others.

        Returns:
            Views of the file's data, float32, shape (count,), whose values may be infinite or NaN.

        Raises:
            AdapterFileError: The file holds other tensors, or one has the wrong type or shape.
        """
        self._check_crossed()
        self._check_tensors(names, [])
        return {name: self._tensor(name, count, "float32") for name in names}

    def transfer(self, frame: np.ndarray, names: Iterable[str], dtype: str) -> Transfer:
        """Return what crossed in a round.

        Args:
            frame: bool, shape (N,): the positions that both sides know of, among which the file's are.
            names: The vectors to return; the file may hold no others.
            dtype: Type of the values on the wire, a name in :data:`perfit.exchange.DTYPES`.

        Raises:
            AdapterFileError: The file holds other tensors, one has the wrong type or shape, or a value is not finite.
        """
        self._check_crossed()
        positions, extra = frame, []
        if _POSITIONS in self.tensors:
            positions, extra = np.zeros_like(frame), [_POSITIONS]
            count = np.count_nonzero(frame)
            positions[frame] = np.unpackbits(self._bits(_POSITIONS, count), count=count).view(bool)
            if np.array_equal(positions, frame):
                raise AdapterFileError("bits for its positions, although it covers all")
        return Transfer(positions, self._packed(positions, list(names), dtype, extra))

    def _packed(
        self, positions: np.ndarray, names: Sequence[str], dtype: str, extra: Sequence[str]
    ) -> dict[str, Packed]:
        scales = [f"{name}.scales" for name in names] if dtype == "int8" else []
        self._check_tensors(names, [*scales, *extra])
        if self.space and positions.shape != (self.space.size,):
            raise AdapterFileError("it belongs to another space")
        count = int(np.count_nonzero(positions))
        return {name: self._vector(name, count, dtype) for name in names}

    def _check_crossed(self) -> None:
        if self.space is not None:
            raise AdapterFileError("it names LoRA matrices, as no file does that crosses in a round")

    def _check_tensors(self, names: Iterable[str], extra: Iterable[str]) -> None:
        if surplus := self.tensors.keys() - {*names, *extra}:
            raise AdapterFileError(f"it holds {len(surplus)} tensors besides {', '.join(names)}")

    def _vector(self, name: str, count: int, dtype: str) -> Packed:
        packed = Packed(self._tensor(name, count, dtype))
        if dtype == "int8":
            packed = replace(packed, scales=self._tensor(f"{name}.scales", -(-count // BLOCK), "float32"))
        real = packed.scales if dtype == "int8" else packed.values
        if count and not np.isfinite([real.min(), real.max()]).all():  # without a temporary array
            raise AdapterFileError(f"{np.count_nonzero(~np.isfinite(real))} {name} are not finite")
        return packed

    def _bits(self, name: str, count: int) -> np.ndarray:
        tensor = self.tensors.get(name)
        if tensor is None or tensor.shape != (-(-count // 8),) or tensor.dtype != np.uint8:
            raise AdapterFileError(f"no {name} of {count} bits")
        if count % 8 and tensor[-1] & 0xFF >> count % 8:
            raise AdapterFileError(f"bits of its {name} behind the last")
        return tensor

    def _tensor(self, name: str, count: int, dtype: str) -> np.ndarray:
        tensor = self.tensors.get(name)
        if tensor is None or tensor.shape != (count,) or tensor.dtype != DTYPES[dtype]:
            raise AdapterFileError(f"no {count} values of {dtype} for {name}")
        return tensor


def dump_mask(header: AdapterHeader, space: LoraSpace, mask: np.ndarray) -> bytes:
    """Return the file of a personal architecture; mask is bool, shape (N,)."""
    return _dump(header, space, {"mask": np.packbits(mask)})


def dump_vectors(header: AdapterHeader, space: LoraSpace, vectors: Mapping[str, np.ndarray]) -> bytes:
    """Return the file of named vectors.

    Args:
        header: The file's header.
        space: The expanded space of N positions.
        vectors: float32, of the length of the positions that the file covers, by name.
    """
    return _dump(header, space, vectors)


def dump_transfer(header: AdapterHeader, frame: np.ndarray, transfer: Transfer) -> bytes:
    """Return the file of what crosses in a round.

    Args:
        header: The file's header.
        frame: bool, shape (N,): the positions that both sides know of, among which the transfer's are.
        transfer: What crosses.
    """
    tensors = {name: packed.values for name, packed in transfer.vectors.items()}
    tensors |= {f"{name}.scales": p.scales for name, p in transfer.vectors.items() if p.values.dtype == np.int8}
    if not np.array_equal(frame, transfer.positions):
        tensors[_POSITIONS] = np.packbits(transfer.positions[frame])
    return _dump(header, None, tensors)


def dump_server_vectors(spec: FederationSpec, space: LoraSpace, round: int, vectors: Mapping[str, np.ndarray]) -> bytes:
    """Return the file of the server's vectors after a round, each float32 of shape (N,)."""
    return dump_vectors(AdapterHeader.of_server(spec, space, round), space, vectors)


def server_file(
    spec: FederationSpec, space: LoraSpace, round: int, vectors: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Return the parts, each uint8, that joined are the file of :func:`dump_server_vectors`; no tensor is copied."""
    return _parts(AdapterHeader.of_server(spec, space, round), space, vectors)


def _dump(header: AdapterHeader, space: LoraSpace | None, tensors: Mapping[str, np.ndarray]) -> bytes:
    return b"".join(_parts(header, space, tensors))


def _parts(header: AdapterHeader, space: LoraSpace | None, tensors: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return _serialized(tensors, _metadata(header, space))


def transfer_start(header: AdapterHeader, count: int, names: Sequence[str], dtype: str) -> tuple[bytes, list[str]]:
    """Return how the file of a transfer at ``count`` positions, all that both sides know of, begins.

    Args:
        header: The file's header.
        count: Number of positions.
        names: The vectors.
        dtype: Type of their values, a name in :data:`perfit.exchange.DTYPES`.

    Returns:
        The bytes before the first tensor, and the tensors' names in the order in which they follow.
    """
    tensors = {name: np.broadcast_to(DTYPES[dtype](0), count) for name in names}
    if dtype == "int8":
        tensors |= {f"{name}.scales": np.broadcast_to(np.float32(0), -(-count // BLOCK)) for name in names}
    return _start(tensors, order := _order(tensors), _metadata(header, None)), order


def _metadata(header: AdapterHeader, space: LoraSpace | None) -> dict[str, str]:
    fields = {**asdict(header), "matrices": space and space.to_list()}
    return {"perfit": json.dumps(fields, sort_keys=True)}


def _serialized(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> list[np.ndarray]:
    """Return, in parts, what ``safetensors.numpy.save`` does, which needs the memory of the tensors once more."""
    order = _order(tensors)
    start = np.frombuffer(_start(tensors, order, metadata), np.uint8)
    return [start, *(np.ascontiguousarray(tensors[name]).view(np.uint8) for name in order)]


def _order(tensors: Mapping[str, np.ndarray]) -> list[str]:
    return sorted(tensors, key=lambda name: (-tensors[name].itemsize, str(tensors[name].dtype), name))


def _start(tensors: Mapping[str, np.ndarray], order: Sequence[str], metadata: Mapping[str, str]) -> bytes:
    names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
    tree, end = {"__metadata__": dict(metadata)}, 0
    for name in order:
        array, begin = tensors[name], end
        end += array.nbytes
        tree[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_fields(data: bytes) -> dict[str, Any]:
    """Return the one entry of a safetensors file's metadata.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: There is none.
    """
    return _fields(_header(data)[0])


def _header(data: bytes | np.ndarray) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and where its tensors begin."""
    start = 8 + int.from_bytes(data[:8], "little")
    return dict(json.loads(bytes(data[8:start]))), start


def _fields(tree: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(tree["__metadata__"]["perfit"]))


def _parse_fields(fields: dict[str, Any], expected: LoraSpace | None) -> tuple[AdapterHeader, LoraSpace | None]:
    if fields["format_version"] != FORMAT_VERSION:
        raise AdapterFileError(f"format version {fields['format_version']}, this release reads {FORMAT_VERSION}")
    matrices = fields.pop("matrices")
    header = AdapterHeader(**fields)
    if expected and matrices == expected.to_list():
        return header, expected
    return header, None if matrices is None else LoraSpace.from_shapes(matrices)


def _views(data: bytes | np.ndarray, tree: Mapping[str, Any], start: int) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file as views: the library would copy them.

    As the format demands, they follow each other without a gap, and end with the file.
    """
    tensors, end = {}, 0
    entries = {name: entry for name, entry in tree.items() if name != "__metadata__"}
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in _DTYPES:
            raise AdapterFileError(f"{name} is of type {entry['dtype']}, want one of {', '.join(_DTYPES)}")
        dtype, shape, begin = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"], end
        if not all(type(side) is int and side >= 0 for side in shape):
            raise AdapterFileError(f"{name} has the shape {shape}")
        end += math.prod(shape) * dtype.itemsize
        if entry["data_offsets"] != [begin, end] or start + end > len(data):
            raise AdapterFileError(f"not a safetensors file: {name} is not at bytes {begin} to {end} of its tensors")
        tensor = np.frombuffer(memoryview(data)[start + begin : start + end], dtype).reshape(shape)
        tensors[name] = tensor if tensor.flags.aligned else tensor.copy()
    if start + end != len(data):
        raise AdapterFileError("not a safetensors file: it does not end with its last tensor")
    return tensors
